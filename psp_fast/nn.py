"""Modules and helpers over `psp_fast.ops` for networks built of convolution, batch norm and ReLU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from psp_fast import ops
from psp_fast.ops.block import BatchNorm, runs_block
from psp_fast.ops.bottleneck import bottleneck as _bottleneck
from psp_fast.ops.conv1x1_bn_relu import conv1x1_bn_relu_levels
from psp_fast.ops.conv3x3 import conv3x3_affine_relu
from psp_fast.ops.stem import stem as _stem
from psp_fast.ops.sync_batch_norm_relu import batch_norm_relu_of_statistics

_Module = TypeVar("_Module", bound=nn.Module)

Layer = tuple[nn.Conv2d, nn.Module]
"""A convolution and the batch norm behind it."""


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm, residual sum and ReLU in one op, statistics over all processes; the state_dict is nn.BatchNorm2d's.

    Args:
        num_features, eps, momentum, affine, track_running_stats: as in nn.BatchNorm2d.
        relu: apply ReLU last.
        process_group: the processes whose batches count as one; None means all of them. Without torch.distributed, or
            with one process, the statistics are this process's. Works on CPU (gloo) and CUDA (NCCL).
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        relu: bool = False,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats)
        self.relu = relu
        self.process_group = process_group

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """relu(batch_norm(x) + residual) of x (N, C, H, W); ReLU only with relu=True."""
        return _normalise(self, x, residual, self.relu)


def convert_sync_batch_norm(module: _Module, process_group: dist.ProcessGroup | None = None) -> _Module:
    """Replace every nn.BatchNorm2d and nn.SyncBatchNorm by SyncBatchNorm2d with the same parameters and buffers.

    Without process_group an nn.SyncBatchNorm keeps its own.
    """
    if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) and not isinstance(module, SyncBatchNorm2d):
        group = getattr(module, "process_group", None) if process_group is None else process_group
        synced = SyncBatchNorm2d(*_batch_norm_options(module), process_group=group)
        return _with_state_of(module, synced)  # type: ignore[return-value]
    for name, child in module.named_children():
        setattr(module, name, convert_sync_batch_norm(child, process_group))
    return module


def revert_sync_batch_norm(
    module: _Module, kind: type[nn.BatchNorm2d] | type[nn.SyncBatchNorm] = nn.BatchNorm2d
) -> _Module:
    """Replace every SyncBatchNorm2d by nn.BatchNorm2d or nn.SyncBatchNorm with the same parameters and buffers.

    Raises ValueError for a layer made with relu=True, which those cannot be.
    """
    if isinstance(module, SyncBatchNorm2d):
        if module.relu:
            raise ValueError(f"revert_sync_batch_norm: {module} applies ReLU, which {kind.__name__} does not")
        plain: nn.BatchNorm2d | nn.SyncBatchNorm = kind(*_batch_norm_options(module))
        if isinstance(plain, nn.SyncBatchNorm):
            plain.process_group = module.process_group
        return _with_state_of(module, plain)  # type: ignore[return-value]
    for name, child in module.named_children():
        setattr(module, name, revert_sync_batch_norm(child, kind))
    return module


def _batch_norm_options(bn: nn.BatchNorm2d | nn.SyncBatchNorm) -> tuple:
    return bn.num_features, bn.eps, bn.momentum, bn.affine, bn.track_running_stats


def _with_state_of(
    old: nn.BatchNorm2d | nn.SyncBatchNorm, new: nn.BatchNorm2d | nn.SyncBatchNorm
) -> nn.BatchNorm2d | nn.SyncBatchNorm:
    new.weight, new.bias = old.weight, old.bias
    new.running_mean, new.running_var = old.running_mean, old.running_var
    new.num_batches_tracked = old.num_batches_tracked
    new.training = old.training
    return new


def synced_group(bn: nn.Module) -> dist.ProcessGroup | None:
    """The process group whose batches bn normalises together, None where that is this process alone."""
    if isinstance(bn, SyncBatchNorm2d | nn.SyncBatchNorm) and dist.is_available() and dist.is_initialized():
        group = bn.process_group or dist.group.WORLD
        return group if dist.get_world_size(group) > 1 else None
    return None


def batch_norm_relu(
    bn: nn.Module, x: Tensor, *, residual: Tensor | None = None, relu: bool = True, stats: Tensor | None = None
) -> Tensor:
    """relu(bn(x) + residual) through the fused op; a module that is no batch norm, or has hooks, is called as it is.

    stats (2, C), mean and sum of squared deviations of x, save the pass over x that would find them.
    """
    if not _is_batch_norm(bn):
        y = bn(x)
        y = y if residual is None else y + residual
        return y.relu() if relu else y
    return _normalise(cast(nn.BatchNorm2d, bn), x, residual, relu, stats)


def _normalise(
    bn: nn.BatchNorm2d | nn.SyncBatchNorm, x: Tensor, residual: Tensor | None, relu: bool, stats: Tensor | None = None
) -> Tensor:
    _check_batch(bn, x)
    arguments = _batch_norm_arguments(bn)
    if stats is not None and arguments["training"]:
        del arguments["training"]
        return batch_norm_relu_of_statistics(x, stats, **arguments, residual=residual, relu=relu)
    return ops.sync_batch_norm_relu(x, **arguments, residual=residual, relu=relu)


def conv_bn_relu(
    x: Tensor, conv: nn.Conv2d, bn: nn.Module, *, residual: Tensor | None = None, relu: bool = True
) -> Tensor:
    """relu(bn(conv(x)) + residual); 1x1 convolutions of stride 1 and their batch norm are one op."""
    if not (_is_pointwise(conv) and _is_batch_norm(bn)):
        if residual is None and _is_3x3(conv) and _is_frozen(bn, conv.weight, x):
            scale, shift = _folded_batch_norm(cast(nn.BatchNorm2d, bn))
            return conv3x3_affine_relu(x, conv.weight, conv.dilation[0], scale, shift, relu)
        return batch_norm_relu(bn, convolve(x, conv), residual=residual, relu=relu)
    return ops.conv1x1_bn_relu(x, **_layer_arguments(conv, bn, x), residual=residual, relu=relu)


def conv_bn_relu_levels(xs: Sequence[Tensor], layers: Sequence[Layer]) -> list[Tensor]:
    """`conv_bn_relu` of every level with its (convolution, batch norm) pair; alike 1x1 layers run as one op."""
    alike = all(
        _is_pointwise(conv) and _is_batch_norm(bn) and conv.weight.shape == layers[0][0].weight.shape
        for conv, bn in layers
    )
    if not alike:
        return [conv_bn_relu(x, conv, bn) for x, (conv, bn) in zip(xs, layers, strict=True)]
    return conv1x1_bn_relu_levels(xs, [_layer_arguments(conv, bn, x) for x, (conv, bn) in zip(xs, layers, strict=True)])


def trains_bottleneck(x: Tensor, layers: Sequence[Layer]) -> bool:
    """Whether `bottleneck` can take a block's three layers, or four with the shortcut's; see `_trains_block`."""
    (conv1, _), (conv2, _), (conv3, _), *shortcut = layers
    strided = all(_is_pointwise(conv, conv2.stride[0]) for conv, _ in shortcut)
    plain = _is_pointwise(conv1) and _is_pointwise(conv3) and _is_plain(conv2, conv2.stride[0])
    square = conv2.kernel_size == (3, 3) and conv2.padding == conv2.dilation
    return strided and plain and square and _trains_block(x, layers)


def bottleneck(x: Tensor, layers: Sequence[Layer], recompute: bool = False) -> Tensor:
    """A residual block of three layers, or four with the shortcut's, as one op; counts the batch in each batch norm."""
    stride, dilation = layers[1][0].stride[0], layers[1][0].dilation[0]
    halved = x if stride == 1 else x[:, :, ::stride, ::stride]
    norms = _block_norms(layers, [x, halved, halved, halved])
    weights = [conv.weight for conv, _ in layers]
    return _bottleneck(x, weights, norms, stride=stride, dilation=dilation, recompute=recompute)


def trains_stem(x: Tensor, layers: Sequence[Layer], pool: nn.Module) -> bool:
    """Whether `stem` can take the layers and the pooling behind them; see `_trains_block`."""
    convs = all(
        _is_plain(conv, conv.stride[0])
        and conv.dilation == (1, 1)
        and all(side % 2 == 1 for side in conv.kernel_size)
        and conv.padding == tuple(side // 2 for side in conv.kernel_size)
        for conv, _ in layers
    )
    options = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    pooled = type(pool) is nn.MaxPool2d and not _has_hooks(pool)
    pooled = pooled and [getattr(pool, name) for name in options] == [3, 2, 1, 1, False, False]
    return convs and pooled and _trains_block(x, layers)


def stem(x: Tensor, layers: Sequence[Layer]) -> Tensor:
    """The layers, ReLU behind each, and max pooling (3x3, stride 2), as one op; counts the batch in each batch norm."""
    strides = [conv.stride[0] for conv, _ in layers]
    sees = [x]
    for stride in strides:
        sees.append(sees[-1][:, :, ::stride, ::stride])
    return _stem(x, [conv.weight for conv, _ in layers], _block_norms(layers, sees[1:]), strides)


def _trains_block(x: Tensor, layers: Sequence[Layer]) -> bool:
    """Whether an op of several layers may run: batch norms, the first of them training, and a gradient is asked for."""
    norms = all(_is_batch_norm(bn) for _, bn in layers)
    if not ops.backend.autocasts(x) and any(conv.weight.dtype != x.dtype for conv, _ in layers):
        return False  # the modules say what is wrong
    gradient = torch.is_grad_enabled() and any(p.requires_grad for conv, _ in layers for p in conv.parameters())
    return norms and gradient and layers[0][1].training and runs_block(x)


def _block_norms(layers: Sequence[Layer], sees: Sequence[Tensor]) -> list[BatchNorm]:
    """The layers' batch norms; `sees` are of the size of what each normalises."""
    norms = [cast(nn.BatchNorm2d, bn) for _, bn in layers]
    for bn, x in zip(norms, sees, strict=False):
        _check_batch(bn, x)
    return [BatchNorm(**_batch_norm_arguments(bn)) for bn in norms]


def convolve(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """conv(x), 3x3 convolutions of stride 1 through the op."""
    return ops.conv3x3(x, conv.weight, conv.dilation[0]) if _is_3x3(conv) else conv(x)


def _is_pointwise(conv: nn.Conv2d, stride: int = 1) -> bool:
    """Whether conv is a plain 1x1 convolution without bias."""
    return _is_plain(conv, stride) and conv.kernel_size == (1, 1) and conv.padding == (0, 0)


def _is_3x3(conv: nn.Conv2d) -> bool:
    """Whether conv is what ops.conv3x3 computes: its output is as large as its input."""
    return _is_plain(conv) and conv.kernel_size == (3, 3) and conv.padding == conv.dilation


def _is_plain(conv: nn.Conv2d, stride: int = 1) -> bool:
    """Whether conv does nothing but convolve, alike in both directions, so that an op may do it from its weight."""
    return (
        type(conv) is nn.Conv2d
        and not _has_hooks(conv)
        and conv.stride == (stride, stride)
        and conv.groups == 1
        and conv.bias is None
        and conv.padding_mode == "zeros"
        and conv.dilation[0] == conv.dilation[1]
    )


def _is_batch_norm(bn: nn.Module) -> bool:
    """Whether bn is a batch norm and nothing more, so that an op may do it from its parameters."""
    return type(bn) in (nn.BatchNorm2d, nn.SyncBatchNorm, SyncBatchNorm2d) and not _has_hooks(bn)


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def is_relu(module: nn.Module) -> bool:
    """Whether module is ReLU and nothing more, so that an op may do it."""
    return type(module) is nn.ReLU and not _has_hooks(module)


def _is_frozen(bn: nn.Module, weight: Tensor, x: Tensor) -> bool:
    """Whether bn normalises by its running statistics and no gradient is asked for."""
    if not _is_batch_norm(bn) or bn.training or bn.running_mean is None:
        return False
    tensors = (x, weight, bn.weight, bn.bias)
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))


def _folded_batch_norm(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(scale, shift), each (C,): the frozen bn(x) is scale * x + shift."""
    mean, var = cast(Tensor, bn.running_mean), cast(Tensor, bn.running_var)
    scale = (var + bn.eps).rsqrt()
    scale = scale if bn.weight is None else scale * bn.weight
    shift = -mean * scale
    return scale, shift if bn.bias is None else shift + bn.bias


def _layer_arguments(conv: nn.Conv2d, bn: nn.Module, x: Tensor) -> dict:
    """The arguments of `ops.conv1x1_bn_relu` that belong to the layers."""
    _check_batch(cast(nn.BatchNorm2d, bn), x)
    arguments = _batch_norm_arguments(cast(nn.BatchNorm2d, bn))
    arguments["bn_weight"], arguments["bn_bias"] = arguments.pop("weight"), arguments.pop("bias")
    return {"weight": conv.weight, **arguments}


def _check_batch(bn: nn.BatchNorm2d | nn.SyncBatchNorm, x: Tensor) -> None:
    """Raise ValueError where bn would train on one value a channel of a map of x's size."""
    training = bn.training or bn.running_mean is None
    if training and synced_group(bn) is None and x.numel() == x.shape[1]:
        raise ValueError(
            f"batch norm in training needs more than one value per channel, got an input of shape "
            f"{(x.shape[0], bn.num_features, *x.shape[2:])}: use a larger "
            "batch, several processes with SyncBatchNorm, or put this layer in eval mode"
        )


def _batch_norm_arguments(bn: nn.BatchNorm2d | nn.SyncBatchNorm) -> dict:
    """The op's arguments for one call of bn; counts the batch, as nn.BatchNorm2d does."""
    momentum = bn.momentum
    if bn.training and bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(bn.num_batches_tracked)
    return {
        "weight": bn.weight,
        "bias": bn.bias,
        "running_mean": bn.running_mean if not bn.training or bn.track_running_stats else None,
        "running_var": bn.running_var if not bn.training or bn.track_running_stats else None,
        "training": bn.training or bn.running_mean is None,
        "momentum": momentum or 0.0,
        "eps": bn.eps,
        "process_group": synced_group(bn) if bn.training else None,
    }
