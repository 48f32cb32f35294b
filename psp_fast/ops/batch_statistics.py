"""Statistics of batch norm: merged over processes, and taken into the running ones."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


@torch.no_grad()
def batch_statistics(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    process_group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor | float]:
    """`merge_statistics` of x (N, C, H, W)."""
    stats = torch.ops.psp_fast.batch_norm_statistics(x)
    count = x.shape[0] * x.shape[2] * x.shape[3]
    return merge_statistics(stats, count, running_mean, running_var, momentum, eps, process_group)


@torch.no_grad()
def merge_statistics(
    stats: Tensor,
    local_count: int,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    process_group: dist.ProcessGroup | None,
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Mean and 1 / sqrt(variance + eps) of the batches of all ranks, and their number of values per channel.

    stats (2, C) holds mean and sum of squared deviations of this rank's local_count values a channel. Updates the
    running statistics in place.
    """
    stats, count = merge_ranks(stats, local_count, process_group)
    mean, deviations = stats.unbind()
    if running_mean is not None and running_var is not None and (isinstance(count, Tensor) or count > 0):
        # Of several ranks only the device knows whether they hold values.
        share = momentum * (count > 0).to(count) if isinstance(count, Tensor) else momentum
        update_running(running_mean, running_var, mean, unbiased_variance(deviations, count), share)
    return mean, inverse_deviation(deviations, count, eps), count


def merge_ranks(
    stats: Tensor, local_count: int, process_group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor | float]:
    """stats (2, C), mean and sum of squared deviations, and the count of all ranks' values, from one message.

    It is in float64, where sums of values and of squares are exact enough: the statistics have 24 bits.
    """
    if ranks(process_group) < 2:
        return stats, local_count
    mean, deviations = stats.double().unbind()
    total = mean * local_count
    count = total.new_full((1,), local_count)
    packed = sum_over_ranks(torch.cat([total, deviations + total * mean, count]), process_group)
    count = packed[-1]
    total, squares = packed[:-1].view(2, -1)
    mean = total / _at_least_one(count)
    return torch.stack([mean, (squares - total * mean).clamp_(min=0)]).to(stats.dtype), count


def sum_over_ranks(sums: Tensor, process_group: dist.ProcessGroup | None) -> Tensor:
    """The sum of all ranks' sums; `sums` itself where there is one rank."""
    if ranks(process_group) < 2:
        return sums
    total = sums.clone()
    dist.all_reduce(total, group=process_group)
    return total


def ranks(group: dist.ProcessGroup | None) -> int:
    """How many ranks share their statistics."""
    return 1 if group is None else dist.get_world_size(group)


def inverse_deviation(deviations: Tensor, count: Tensor | float, eps: float) -> Tensor:
    """1 / sqrt(variance + eps) of `count` values with this sum of squared deviations."""
    return (deviations / _at_least_one(count)).add_(eps).rsqrt_()


def unbiased_variance(deviations: Tensor, count: Tensor | float) -> Tensor:
    """The variance that running statistics keep, of `count` values with this sum of squared deviations."""
    return deviations / _at_least_one(count - 1)


def _at_least_one(count: Tensor | float) -> Tensor | float:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


@torch.no_grad()
def update_running(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: Tensor | float
) -> None:
    """Take a batch's mean and unbiased variance into the running statistics, in place."""
    for running, new in ((running_mean, mean), (running_var, var)):
        running.lerp_(new.to(running), momentum.to(running) if isinstance(momentum, Tensor) else momentum)
