"""The ops below sync_batch_norm_relu: masks, who watches them, compile and export."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from psp_fast.ops import backend
from psp_fast.ops.sync_batch_norm_relu import sync_batch_norm_relu
from tests.ops.checks import LAYOUTS, random
from tests.ops.sync_batch_norm_relu import DTYPES, SHAPES, vectors

pytestmark = pytest.mark.usefixtures("poison_empty", "two_threads")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("fused", [True, False])
def test_opcheck(layout: str, fused: bool) -> None:
    """With everything (ReLU, residual, affine), and without."""
    ops = torch.ops.psp_fast
    x, dy, residual = (random(2, 5, 4, 7, layout=layout, seed=i) for i in range(3))
    weight, bias, mean, invstd = vectors(5)
    affine = (weight, bias) if fused else (None, None)
    apply = (x, mean, invstd, *affine, residual if fused else None, fused)
    gradient = (dy, x, ops.batch_norm_apply(*apply) if fused else None, mean, invstd, *affine)
    torch.library.opcheck(ops.batch_norm_statistics, (x,))
    torch.library.opcheck(
        ops.batch_norm_forward, (x, *affine, residual if fused else None, mean, bias, 0.1, 1e-3, fused)
    )
    torch.library.opcheck(ops.batch_norm_apply, apply)
    torch.library.opcheck(ops.batch_norm_backward_sums, (*gradient, fused))
    torch.library.opcheck(ops.batch_norm_backward, (*gradient, fused, fused))
    means = torch.stack([mean, bias]) if fused else None
    torch.library.opcheck(ops.batch_norm_backward_input, (*gradient, means, fused, fused))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_mask_of_forward(capability: str, dtype: torch.dtype, layout: str) -> None:
    """Bits of forward's mask give the gradients that its output gives; they are the same on every instruction set."""
    ops, native = torch.ops.psp_fast, backend.native()
    for shape in [*SHAPES, (2, 32, 4, 4), (2, 16, 5, 7)]:
        x, residual, dy = (random(*shape, dtype=dtype, layout=layout, seed=i) for i in range(3))
        given = (x, *vectors(shape[1])[:2], residual, None, None, 0.1, 1e-3, True)
        if x.numel() == x.shape[1]:
            continue
        y, mean, invstd, mask = ops.batch_norm_forward(*given)
        assert mask.numel() * 16 >= y.numel() and mask.dtype == torch.int16
        rest = (mean, invstd, *given[1:3], True, True)
        for bits, output in zip(*(ops.batch_norm_backward(dy, x, m, *rest) for m in (mask, y)), strict=True):
            assert torch.equal(bits, output)
        native.set_cpu_capability("baseline")
        *_, other = ops.batch_norm_forward(*given)
        same = ops.batch_norm_backward(dy, x, other, *rest)[1]
        native.set_cpu_capability(capability)
        assert torch.equal(same, ops.batch_norm_backward(dy, x, other, *rest)[1])


def test_large_results_of_any_alignment(capability: str) -> None:
    """PyTorch's own memory begins at 64 bytes; where another's does not, nothing is written past the caches."""
    x, mean, invstd = random(2, 80, 121, 125), torch.zeros(80), torch.ones(80)
    y = torch.empty(x.numel() + 1)[1:].view_as(x)
    arrays = {name: array.data_ptr() for name, array in (("x", x), ("y", y), ("mean", mean), ("invstd", invstd))}
    backend.native().batch_norm_apply_cpu("float32", False, True, (2, 80, 121 * 125), 2, **arrays)
    assert torch.equal(y, x.relu())


@pytest.mark.parametrize("shape", [(2, 20, 6, 7), (2, 64, 1, 2), (3, 20, 1, 1)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_tensors_may_be_copied(layout: str, shape: tuple[int, ...]) -> None:
    """As hooks do that offload them, and lose their strides; the mask keeps the layout it was made in."""
    x, residual, dy = (random(*shape, layout=layout, seed=i) for i in range(3))
    x, residual = (torch.cat([t, t], 1)[:, : shape[1]].requires_grad_() for t in (x, residual))  # views, as layout is

    def gradients() -> tuple[Tensor, ...]:
        y = sync_batch_norm_relu(x, None, None, None, None, training=True, residual=residual)
        return torch.autograd.grad(y, [x, residual], dy)

    expected = gradients()
    copied = torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().numpy().copy(order="C"), torch.from_numpy)
    with copied:
        found = gradients()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_mask_of_another_shape_is_refused() -> None:
    x, dy = random(2, 20, 6, 7), random(2, 20, 6, 7, seed=1)
    mean, invstd, mask = torch.zeros(20), torch.ones(20), torch.zeros((4, 4), dtype=torch.int16)
    with pytest.raises(ValueError, match=r"mask of shape \(4, 4\) does not fit x of shape \(2, 20, 6, 7\)"):
        torch.ops.psp_fast.batch_norm_backward(dy, x, mask, mean, invstd, None, None, True, True)


def test_a_mask_is_no_map() -> None:
    x, mask, vector = random(2, 3, 1, 1), torch.ones(2, 3, 1, 1, dtype=torch.int16), torch.ones(3)
    with pytest.raises(ValueError, match=r"mask of shape \(2, 3, 1, 1\) does not fit"):
        torch.ops.psp_fast.batch_norm_backward(x, x, mask, vector, vector, vector, vector, True, True)


def test_tensors_that_only_the_dispatcher_can_read() -> None:
    """Gradients in batches, with the bit that says negative, or of zeros without memory."""
    x, residual = random(2, 5, 4, 7).requires_grad_(), random(2, 5, 4, 7, seed=1).requires_grad_()
    dys = torch.stack([random(2, 5, 4, 7, seed=i) for i in (2, 3)])

    def call(x: Tensor, residual: Tensor) -> Tensor:
        return sync_batch_norm_relu(x, None, None, None, None, training=True, residual=residual)

    y = call(x, residual)
    single = [torch.autograd.grad(y, [x, residual], dy, retain_graph=True) for dy in dys]
    batched = torch.autograd.grad(y, [x, residual], dys, is_grads_batched=True, retain_graph=True)
    torch.testing.assert_close(batched, tuple(map(torch.stack, zip(*single, strict=True))))
    negative = torch.autograd.grad(y, [x, residual], torch._neg_view(-dys[0]), retain_graph=True)
    torch.testing.assert_close(negative, single[0])
    zero = torch.autograd.grad(y, [x, residual], torch._efficientzerotensor(dys[0].shape))
    assert all(not t.any() for t in zero)
    torch.testing.assert_close(call(torch._neg_view(-x.detach()), residual), y)


def test_a_nan_lets_the_gradient_pass(capability: str) -> None:
    x, residual, dy = (random(2, 3, 5, 7, seed=i) for i in range(3))
    residual[0, 1, 2, 3] = torch.nan
    forward = torch.ops.psp_fast.batch_norm_forward(x, None, None, residual, None, None, 0.1, 1e-3, True)
    y, mean, invstd, mask = forward
    assert y.isnan().sum() == 1
    _, g, _ = torch.ops.psp_fast.batch_norm_backward(dy, x, mask, mean, invstd, None, None, True, True)
    assert torch.equal(g, torch.where(y <= 0, 0, dy))


def test_ops_are_seen_by_who_watches() -> None:
    """The dispatcher is passed by only where nobody watches; either way gives the same bits."""
    x, residual = random(2, 5, 4, 7).requires_grad_(), random(2, 5, 4, 7, seed=1).requires_grad_()

    def step() -> list[Tensor]:
        y = sync_batch_norm_relu(x, None, None, None, None, training=True, residual=residual)
        return [y, *torch.autograd.grad(y.sum(), [x, residual])]

    alone = step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        profiled = step()
    names = {event.key for event in profile.key_averages()}
    assert {"psp_fast::batch_norm_forward", "psp_fast::batch_norm_backward"} <= names
    with FlopCounterMode(display=False):
        watched = step()
    for ours, *others in zip(alone, profiled, watched, strict=True):
        assert all(torch.equal(ours, other) for other in others)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mask_found_again_from_x(implementation: str, dtype: torch.dtype, layout: str) -> None:
    """What a caller that did not keep y gets."""
    ops = torch.ops.psp_fast
    channels = 67 if implementation == "csrc/cpu" else 5
    x, dy = (random(2, channels, 4, 7, dtype=dtype, layout=layout, seed=i) for i in range(2))
    weight, bias, mean, invstd = vectors(channels)
    for affine in ((weight, bias), (None, bias)):
        y = ops.batch_norm_apply(x, mean, invstd, *affine, None, True)
        sums = [ops.batch_norm_backward_sums(dy, x, known, mean, invstd, *affine, True) for known in (y, None)]
        torch.testing.assert_close(*sums)
        inputs = [
            ops.batch_norm_backward_input(dy, x, known, mean, invstd, *affine, sums[0] / 56, True, True)
            for known in (y, None)
        ]
        torch.testing.assert_close(*inputs)


def step(x: Tensor, residual: Tensor, *parameters: Tensor, training: bool = True) -> Tensor:
    y = sync_batch_norm_relu(x.relu(), *parameters, training=training, residual=residual)
    return (y * y).sum() + parameters[2].sum()


@pytest.mark.parametrize(
    ("compiler", "dynamic", "training"),
    [
        ("aot_eager", False, True),
        ("aot_eager", False, False),
        ("aot_eager", True, True),
        ("aot_eager", True, False),
        ("inductor", False, True),
    ],
)
def test_compile(compiler: str, dynamic: bool, training: bool) -> None:
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend=compiler)
    for layout in LAYOUTS:
        results = []
        for function in (compiled, step):
            leaves = [random(2, 5, 4, 7, layout=layout, seed=i).requires_grad_() for i in range(2)]
            weight, bias, mean, var = vectors(5)
            leaves += [weight.requires_grad_(), bias.requires_grad_()]
            loss = function(*leaves, mean, var, training=training)
            results.append([loss, *torch.autograd.grad(loss, leaves), mean, var])
        for ours, want in zip(*results, strict=True):
            torch.testing.assert_close(ours, want)
        assert training != torch.equal(results[0][-1], vectors(5)[3])


def test_export() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = torch.nn.BatchNorm2d(5)

        def forward(self, x: Tensor) -> Tensor:
            bn = self.bn
            return sync_batch_norm_relu(
                x, bn.weight, bn.bias, bn.running_mean, bn.running_var, training=False, residual=x
            )

    block = Block().eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(block, (random(2, 5, 4, 7),), dynamic_shapes={"x": {0: batch}})
    assert "psp_fast" not in str(program.graph)  # plain ops, for other runtimes
    larger = random(4, 5, 4, 7)
    torch.testing.assert_close(program.module()(larger), block(larger))
