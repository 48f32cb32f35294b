"""3x3 convolution of stride 1: on the CPU by Winograd's F(4x4, 3x3), with a quarter of the multiplications.

Not among the seven public ops: the backbone's and the head's 3x3 convolutions call it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from psp_fast.ops import backend, reference
from psp_fast.ops.arguments import check_given, whole_number
from psp_fast.ops.derivatives import as_forward, first_order

_OP = "conv3x3"
backend.register(_OP, "cpu", backend.Kernel("csrc/cpu", (torch.float32,), backend.missing_native))


def conv3x3(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """conv2d of x with weight, stride 1, padding equal to dilation, without bias.

    Winograd's algorithm runs for fp32 on the CPU where it saves time: its relative error is a few 1e-6, against a few
    1e-7, and a NaN or an infinity spreads over the 4x4 pixels of a tile. Everything else is
    torch.nn.functional.conv2d, autocast included.

    Args:
        x: (N, C, H, W), float.
        weight: (O, C, 3, 3), any strides.
        dilation: 1 or more.

    Returns:
        (N, O, H, W), channels_last where x or weight is.

    Raises:
        TypeError, ValueError: an argument is not as above.
    """
    step = whole_number(dilation)
    dilation = dilation if step is None else step
    _check(x, weight, dilation)
    if not uses_winograd(x, weight, dilation):
        return reference.conv3x3(x, weight, dilation)
    return _Conv3x3.apply(x, weight, dilation)


def conv3x3_affine_relu(x: Tensor, weight: Tensor, dilation: int, scale: Tensor, shift: Tensor, relu: bool) -> Tensor:
    """relu(scale * conv3x3(x) + shift), scale and shift (O,): a convolution and a frozen batch norm; no gradient."""
    _check(x, weight, dilation, scale, shift)
    if uses_winograd(x, weight, dilation):
        return torch.ops.psp_fast.conv3x3(x, weight, dilation, scale, shift, relu)
    y = reference.conv3x3(x, weight, dilation)
    values = torch.addcmul(shift.view(-1, 1, 1), reference.at_least_fp32(y), scale.view(-1, 1, 1))
    return (values.relu_() if relu else values).to(y.dtype)


def uses_winograd(x: Tensor, weight: Tensor, dilation: int) -> bool:
    """Whether a convolution of x runs Winograd's algorithm: an fp32 one on the CPU whose tiles are full enough."""
    if backend.autocasts(x) or weight.dtype != x.dtype:
        return False
    if backend.choose(_OP, x) != "csrc/cpu" or min(weight.shape[:2]) < 16 or x.numel() == 0:
        return False
    tiles = 1
    for side in x.shape[2:]:
        interleaved = min(dilation, side)  # images of side / dilation pixels each
        tiles *= interleaved * (((side + interleaved - 1) // interleaved + 3) // 4)
    # 36 products a tile against 9 a pixel; the rest of its work makes a product about 1.7 times as dear.
    return 60 * tiles < 9 * x.shape[2] * x.shape[3]


def convolution(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """`conv3x3` for use inside an op: no check, no gradient."""
    if uses_winograd(x, weight, dilation):
        return torch.ops.psp_fast.conv3x3(x, weight, dilation, None, None, False)
    return reference.conv3x3(x, weight, dilation)


def convolution_backward(
    dy: Tensor, x: Tensor, weight: Tensor, dilation: int, mask: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and weight for `convolution`, each None where mask has False."""
    if uses_winograd(x, weight, dilation):
        dx, dweight = torch.ops.psp_fast.conv3x3_backward(dy, x, weight, dilation, mask)
    else:
        pad, one = [dilation] * 2, [1, 1]
        dx, dweight, _ = torch.ops.aten.convolution_backward(
            dy, x, weight, None, one, pad, pad, False, [0, 0], 1, [*mask, False]
        )
    return dx if mask[0] else None, dweight if mask[1] else None


def _check(x: Tensor, weight: Tensor, dilation: int, *vectors: Tensor | None) -> None:
    for name, value in (("x", x), ("weight", weight)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{_OP}: {name} must be a tensor, not {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{_OP}: {name} must have a float type, not {value.dtype}")
    if x.dim() != 4:
        raise ValueError(f"{_OP}: x must be (N, C, H, W), not {tuple(x.shape)}")
    if weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 3, 3):
        raise ValueError(
            f"{_OP}: weight must be (O, {x.shape[1]}, 3, 3) for x of shape {tuple(x.shape)}, not {tuple(weight.shape)}"
        )
    if weight.device != x.device:
        raise ValueError(f"{_OP}: weight must be on x's device, {x.device}, not on {weight.device}")
    if not isinstance(dilation, int) or isinstance(dilation, bool) or dilation < 1:
        raise ValueError(f"{_OP}: dilation must be a whole number of at least 1, not {dilation!r}")
    if len(vectors) == 2 and (vectors[0] is None) != (vectors[1] is None):
        raise ValueError(f"{_OP}: give both scale and shift, or neither")
    for name, vector in zip(("scale", "shift"), vectors, strict=False):
        if vector is None:
            continue
        if vector.shape != weight.shape[:1]:
            raise ValueError(
                f"{_OP}: {name} must have one value for each of {weight.shape[0]} outputs, not {tuple(vector.shape)}"
            )
        check_given(_OP, name, vector, x, weight.shape[:1])


def _check_native(x: Tensor, weight: Tensor) -> None:
    """What only the kernels need, besides `_check`."""
    if x.dtype != torch.float32 or weight.dtype != torch.float32:
        raise TypeError(f"{_OP}: the CPU kernels take float32, not x of {x.dtype} with weight of {weight.dtype}")
    if x.shape[1] == 0:
        raise ValueError(f"{_OP}: the CPU kernels need at least one channel, not x of shape {tuple(x.shape)}")


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.setting = backend.current_setting()
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return torch.ops.psp_fast.conv3x3(x, weight, dilation, None, None, False)

    @staticmethod
    @first_order("conv3x3")
    @as_forward
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        mask = ctx.needs_input_grad[:2]
        dx, dweight = torch.ops.psp_fast.conv3x3_backward(dy, x, weight, ctx.dilation, mask)
        return dx if mask[0] else None, dweight if mask[1] else None, None


torch.library.define(
    "psp_fast::conv3x3", "(Tensor x, Tensor weight, int dilation, Tensor? scale, Tensor? shift, bool relu) -> Tensor"
)
torch.library.define(
    "psp_fast::conv3x3_backward",
    "(Tensor dy, Tensor x, Tensor weight, int dilation, bool[] mask) -> (Tensor, Tensor)",
)


def _forward(
    x: Tensor, weight: Tensor, dilation: int, scale: Tensor | None, shift: Tensor | None, relu: bool
) -> Tensor:
    _check(x, weight, dilation, scale, shift)
    _check_native(x, weight)
    size = (x.shape[0], weight.shape[0], *x.shape[2:])
    y = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    if y.numel() == 0:
        return y.contiguous(memory_format=_output_format(x, weight))
    scale, shift = (None if vector is None else vector.float().contiguous() for vector in (scale, shift))
    _run("forward", dilation, _channels_last(x), y, weight.data_ptr(), weight.stride(), scale, shift, relu)
    return y.contiguous(memory_format=_output_format(x, weight))


@torch.library.register_fake("psp_fast::conv3x3")
def _empty_output(
    x: Tensor, weight: Tensor, dilation: int, scale: Tensor | None, shift: Tensor | None, relu: bool
) -> Tensor:
    _check(x, weight, dilation, scale, shift)
    size = (x.shape[0], weight.shape[0], *x.shape[2:])
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=_output_format(x, weight))


def _backward(dy: Tensor, x: Tensor, weight: Tensor, dilation: int, mask: Sequence[bool]) -> tuple[Tensor, Tensor]:
    dx, dweight = _empty_gradients(dy, x, weight, dilation, mask)
    _check_native(x, weight)
    if dy.numel() == 0:
        return dx.zero_(), dweight.zero_()
    dy = _channels_last(dy)
    if mask[0]:
        # The gradient of x is the convolution of dy with the weight turned by 180 degrees, its channels swapped.
        out, into, down, right = weight.stride()
        last = weight.data_ptr() + 2 * (down + right) * weight.element_size()
        dense = torch.empty_like(x, memory_format=torch.channels_last)
        _run("forward", dilation, dy, dense, last, (into, out, -down, -right))
        dx = dense.contiguous(memory_format=_format(x))
    if mask[1]:
        backward_weight(dy, x, dilation, dweight)
    return dx, dweight


def backward_weight(dy: Tensor, x: Tensor, dilation: int, dweight: Tensor) -> None:
    """Write the weight's gradient to dweight (O, C, 3, 3), which may be a view with any strides."""
    _run("backward_weight", dilation, _channels_last(x), _channels_last(dy), dweight.data_ptr(), dweight.stride())


@torch.library.register_fake("psp_fast::conv3x3_backward")
def _empty_gradients(
    dy: Tensor, x: Tensor, weight: Tensor, dilation: int, mask: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    _check(x, weight, dilation)
    check_given(_OP, "dy", dy, x, (x.shape[0], weight.shape[0], *x.shape[2:]), x.dtype)
    if len(mask) != 2:
        raise ValueError(f"{_OP}: mask must have two values, for x and weight, not {len(mask)}")
    return (
        torch.empty_like(x, memory_format=_format(x)) if mask[0] else x.new_empty(0),
        torch.empty_like(weight) if mask[1] else weight.new_empty(0),
    )


def _run(
    kernel: str,
    dilation: int,
    x: Tensor,
    y: Tensor,
    weight: int,
    strides: Sequence[int],
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
) -> None:
    """Run a kernel on channels_last maps x (N, C, H, W) and y (N, O, H, W) and the weight at address `weight`."""
    getattr(backend.native(), f"conv3x3_{kernel}_cpu")(
        min(dilation, max(x.shape[2:])),  # at a larger one every tap but the middle is outside as well
        tuple(x.shape),
        x.data_ptr(),
        x.stride(),
        y.shape[1],
        y.data_ptr(),
        y.stride(),
        weight,
        tuple(strides),
        0 if scale is None else scale.data_ptr(),
        0 if shift is None else shift.data_ptr(),
        relu,
        torch.get_num_threads(),
    )


def _channels_last(x: Tensor) -> Tensor:
    """x itself where its channels lie side by side, else a copy."""
    return x if x.stride(1) == 1 else x.contiguous(memory_format=torch.channels_last)


def _format(x: Tensor) -> torch.memory_format:
    channels_last = not x.is_contiguous() and x.stride(1) == 1 and x.shape[1] > 1
    return torch.channels_last if channels_last else torch.contiguous_format


def _output_format(x: Tensor, weight: Tensor) -> torch.memory_format:
    """As a convolution in PyTorch: channels_last where x or weight is."""
    return torch.channels_last if torch.channels_last in (_format(x), _format(weight)) else torch.contiguous_format


torch.library.impl("psp_fast::conv3x3", "cpu", _forward)
torch.library.impl("psp_fast::conv3x3_backward", "cpu", _backward)
