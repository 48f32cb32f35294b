"""What ops of several convolutions and batch norms share: the layers, in forward and backward, and their checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from psp_fast.ops import backend
from psp_fast.ops.batch_statistics import inverse_deviation, merge_ranks, unbiased_variance, update_running
from psp_fast.ops.conv3x3 import convolution, convolution_backward
from psp_fast.ops.sync_batch_norm_relu import batch_norm_backward


class BatchNorm(NamedTuple):
    """The arguments of `sync_batch_norm_relu` that belong to one layer."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    training: bool
    momentum: float
    eps: float
    process_group: dist.ProcessGroup | None

    def check(self, op: str, name: str, channels: int, device: torch.device) -> None:
        """Raise TypeError or ValueError where the layer does not fit a map of so many channels on this device."""
        for field, vector in zip(self._fields, self[:4], strict=False):
            if vector is None:
                continue
            check_tensor(op, f"{field} of {name}", vector, device)
            if vector.shape != (channels,):
                raise ValueError(
                    f"{op}: {field} of {name} must have one value for each of {channels} channels, "
                    f"not {tuple(vector.shape)}"
                )
        if not self.training and self.running_mean is None:
            raise ValueError(f"{op}: {name} is frozen and has no running statistics")


def check_tensor(op: str, name: str, tensor: Tensor, device: torch.device) -> None:
    """Raise TypeError or ValueError where a layer's tensor cannot be used with a map on this device."""
    if not tensor.is_floating_point():
        raise TypeError(f"{op}: {name} must have a float type, not {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{op}: {name} must be on the device of x, {device}, not on {tensor.device}")


class Layer(NamedTuple):
    """A batch norm inside an op: its parameters, what it normalises by, and the count that is of (None: frozen)."""

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    invstd: Tensor
    total: Tensor | float | None
    group: dist.ProcessGroup | None

    def apply(self, z: Tensor, residual: Tensor | None = None, relu: bool = True) -> Tensor:
        """relu(normalised z + residual)."""
        parameters = (self.mean, self.invstd, self.weight, self.bias)
        return torch.ops.psp_fast.batch_norm_apply(z, *parameters, residual, relu)

    def factors(self) -> tuple[Tensor, Tensor]:
        """(scale, shift): the normalised z is scale * z + shift."""
        scale = self.invstd if self.weight is None else self.invstd * self.weight
        shift = -self.mean * scale
        return scale, shift if self.bias is None else shift + self.bias

    def backward(
        self, dy: Tensor, z: Tensor, y: Tensor | None = None, relu: bool = True, residual: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of z, of the residual where asked for, and (2, C) of bias and weight; without y the mask is z's."""
        parameters = (self.mean, self.invstd, self.weight, self.bias, self.total)
        return batch_norm_backward(dy, z, y, *parameters, relu=relu, residual=residual, process_group=self.group)


def runs_block(x: Tensor) -> bool:
    """Whether there are kernels for x, in the type that autocast gives it."""
    return backend.choose("sync_batch_norm_relu", x, backend.compute_dtype(x)) != "reference"


TENSORS = 4
"""How many tensors `tensors_of` gives for a layer."""


def tensors_of(norm: BatchNorm, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
    """Weight, bias, and the mean and 1 / standard deviation of a frozen layer: what autograd has to see."""
    if norm.training:
        return norm.weight, norm.bias, None, None
    assert norm.running_mean is not None and norm.running_var is not None  # check has seen to it
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    # A copy: backward must find what forward used, though training may go on meanwhile.
    mean, invstd = norm.running_mean.to(kept, copy=True), (norm.running_var.to(kept) + norm.eps).rsqrt()
    return norm.weight, norm.bias, mean, invstd


class Layers:
    """The layers of one call of an op, in the order in which they run.

    tensors are the norms' `tensors_of`, one after the other.
    """

    def __init__(
        self, tensors: Sequence[Tensor | None], eps: Sequence[float], groups: Sequence[dist.ProcessGroup | None]
    ) -> None:
        self.tensors, self.eps, self.groups = tensors, eps, groups
        self.done: list[Layer] = []
        self.batches: list[Tensor] = []
        """What each layer's running statistics take in: rows of mean and unbiased variance, with several ranks also of
        whether they hold values; (0) for nothing."""

    def add(self, z: Tensor, stats: Tensor | None = None) -> Layer:
        """The next layer, for z; stats are those of z where the convolution gathered them."""
        i = len(self.done)
        weight, bias, mean, invstd = self.tensors[TENSORS * i : TENSORS * (i + 1)]
        count, batch = None, z.new_empty(0)
        if mean is None or invstd is None:
            stats = torch.ops.psp_fast.batch_norm_statistics(z) if stats is None else stats
            stats, count = merge_ranks(stats, z.shape[0] * z.shape[2] * z.shape[3], self.groups[i])
            mean, deviations = stats.unbind()
            invstd = inverse_deviation(deviations, count, self.eps[i])
            rows = [mean, unbiased_variance(deviations, count)]
            if isinstance(count, Tensor):
                batch = torch.stack([*rows, (count > 0).to(mean).expand_as(mean)])
            elif count > 0:
                batch = torch.stack(rows)
        self.done.append(Layer(weight, bias, mean, invstd, count, self.groups[i]))
        self.batches.append(batch)
        return self.done[-1]

    def save(self, ctx: Any, *tensors: Tensor | None) -> None:
        """Keep tensors and the layers for backward, which gets them from `restore`."""
        ctx.groups = self.groups
        ctx.counts = [None if isinstance(layer.total, Tensor) else layer.total for layer in self.done]
        flat: list[Tensor | None] = []
        for layer in self.done:
            total = layer.total if isinstance(layer.total, Tensor) else None
            flat += [layer.weight, layer.bias, layer.mean, layer.invstd, total]
        ctx.save_for_backward(*tensors, *flat)
        ctx.mark_non_differentiable(*self.batches)


def restore(ctx: Any) -> tuple[list[Tensor], list[Layer]]:
    """What `Layers.save` has kept; the caller alone holds it from here on, unless the graph is retained."""
    saved, size = ctx.saved_tensors, len(Layer._fields) - 1
    if not torch.compiler.is_compiling():  # where autograd decides itself
        ctx.maybe_clear_saved_tensors()
    first = len(saved) - size * len(ctx.groups)
    layers = []
    for i, (count, group) in enumerate(zip(ctx.counts, ctx.groups, strict=True)):
        weight, bias, mean, invstd, total = saved[first + size * i : first + size * (i + 1)]
        layers.append(Layer(weight, bias, mean, invstd, count if total is None else total, group))
    return list(saved[:first]), layers


def affine_gradients(layers: Sequence[Layer], sums: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients for the layers' `tensors_of`."""
    gradients: list[Tensor | None] = []
    for layer, (dbias, dweight) in zip(layers, sums, strict=True):
        gradients += [
            None if layer.weight is None else dweight.to(layer.weight.dtype),
            None if layer.bias is None else dbias.to(layer.bias.dtype),
            None,
            None,
        ]
    return gradients


def update_all(norms: Sequence[BatchNorm], batches: Sequence[Tensor]) -> None:
    """Take the batch into the running statistics, after the op: a compiled graph allows no update inside."""
    for norm, batch in zip(norms, batches, strict=True):
        if batch.numel() > 0 and norm.running_mean is not None and norm.running_var is not None:
            mean, var, *hold_values = batch.unbind()
            share = norm.momentum * hold_values[0] if hold_values else norm.momentum
            update_running(norm.running_mean, norm.running_var, mean, var, share)


def convolve(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """A convolution of any odd kernel, its padding such that stride 1 keeps the size."""
    weight = weight.to(x.dtype)
    if _is_3x3(weight, stride):
        return convolution(x, weight, dilation)
    return F.conv2d(x, weight, None, stride, _padding(weight, dilation), dilation)


def convolve_backward(
    dz: Tensor, x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1, need_dx: bool = True
) -> tuple[Tensor | None, Tensor]:
    """Gradients of x, where needed, and of weight, for `convolve`."""
    mask = [need_dx, True]
    if _is_3x3(weight, stride):
        dx, dweight = convolution_backward(dz, x, weight.to(x.dtype), dilation, mask)
    else:
        sizes = [stride] * 2, list(_padding(weight, dilation)), [dilation] * 2
        dx, dweight, _ = torch.ops.aten.convolution_backward(
            dz, x, weight.to(x.dtype), None, *sizes, False, [0, 0], 1, [*mask, False]
        )
    assert dweight is not None  # the mask asks for it
    return dx if need_dx else None, dweight.to(weight.dtype)


def _is_3x3(weight: Tensor, stride: int) -> bool:
    return stride == 1 and weight.shape[2:] == (3, 3)


def _padding(weight: Tensor, dilation: int) -> tuple[int, ...]:
    return tuple(dilation * (side // 2) for side in weight.shape[2:])
