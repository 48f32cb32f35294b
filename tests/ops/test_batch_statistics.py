"""Batch norm's statistics over processes against one process that has the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from psp_fast.ops import reference
from psp_fast.ops.batch_statistics import batch_statistics, merge_statistics
from psp_fast.ops.sync_batch_norm_relu import sync_batch_norm_relu
from tests.ops.checks import LAYOUTS, random
from tests.ops.sync_batch_norm_relu import vectors
from tests.processes import run_ranks

pytestmark = pytest.mark.usefixtures("poison_empty", "two_threads")


def whole_batch(n: int) -> list[Tensor]:
    """x, residual and dy of all ranks."""
    x, residual, dy = (random(n, 6, 4, 3, dtype=torch.float64, seed=i) for i in range(3))
    return [x * torch.linspace(1, 9, 6, dtype=torch.float64).view(1, -1, 1, 1) + 40, residual, dy]


def against_one_process(rank: int, world: int, batches: list[int], layout: str, dtype: torch.dtype) -> None:
    data = whole_batch(sum(batches))
    first = sum(batches[:rank])
    share = slice(first, first + batches[rank])
    tolerance = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-4}
    exact = [t.clone().requires_grad_() for t in (*data[:2], *(v.double() for v in vectors(6)[:2]))]
    running = [v.double() for v in vectors(6)[2:]]
    y = reference.sync_batch_norm_relu(exact[0], *exact[2:], *running, training=True, residual=exact[1])
    gradients = torch.autograd.grad(y, exact, data[2])
    for op in (sync_batch_norm_relu, reference.sync_batch_norm_relu):
        leaves = [t[share].to(dtype).contiguous(memory_format=LAYOUTS[layout]).requires_grad_() for t in data[:2]]
        leaves += [v.to(dtype).requires_grad_() for v in vectors(6)[:2]]
        kept = [v.to(dtype) for v in vectors(6)[2:]]
        ours = op(leaves[0], *leaves[2:], *kept, training=True, residual=leaves[1], process_group=dist.group.WORLD)
        got = list(torch.autograd.grad(ours, leaves, data[2][share].to(dtype)))
        for total in got[2:]:
            dist.all_reduce(total)
        wanted = [y[share], gradients[0][share], gradients[1][share], *gradients[2:], *running]
        for mine, want in zip([ours, *got, *kept], wanted, strict=True):
            torch.testing.assert_close(mine.double(), want, **tolerance)


def messages(run: Callable[[], object]) -> list[int]:
    """How many numbers each message has that run exchanges with the other ranks."""
    sent: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", counted)
        run()
    return sent


def one_message_each_way(group: dist.ProcessGroup, forward: list[int], backward: list[int]) -> None:
    """For 6 channels: 2 * 6 sums and the count, then 2 * 6 sums."""
    x, ys = random(2, 6, 4, 3).requires_grad_(), []
    vector = [v.requires_grad_() for v in vectors(6)[:2]]
    given = {"training": True, "process_group": group}
    assert messages(lambda: ys.append(sync_batch_norm_relu(x, *vector, *vectors(6)[2:], **given))) == forward
    assert messages(lambda: torch.autograd.grad(ys[0].sum(), [x, *vector])) == backward


def two_processes(rank: int, world: int) -> None:
    assert dist.group.WORLD is not None
    one_message_each_way(dist.group.WORLD, [13], [12])
    for layout in LAYOUTS:
        for batches in ([2, 3], [4, 0], [0, 1]):
            against_one_process(rank, world, batches, layout, torch.float64)
    against_one_process(rank, world, [2, 3], "nchw", torch.float32)
    x = random(rank + 1, 6, 4, 3)
    frozen = sync_batch_norm_relu(x, None, None, *vectors(6)[2:], training=False, process_group=dist.group.WORLD)
    want = reference.sync_batch_norm_relu(x, None, None, *vectors(6)[2:], training=False)
    torch.testing.assert_close(frozen, want)
    mean, invstd, count = batch_statistics(x, None, None, 0.1, 1e-5, dist.group.WORLD)
    merged = merge_statistics(
        torch.ops.psp_fast.batch_norm_statistics(x), (rank + 1) * 12, None, None, 0.1, 1e-5, dist.group.WORLD
    )
    assert all(torch.equal(a, b) for a, b in zip((mean, invstd, count), merged, strict=True))
    assert isinstance(count, Tensor) and count.item() == 36
    alone = [dist.new_group([k]) for k in range(world)][rank]  # a group of one is no group
    assert alone is not None
    one_message_each_way(alone, [], [])
    torch.testing.assert_close(
        sync_batch_norm_relu(x, None, None, None, None, training=True, process_group=alone),
        sync_batch_norm_relu(x, None, None, None, None, training=True),
    )


def all_empty(rank: int, world: int) -> None:
    for op in (sync_batch_norm_relu, reference.sync_batch_norm_relu):
        x = random(0, 6, 4, 3).requires_grad_()
        weight, bias, *running = vectors(6)
        y = op(x, weight.requires_grad_(), bias, *running, training=True, process_group=dist.group.WORLD)
        dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
        assert y.shape == dx.shape == x.shape and not dweight.any()
        assert all(torch.equal(*pair) for pair in zip(running, vectors(6)[2:], strict=True))


def test_batches_of_two_processes_may_all_be_empty() -> None:
    run_ranks(all_empty, 2)


def test_two_processes_normalise_as_one() -> None:
    run_ranks(two_processes, 2)


def four_processes(rank: int, world: int) -> None:
    against_one_process(rank, world, [1, 0, 3, 2], "channels_last", torch.float64)
    pair = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]
    assert pair is not None
    x = random(2, 6, 4, 3, seed=rank)
    y = sync_batch_norm_relu(x, None, None, None, None, training=True, relu=False, process_group=pair)
    both = torch.cat([random(2, 6, 4, 3, seed=k) for k in (rank // 2 * 2, rank // 2 * 2 + 1)])
    want = reference.sync_batch_norm_relu(both, None, None, None, None, training=True, relu=False)
    torch.testing.assert_close(y, want[rank % 2 * 2 :][:2])


def test_four_processes_and_groups_of_two() -> None:
    run_ranks(four_processes, 4)
