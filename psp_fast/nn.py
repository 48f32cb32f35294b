"""Modules and helpers over `psp_fast.ops` for networks built of convolution, batch norm and ReLU."""

from __future__ import annotations

from typing import TypeVar

import torch.distributed as dist
from torch import Tensor, nn

from psp_fast import ops

_Module = TypeVar("_Module", bound=nn.Module)


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
        return batch_norm_relu(self, x, residual=residual, relu=self.relu)


def convert_sync_batch_norm(module: _Module, process_group: dist.ProcessGroup | None = None) -> _Module:
    """Replace every nn.BatchNorm2d and nn.SyncBatchNorm by SyncBatchNorm2d with the same parameters and buffers."""
    if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm) and not isinstance(module, SyncBatchNorm2d):
        synced = SyncBatchNorm2d(*_batch_norm_options(module), process_group=process_group)
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


def batch_norm_relu(bn: nn.Module, x: Tensor, *, residual: Tensor | None = None, relu: bool = True) -> Tensor:
    """relu(bn(x) + residual) through the fused op; a module that is no batch norm is called as it is."""
    if not isinstance(bn, nn.BatchNorm2d | nn.SyncBatchNorm):
        y = bn(x)
        y = y if residual is None else y + residual
        return y.relu() if relu else y
    return ops.sync_batch_norm_relu(x, **_batch_norm_arguments(bn, x), residual=residual, relu=relu)


def conv_bn_relu(
    x: Tensor, conv: nn.Conv2d, bn: nn.Module, *, residual: Tensor | None = None, relu: bool = True
) -> Tensor:
    """relu(bn(conv(x)) + residual); 1x1 convolutions of stride 1 and their batch norm are one op."""
    pointwise = conv.kernel_size == (1, 1) and conv.stride == (1, 1) and conv.groups == 1 and conv.bias is None
    if not (pointwise and type(conv) is nn.Conv2d and isinstance(bn, nn.BatchNorm2d | nn.SyncBatchNorm)):
        return batch_norm_relu(bn, conv(x), residual=residual, relu=relu)
    arguments = _batch_norm_arguments(bn, x)
    arguments["bn_weight"], arguments["bn_bias"] = arguments.pop("weight"), arguments.pop("bias")
    return ops.conv1x1_bn_relu(x, conv.weight, **arguments, residual=residual, relu=relu)


def _batch_norm_arguments(bn: nn.BatchNorm2d | nn.SyncBatchNorm, x: Tensor) -> dict:
    """The op's arguments for one call of bn on a batch the size of x; counts the batch, as nn.BatchNorm2d does."""
    training = bn.training or bn.running_mean is None
    group = synced_group(bn) if bn.training else None
    if training and group is None and x.numel() == x.shape[1]:
        raise ValueError(
            f"batch norm in training needs more than one value per channel, got an input of shape "
            f"{tuple(x.shape)}: use a larger "
            "batch, several processes with SyncBatchNorm, or put this layer in eval mode"
        )
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
        "training": training,
        "momentum": momentum or 0.0,
        "eps": bn.eps,
        "process_group": group,
    }
