"""Modules by ops: layers of convolution, batch norm and ReLU, residual blocks, a stem.

Each function takes the modules themselves. What an op may stand for by the rule of `exact` runs as one; every other
module is called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from psp_fast import ops
from psp_fast.nn.exact import is_exactly, may_fuse
from psp_fast.nn.sync_batch_norm import (
    BatchNorm,
    batch_norm_arguments,
    check_batch,
    is_batch_norm,
    normalise,
)
from psp_fast.ops.block import BatchNorm as BatchNormArguments
from psp_fast.ops.block import runs_block
from psp_fast.ops.bottleneck import bottleneck as _bottleneck
from psp_fast.ops.conv1x1_bn_relu import conv1x1_bn_relu_levels, scale_and_shift
from psp_fast.ops.conv3x3 import conv3x3_affine_relu
from psp_fast.ops.pyramid_conv3x3 import gathers_statistics, pyramid_conv3x3_statistics
from psp_fast.ops.stem import stem as _stem

Layer = tuple[nn.Module, nn.Module, nn.Module | None]
"""A convolution, the batch norm behind it, and the ReLU behind that (and behind the residual sum), or None."""


def conv_bn_relu(x: Tensor, layer: Layer, shortcut: Callable[[], Tensor] | None = None) -> Tensor:
    """relu(bn(conv(x)) + shortcut()); where modules are called, the shortcut's come after conv and bn."""
    conv, bn, relu = layer
    if not (may_fuse(x) and _normalises(bn, relu)):
        return _called(convolve(x, conv), bn, relu, shortcut)
    bn, rectifies = cast(BatchNorm, bn), relu is not None
    if is_pointwise(conv):
        arguments = _pointwise_arguments(conv, bn, x)
        residual = None if shortcut is None else shortcut()
        shape = (x.shape[0], conv.out_channels, *x.shape[2:])
        if residual is None or _is_map(residual, shape, ops.backend.compute_dtype(x), x.device):
            return ops.conv1x1_bn_relu(x, **arguments, residual=residual, relu=rectifies)
        return _summed(ops.conv1x1_bn_relu(x, **arguments, residual=None, relu=False), residual, relu)
    if shortcut is None and is_3x3(conv) and _is_frozen(bn, conv.weight, x):
        assert bn.running_mean is not None and bn.running_var is not None  # _is_frozen says so
        scale, shift = scale_and_shift(bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps)
        return conv3x3_affine_relu(x, conv.weight, conv.dilation[0], scale, shift, rectifies)
    y = convolve(x, conv)
    if not may_fuse(y):
        return _called(y, bn, relu, shortcut)
    residual = None if shortcut is None else shortcut()
    if residual is None or _is_map(residual, y.shape, y.dtype, y.device):
        return normalise(bn, y, residual, relu=rectifies)
    return _summed(normalise(bn, y, relu=False), residual, relu)


def _called(y: Tensor, bn: nn.Module, relu: nn.Module | None, shortcut: Callable[[], Tensor] | None = None) -> Tensor:
    y = bn(y)
    if shortcut is not None:
        return _summed(y, shortcut(), relu)
    return y if relu is None else relu(y)


def _summed(y: Tensor, residual: Any, relu: nn.Module | None) -> Tensor:
    """relu(y + residual), whatever the residual is: PyTorch broadcasts and promotes it."""
    y = y + residual
    return y if relu is None else relu(y)


def _is_map(residual: Any, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> bool:
    """Whether residual is what an op can add to its result of this shape and type."""
    return may_fuse(residual) and (residual.shape, residual.dtype, residual.device) == (shape, dtype, device)


def conv_bn_relu_levels(xs: Sequence[Tensor], layers: Sequence[Layer]) -> list[Tensor]:
    """`conv_bn_relu` of every level with its layer; alike 1x1 layers run as one op."""
    alike = all(
        is_pointwise(conv)
        and _normalises(bn, relu)
        and relu is not None
        and conv.weight.shape == layers[0][0].weight.shape
        for conv, bn, relu in layers
    )
    if not (alike and may_fuse(xs[0])):
        return [conv_bn_relu(x, layer) for x, layer in zip(xs, layers, strict=True)]
    arguments = [_pointwise_arguments(conv, bn, x) for x, (conv, bn, _) in zip(xs, layers, strict=True)]
    return conv1x1_bn_relu_levels(xs, arguments)


def pyramid_conv_bn_relu(x: Tensor, pyramid: Sequence[Tensor], layer: Layer, align_corners: bool) -> Tensor:
    """`conv_bn_relu` of x and the upsampled levels of its pyramid, side by side; conv must be a plain 3x3 one."""
    conv, bn, relu = layer
    weight = cast(nn.Conv2d, conv).weight
    if not _normalises(bn, relu):
        return _called(ops.pyramid_conv3x3(x, pyramid, weight, align_corners), bn, relu)
    stats = None
    if bn.training and gathers_statistics(x):
        y, stats = pyramid_conv3x3_statistics(x, pyramid, weight, align_corners)
    else:
        y = ops.pyramid_conv3x3(x, pyramid, weight, align_corners)
    return normalise(cast(BatchNorm, bn), y, relu=relu is not None, stats=stats)


def trains_bottleneck(x: Tensor, layers: Sequence[Layer]) -> bool:
    """Whether `bottleneck` can take a block's three layers, or four with the shortcut's; see `_trains_block`."""
    (conv1, *_), (conv2, *_), (conv3, *_), *shortcut = layers
    if not (may_fuse(x) and _is_plain(conv2) and is_pointwise(conv1) and is_pointwise(conv3)):
        return False
    square = conv2.kernel_size == (3, 3) and conv2.padding == conv2.dilation
    square = square and conv2.in_channels == conv2.out_channels
    if not shortcut and ops.backend.compute_dtype(x) != x.dtype:
        return False  # x is added as it is, and the sum is of its type
    strided = all(is_pointwise(conv, conv2.stride[0]) for conv, *_ in shortcut)
    return square and strided and _trains_block(x, layers)


def bottleneck(x: Tensor, layers: Sequence[Layer], recompute: bool = False) -> Tensor:
    """A residual block of three layers, or four with the shortcut's, as one op; counts the batch in each batch norm."""
    convs = [cast(nn.Conv2d, conv) for conv, *_ in layers]
    stride, dilation = convs[1].stride[0], convs[1].dilation[0]
    halved = x if stride == 1 else x[:, :, ::stride, ::stride]
    norms = _block_norms(layers, [x, halved, halved, halved])
    weights = [conv.weight for conv in convs]
    return _bottleneck(x, weights, norms, stride=stride, dilation=dilation, recompute=recompute)


def trains_stem(x: Tensor, layers: Sequence[Layer], pool: nn.Module) -> bool:
    """Whether `stem` can take the layers and the pooling behind them; see `_trains_block`."""
    convs = all(
        _is_plain(conv)
        and conv.dilation == (1, 1)
        and all(side % 2 == 1 for side in conv.kernel_size)
        and conv.padding == tuple(side // 2 for side in conv.kernel_size)
        for conv, *_ in layers
    )
    options = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    pooled = is_exactly(pool, nn.MaxPool2d) and [getattr(pool, name) for name in options] == [3, 2, 1, 1, False, False]
    return convs and pooled and _trains_block(x, layers)


def stem(x: Tensor, layers: Sequence[Layer]) -> Tensor:
    """The layers, ReLU behind each, and max pooling (3x3, stride 2), as one op; counts the batch in each batch norm."""
    convs = [cast(nn.Conv2d, conv) for conv, *_ in layers]
    strides = [conv.stride[0] for conv in convs]
    sees = [x]
    for stride in strides:
        sees.append(sees[-1][:, :, ::stride, ::stride])
    return _stem(x, [conv.weight for conv in convs], _block_norms(layers, sees[1:]), strides)


def _trains_block(x: Tensor, layers: Sequence[Layer]) -> bool:
    """Whether an op of several layers may run: batch norms, the first of them training, and a gradient is asked for."""
    if not (may_fuse(x) and all(_normalises(bn, relu) for _, bn, relu in layers)):
        return False
    if not ops.backend.autocasts(x) and any(conv.weight.dtype != x.dtype for conv, *_ in layers):
        return False  # the modules say what is wrong
    gradient = torch.is_grad_enabled() and any(cast(nn.Conv2d, conv).weight.requires_grad for conv, *_ in layers)
    return gradient and bool(layers[0][1].training) and runs_block(x)


def _block_norms(layers: Sequence[Layer], sees: Sequence[Tensor]) -> list[BatchNormArguments]:
    """The layers' batch norms; `sees` are of the size of what each normalises."""
    norms = [cast(BatchNorm, bn) for _, bn, _ in layers]
    for bn, x in zip(norms, sees, strict=False):
        check_batch(bn, x)
    return [BatchNormArguments(**batch_norm_arguments(bn)) for bn in norms]


def convolve(x: Tensor, conv: nn.Module) -> Tensor:
    """conv(x), plain 3x3 convolutions through the op."""
    if may_fuse(x) and is_3x3(conv):
        return ops.conv3x3(x, conv.weight, conv.dilation[0])
    return conv(x)


def is_pointwise(conv: nn.Module, stride: int = 1) -> TypeGuard[nn.Conv2d]:
    """Whether conv is a plain 1x1 convolution of this stride without bias."""
    return _is_plain(conv) and conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.stride == (stride, stride)


def is_3x3(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether conv is what ops.conv3x3 computes: its output is as large as its input."""
    return _is_plain(conv) and conv.kernel_size == (3, 3) and conv.padding == conv.dilation and conv.stride == (1, 1)


def _is_plain(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether conv does nothing but convolve, alike in both directions, so that an op may do it from its weight."""
    return (
        is_exactly(conv, nn.Conv2d)
        and conv.groups == 1
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and isinstance(conv.stride, tuple)
        and isinstance(conv.dilation, tuple)
        and conv.weight.shape == (conv.out_channels, conv.in_channels, *conv.kernel_size)
        and conv.stride[0] == conv.stride[1]
        and conv.dilation[0] == conv.dilation[1]
    )


def _normalises(bn: nn.Module, relu: nn.Module | None) -> bool:
    """Whether an op may do bn and relu, or bn alone, from bn's parameters."""
    return is_batch_norm(bn) and (relu is None or is_exactly(relu, nn.ReLU))


def _is_frozen(bn: BatchNorm, weight: Tensor, x: Tensor) -> bool:
    """Whether bn normalises by its running statistics and no gradient is asked for."""
    if bn.training or bn.running_mean is None:
        return False
    tensors = (x, weight, bn.weight, bn.bias)
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))


def _pointwise_arguments(conv: nn.Module, bn: nn.Module, x: Tensor) -> dict:
    """The arguments of `ops.conv1x1_bn_relu` that belong to the layer."""
    check_batch(cast(BatchNorm, bn), x)
    arguments = batch_norm_arguments(cast(BatchNorm, bn))
    arguments["bn_weight"], arguments["bn_bias"] = arguments.pop("weight"), arguments.pop("bias")
    return {"weight": conv.weight, **arguments}
