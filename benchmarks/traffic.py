"""What plain PyTorch moves and computes, on paper: a program runs on tensors without values, operator by operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.shapes import Input
from benchmarks.work import Work
from psp_fast import PSPNet, ops


class _Counter(TorchDispatchMode):
    """Every operator reads its inputs once and writes its outputs once; views and allocations move nothing."""

    knows_psp_fast = True

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, Work]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = _tensors((args, kwargs))
        made = _tensors(result)
        storages = {tensor.untyped_storage()._cdata for tensor in given}
        is_view = not func._schema.is_mutable and any(t.untyped_storage()._cdata in storages for t in made)
        name = func._overloadpacket.__name__
        if not is_view and func.namespace == "aten" and not name.startswith(("empty", "new_empty")):
            count = flop_registry.get(func._overloadpacket)
            flops = count(*args, **(kwargs or {}), out_val=result) if count else 0
            self.found.append((name, Work(sum(tensor.nbytes for tensor in [*given, *made]), flops)))
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def of_step(given: Input) -> list[tuple[str, Work]]:
    """The operators of a training step of PSPNet50 in bfloat16's autocast, without the optimizer's."""
    with FakeTensorMode(), ops.use("reference"):
        network = PSPNet(50, classes=given.classes, pretrained=False)
        images = torch.empty(given.batch, 3, given.height, given.width)
        labels = torch.empty(given.batch, given.height, given.width, dtype=torch.long)
        with _Counter() as counter:
            with torch.autocast("cpu", torch.bfloat16):
                _, main, aux = network(images, labels)
            (main + 0.4 * aux).backward()
    return counter.found


def of_op(op: Callable[..., Any], shapes: list[Any], backward: bool, dtype: torch.dtype) -> list[tuple[str, Work]]:
    """The operators of op at tensors of these shapes, or lists of them, and of all gradients where `backward`.

    Maps and convolutions' weights are of `dtype`, vectors of fp32.
    """

    def made(shape: Any) -> Any:
        if isinstance(shape, list):
            return [made(s) for s in shape]
        return torch.empty(shape, dtype=dtype if len(shape) == 4 else None, requires_grad=backward)

    with FakeTensorMode():
        given = [made(shape) for shape in shapes]
        leaves = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
        with torch.set_grad_enabled(backward), _Counter() as counter:
            results = [y for y in tree_leaves(op(*given)) if isinstance(y, Tensor)]
            if backward:
                dy = [y.detach() for y in results]  # of y's shape and type; nothing is moved for it
                torch.autograd.grad(results, leaves, dy)
    return counter.found
