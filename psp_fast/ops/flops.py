"""What torch.utils.flop_counter counts for the registered ops: as much as for the plain PyTorch that they replace."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from math import prod
from types import ModuleType
from typing import Any

import torch

_COUNTER = "torch.utils.flop_counter"
_Shape = Sequence[int]


def register() -> None:
    """Register the formulas: now if torch.utils.flop_counter is loaded, else once it is.

    Loading it loads triton, which takes time and must not come before TRITON_INTERPRET is set.
    """
    if _COUNTER in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _OnImport())


class _OnImport(MetaPathFinder):
    """Finds the flop counter as Python does, and registers the formulas when it has been loaded."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == _COUNTER else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    ops = torch.ops.psp_fast
    register_flop_formula(ops.conv3x3)(_conv3x3)
    register_flop_formula(ops.conv3x3_backward)(_conv3x3_backward)
    register_flop_formula(ops.pyramid_conv3x3)(_pyramid_conv3x3)
    register_flop_formula(ops.pyramid_conv3x3_backward)(_pyramid_conv3x3_backward)
    register_flop_formula(ops.pointwise_statistics)(_pointwise_statistics)
    register_flop_formula([ops.pointwise_input_gradient, ops.pointwise_normalised_gradient])(_input_gradient)
    register_flop_formula(ops.pointwise_weight_gradient)(_weight_gradient)


def _convolution(x: _Shape, weight: _Shape) -> int:
    """Of a convolution whose output has x's height and width: an addition and a multiplication for each product."""
    return 2 * x[0] * prod(x[2:]) * prod(weight)


def _conv3x3(x: _Shape, weight: _Shape, *rest: Any, **outputs: Any) -> int:
    return _convolution(x, weight)


def _conv3x3_backward(
    dy: _Shape, x: _Shape, weight: _Shape, dilation: int, mask: Sequence[bool], **outputs: Any
) -> int:
    return sum(mask) * _convolution(x, weight)


def _pyramid_conv3x3(x: _Shape, pyramid: Sequence[_Shape], weight: _Shape, *rest: Any, **outputs: Any) -> int:
    return _convolution(x, weight)


def _pyramid_conv3x3_backward(
    dy: _Shape,
    x: _Shape,
    pyramid: Sequence[_Shape],
    weight: _Shape,
    align_corners: bool,
    mask: Sequence[bool],
    **outputs: Any,
) -> int:
    need_x, need_weight, need_levels = mask
    return ((need_x or need_levels) + need_weight) * _convolution(x, weight)  # x and levels are one map there


def _pointwise_statistics(xs: Sequence[_Shape], weights: Sequence[_Shape], *rest: Any, **outputs: Any) -> int:
    return sum(map(_convolution, xs, weights))


def _input_gradient(dz: _Shape, weight: _Shape, *rest: Any, **outputs: Any) -> int:
    return _convolution(dz, weight)


def _weight_gradient(dz: _Shape, x: _Shape, *rest: Any, **outputs: Any) -> int:
    return _convolution(x, (dz[1], x[1]))
