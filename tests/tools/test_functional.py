"""torch.func, forward-mode derivatives and derivatives of derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from psp_fast import PSPNet, ops
from tests.models.modules import batch
from tests.tools.checks import assert_same, images, network, train


def _double(layers: int = 18) -> PSPNet:
    return network(layers).eval()


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def _loss(model: PSPNet, weights: dict[str, Tensor]) -> Tensor:
    x, labels = batch()
    _, main, aux = functional_call(model, weights, (x, labels))
    return main + 0.4 * aux


@pytest.mark.parametrize("layers", [18, 50])
def test_functional_call_uses_the_weights_it_is_given(layers: int) -> None:
    model = _double(layers)
    weights = {name: 0.9 * p for name, p in _weights(model).items()}
    got = functional_call(model, weights, (images(torch.float64),))
    other = _double(layers)
    other.load_state_dict({**other.state_dict(), **weights})
    assert_same({"logits": got}, {"logits": other(images(torch.float64))}, 1e-12)
    assert (got - model(images(torch.float64))).norm() > 0.01 * got.norm()


@pytest.mark.parametrize("layers", [18, 50])
def test_gradients_by_torch_func(layers: int) -> None:
    want = {k.removeprefix("gradient of "): v for k, v in train(network(layers)).items() if k.startswith("gradient")}
    model = network(layers).train()
    # Under a transform batch norm cannot write to statistics from outside.
    state = {name: value.clone() for name, value in model.named_buffers()}
    got = grad(lambda weights: _loss(model, {**weights, **{k: v.clone() for k, v in state.items()}}))(_weights(model))
    assert_same(got, want, 1e-7)


@pytest.mark.parametrize("layers", [18, 50])
def test_vmap_over_images(layers: int) -> None:
    model = _double(layers)
    x = images(torch.float64)
    weights = _weights(model)
    got = vmap(lambda image: functional_call(model, weights, (image[None],))[0])(x)
    assert_same({"logits": got}, {"logits": model(x)}, 1e-9)

    def score(image: Tensor) -> Tensor:
        return functional_call(model, weights, (image[None],))[0, 1].sum()

    for image, gradient in zip(x, vmap(grad(score))(x), strict=True):
        leaf = image[None].clone().requires_grad_()
        model(leaf)[0, 1].sum().backward()
        assert leaf.grad is not None
        assert_same({"gradient": gradient}, {"gradient": leaf.grad[0]}, 1e-9)


def test_vmap_over_an_ensembles_weights() -> None:
    models = [_double(), _double(), _double()]
    for i, model in enumerate(models):
        for p in model.parameters():
            p.data.mul_(1 - 0.1 * i)
    weights, buffers = stack_module_state(models)
    x = images(torch.float64)
    got = vmap(lambda w, b: functional_call(models[0], (w, b), (x,)))(weights, buffers)
    want = torch.stack([model(x) for model in models])
    assert_same({"logits": got}, {"logits": want}, 1e-9)
    assert (want[0] - want[1]).norm() > 0.01 * want[0].norm()


def _by_jvp(f: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Tensor:
    return jvp(f, (x,), (direction,))[1]


def _by_dual_numbers(f: Callable[[Tensor], Tensor], x: Tensor, direction: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(x, direction))).tangent


@pytest.mark.parametrize("method", [_by_jvp, _by_dual_numbers])
@pytest.mark.parametrize("layers", [18, 50])
def test_forward_derivatives(layers: int, method: Callable[..., Tensor]) -> None:
    model = _double(layers)
    x = images(torch.float64)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        got = method(model, x, direction)
        step = 1e-7
        want = (model(x + step * direction) - model(x - step * direction)) / (2 * step)
    assert_same({"tangent": got}, {"tangent": want}, 1e-4)


def test_hessian_vector_products() -> None:
    """Batch norm, pooling and upsampling as PyTorch's own ops have second derivatives."""
    model = network(18).train()
    weight = model.cls[0].weight
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def gradient() -> Tensor:
        x, labels = batch()
        _, main, aux = model(x, labels)
        return torch.autograd.grad(main + 0.4 * aux, weight, create_graph=True)[0]

    with ops.use("reference"):
        got = torch.autograd.grad((gradient() * direction).sum(), weight)[0]
    step, found = 1e-6, []
    for sign in (1, -1):
        weight.data.add_(direction, alpha=sign * step)
        found.append(gradient().detach())
        weight.data.add_(direction, alpha=-sign * step)
    assert_same({"product": got}, {"product": (found[0] - found[1]) / (2 * step)}, 1e-4)
    assert got.norm() > 0
