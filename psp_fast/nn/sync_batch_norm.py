"""Batch norm over the batches of all processes, with residual sum and ReLU, and conversion to it and back."""

from __future__ import annotations

from typing import TypeVar, cast

import torch.distributed as dist
from torch import Tensor, nn

from psp_fast import ops
from psp_fast.nn.exact import is_exactly, may_fuse, remember
from psp_fast.ops.sync_batch_norm_relu import batch_norm_relu_of_statistics

_Module = TypeVar("_Module", bound=nn.Module)
BatchNorm = nn.BatchNorm2d | nn.SyncBatchNorm


@remember
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
        if may_fuse(x) or synced_group(self) is not None:
            return normalise(self, x, residual, relu=self.relu)
        y = super().forward(x)
        y = y if residual is None else y + residual
        return y.relu() if self.relu else y


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
        plain: BatchNorm = kind(*_batch_norm_options(module))
        if isinstance(plain, nn.SyncBatchNorm):
            plain.process_group = module.process_group
        return _with_state_of(module, plain)  # type: ignore[return-value]
    for name, child in module.named_children():
        setattr(module, name, revert_sync_batch_norm(child, kind))
    return module


def _batch_norm_options(bn: BatchNorm) -> tuple:
    return bn.num_features, bn.eps, bn.momentum, bn.affine, bn.track_running_stats


def _with_state_of(old: BatchNorm, new: BatchNorm) -> BatchNorm:
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


def is_batch_norm(bn: nn.Module) -> bool:
    """Whether bn is a batch norm and nothing more, so that an op may do it from its parameters."""
    return (
        is_exactly(bn, nn.BatchNorm2d, nn.SyncBatchNorm, SyncBatchNorm2d)
        and cast(BatchNorm, bn).eps > 0
        and not (isinstance(bn, SyncBatchNorm2d) and bn.relu)
    )


def normalise(
    bn: BatchNorm, x: Tensor, residual: Tensor | None = None, *, relu: bool, stats: Tensor | None = None
) -> Tensor:
    """relu(bn(x) + residual) by the op, from bn's parameters; counts the batch in bn.

    stats (2, C), mean and sum of squared deviations of x, save the pass over x that would find them.
    """
    check_batch(bn, x)
    arguments = batch_norm_arguments(bn)
    if stats is not None and arguments["training"]:
        del arguments["training"]
        return batch_norm_relu_of_statistics(x, stats, **arguments, residual=residual, relu=relu)
    return ops.sync_batch_norm_relu(x, **arguments, residual=residual, relu=relu)


def check_batch(bn: BatchNorm, x: Tensor) -> None:
    """Raise ValueError where bn would train on one value a channel of a map of x's size."""
    training = bn.training or bn.running_mean is None
    if training and synced_group(bn) is None and x.numel() == x.shape[1]:
        raise ValueError(
            f"batch norm in training needs more than one value per channel, got an input of shape "
            f"{(x.shape[0], bn.num_features, *x.shape[2:])}: use a larger "
            "batch, several processes with SyncBatchNorm, or put this layer in eval mode"
        )


def batch_norm_arguments(bn: BatchNorm) -> dict:
    """The op's arguments for one call of bn; counts the batch, as nn.BatchNorm2d does."""
    momentum = bn.momentum
    tracks = not bn.training or bn.track_running_stats
    if bn.training and tracks and bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(bn.num_batches_tracked)
    return {
        "weight": bn.weight,
        "bias": bn.bias,
        "running_mean": bn.running_mean if tracks else None,
        "running_var": bn.running_var if tracks else None,
        "training": bn.training or bn.running_mean is None,
        "momentum": momentum or 0.0,
        "eps": bn.eps,
        "process_group": synced_group(bn) if bn.training else None,
    }
