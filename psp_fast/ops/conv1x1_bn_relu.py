"""1x1 convolution, batch norm, residual sum and ReLU in one op."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from psp_fast.ops import backend
from psp_fast.ops.pointwise import convolve_with_statistics
from psp_fast.ops.sync_batch_norm_relu import batch_norm_relu_of_statistics, check_options, sync_batch_norm_relu
from psp_fast.ops.upsample_concat import is_channels_last, memory_format

_OP = "conv1x1_bn_relu"
_NO_ONEDNN = None if torch.backends.mkldnn.is_available() else "this PyTorch is built without oneDNN"
# Not bfloat16: folded weights, rounded to it, would move the means of channels.
backend.register(_OP, "cpu", backend.Kernel("oneDNN", (torch.float32,), lambda: _NO_ONEDNN))
_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
backend.register(_OP, "cuda", backend.Kernel("triton", _TRITON_DTYPES, backend.missing_triton))


def conv1x1_bn_relu(
    x: Tensor,
    weight: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    residual: Tensor | None = None,
    relu: bool = True,
    process_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """relu(batch_norm(conv2d(x, weight)) + residual) for x (N, C, H, W) and weight (O, C, 1, 1).

    Where no gradient is asked for and the batch norm is frozen, it is folded into the weight: once, and again after
    any of its tensors was changed. PyTorch counts the changes, but for those made through `.data`, which are not seen,
    and torch.nn.functional.batch_norm's to running statistics, which are seen on the CPU only.

    Args:
        x: (N, C, H, W), float, any strides.
        weight: (O, C, 1, 1).
        bn_weight, bn_bias, running_mean, running_var, training, momentum, eps, residual, relu, process_group: as in
            `sync_batch_norm_relu`, for O channels. Under autocast the convolution runs in autocast's type.

    Returns:
        (N, O, H, W), channels_last where x is.

    Raises:
        TypeError, ValueError: an argument is not as above.
        PspFastError: the compiled module is missing or broken.
    """
    vectors = {"bn_weight": bn_weight, "bn_bias": bn_bias, "running_mean": running_mean, "running_var": running_var}
    _check(x, weight, vectors, residual)
    check_options(_OP, running_mean, running_var, training, eps)
    frozen = not training and running_mean is not None and running_var is not None
    if frozen and _folds(x, weight, bn_weight, bn_bias, residual):
        assert running_mean is not None and running_var is not None  # frozen says so
        folded = _folded(x, weight, bn_weight, bn_bias, running_mean, running_var, eps)
        convolve = _convolve_triton if backend.choose(_OP, x) == "triton" else _convolve_onednn
        return convolve(x, folded, residual, relu)
    if training and _gathers_statistics(x):
        ((z, stats),) = convolve_with_statistics([x], [weight])
        return batch_norm_relu_of_statistics(
            z,
            stats,
            bn_weight,
            bn_bias,
            running_mean,
            running_var,
            momentum=momentum,
            eps=eps,
            residual=residual,
            relu=relu,
            process_group=process_group,
        )
    return sync_batch_norm_relu(
        F.conv2d(x, weight),
        bn_weight,
        bn_bias,
        running_mean,
        running_var,
        training=training,
        momentum=momentum,
        eps=eps,
        residual=residual,
        relu=relu,
        process_group=process_group,
    )


def conv1x1_bn_relu_levels(xs: Sequence[Tensor], layers: Sequence[dict[str, Any]]) -> list[Tensor]:
    """`conv1x1_bn_relu(x, **layer)` for every level of a pyramid, its products in one launch in training on Triton.

    Levels differ in H and W, layers in their tensors alone; without residual, with ReLU.
    """
    if not (all(layer["training"] for layer in layers) and _gathers_statistics(xs[0])):
        return [conv1x1_bn_relu(x, **layer) for x, layer in zip(xs, layers, strict=True)]
    results = convolve_with_statistics(xs, [layer["weight"] for layer in layers])
    tensors, options = ("bn_weight", "bn_bias", "running_mean", "running_var"), ("momentum", "eps", "process_group")
    return [
        batch_norm_relu_of_statistics(
            *(z, stats, *(layer[name] for name in tensors)),
            **{name: layer[name] for name in options},
            residual=None,
            relu=True,
        )
        for (z, stats), layer in zip(results, layers, strict=True)
    ]


def _gathers_statistics(x: Tensor) -> bool:
    """Whether the product's kernel gathers what batch norm needs."""
    return backend.choose(_OP, x) == "triton" and backend.choose("sync_batch_norm_relu", x) != "reference"


def _check(x: Tensor, weight: Tensor, vectors: dict[str, Tensor | None], residual: Tensor | None) -> None:
    for name, value in {"x": x, "weight": weight, **vectors, "residual": residual}.items():
        if value is None and name not in ("x", "weight"):
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{_OP}: {name} must be a tensor, not {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"{_OP}: {name} must have a float type, not {value.dtype}")
        if value.device != x.device:
            raise ValueError(f"{_OP}: {name} must be on x's device, {x.device}, not on {value.device}")
    if x.dim() != 4:
        raise ValueError(f"{_OP}: x must be (N, C, H, W), not {tuple(x.shape)}")
    if weight.dim() != 4 or weight.shape[1:] != (x.shape[1], 1, 1):
        raise ValueError(
            f"{_OP}: weight must be (O, {x.shape[1]}, 1, 1) for x of shape {tuple(x.shape)}, not {tuple(weight.shape)}"
        )
    if weight.dtype != x.dtype and not backend.autocasts(x):
        raise TypeError(f"{_OP}: weight must have x's type, {x.dtype}, not {weight.dtype}: convert it")
    outputs = weight.shape[0]
    for name, value in vectors.items():
        if value is not None and value.shape != (outputs,):
            raise ValueError(
                f"{_OP}: {name} must have one value for each of the {outputs} outputs, not {tuple(value.shape)}"
            )
    shape = (x.shape[0], outputs, *x.shape[2:])
    if residual is not None and residual.shape != shape:
        raise ValueError(f"{_OP}: residual must have the result's shape, {shape}, not {tuple(residual.shape)}")


class _Folded(NamedTuple):
    """A convolution's weight with the batch norm in it (for oneDNN in its own order), and the bias."""

    kind: tuple
    """Which kernel, type, eps and, where that matters, shape of x it is for."""
    sources: list[_Mark]
    """The tensors it was made of, as they were."""
    weight: Tensor
    bias: Tensor
    statistics: list[Tensor]
    """On the CPU, copies of the running statistics: torch.nn.functional.batch_norm changes them uncounted."""
    made: torch.cuda.Event | None
    """When, on the stream that made it."""

    def is_of(self, kind: tuple, sources: Sequence[Tensor | None]) -> bool:
        """Whether it was made of these very tensors as they are now."""
        same = (_is_marked(tensor, mark) for tensor, mark in zip(sources, self.sources, strict=True))
        kept = zip(sources[len(sources) - len(self.statistics) :], self.statistics, strict=True)
        return self.kind == kind and all(same) and all(t is not None and torch.equal(t, k) for t, k in kept)


_Mark = tuple[weakref.ref, int] | None


def _mark(tensor: Tensor | None) -> _Mark:
    """A tensor as it is now."""
    return None if tensor is None else (weakref.ref(tensor), 0 if tensor.is_inference() else tensor._version)


def _is_marked(tensor: Tensor | None, mark: _Mark) -> bool:
    """Whether mark is of this very tensor, unchanged; one whose tensor is gone is of no other."""
    if mark is None or tensor is None:
        return mark is None and tensor is None
    return mark[1] == tensor._version and mark[0]() is tensor


_folded_weights = WeakTensorKeyDictionary()


def _folds(x: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether one kernel runs convolution, bias and sum: no gradient, no autocast, no graph being traced."""
    if backend.choose(_OP, x) == "reference" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if backend.autocasts(x):
        return False
    tensors = [x, weight, *(t for t in others if t is not None)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return False
    real = type(x) in (Tensor, torch.nn.Parameter)  # no stand-in that a tracer passes through the program
    return real and x.numel() > 0 and all(t.dtype == x.dtype for t in tensors)


def _folded(
    x: Tensor,
    weight: Tensor,
    bn_weight: Tensor | None,
    bn_bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
) -> _Folded:
    implementation = backend.choose(_OP, x)
    # oneDNN orders a weight for one shape of maps; in that order it can be ten times as slow on maps of another.
    kind = (implementation, x.dtype, eps, x.shape if implementation == "oneDNN" else None)
    sources = [weight, bn_weight, bn_bias, running_mean, running_var]
    # Neither tensors that do not count their changes, nor memory that a CUDA graph fills later.
    keeps = not any(t is not None and t.is_inference() for t in sources)
    keeps = keeps and not (x.is_cuda and torch.cuda.is_current_stream_capturing())
    known = _folded_weights.get(weight) if keeps else None
    if known is not None and known.is_of(kind, sources):
        if known.made is not None:
            torch.cuda.current_stream(x.device).wait_event(known.made)
        return known
    with torch.no_grad():
        scale = (running_var.float() + eps).rsqrt()
        scale = scale if bn_weight is None else scale * bn_weight
        bias = -running_mean * scale if bn_bias is None else bn_bias - running_mean * scale
        packed = (weight * scale.view(-1, 1, 1, 1)).to(x.dtype).contiguous()
        if implementation == "oneDNN":
            one = [1, 1]
            packed = torch.ops.mkldnn._reorder_convolution_weight(packed, [0, 0], one, one, 1, list(x.shape))
        elif known is not None and known.kind == kind:  # a captured graph may read the memory of the old one
            packed, bias = known.weight.copy_(packed), known.bias.copy_(bias)
        bias = bias.contiguous()
    made = torch.cuda.current_stream(x.device).record_event() if x.is_cuda and keeps else None
    statistics = [] if x.is_cuda else [running_mean.clone(), running_var.clone()]
    folded = _Folded(kind, [_mark(tensor) for tensor in sources], packed, bias, statistics, made)
    if keeps:
        _folded_weights[weight] = folded
    return folded


def _convolve_triton(x: Tensor, folded: _Folded, residual: Tensor | None, relu: bool) -> Tensor:
    from psp_fast.kernels import conv1x1_bn_relu as kernels

    return kernels.matmul_bias_relu(x, folded.weight.flatten(1), folded.bias, residual, relu)


def _convolve_onednn(x: Tensor, folded: _Folded, residual: Tensor | None, relu: bool) -> Tensor:
    """relu(conv2d(x) + bias + residual), the sums in one pass of oneDNN, by what torch.compile's own backend calls."""
    pad, one = [0, 0], [1, 1]
    layout = memory_format(is_channels_last(x))
    if residual is None:
        y = torch.ops.mkldnn._convolution_pointwise(x, folded.weight, folded.bias, pad, one, one, 1, "none", [], "")
    else:
        operands = (residual.contiguous(memory_format=layout), folded.weight, folded.bias, pad, one, one, 1)
        y = torch.ops.mkldnn._convolution_pointwise.binary(x, *operands, "add", None, None, [], None)
    y = y.contiguous(memory_format=layout)
    return y.relu_() if relu else y  # oneDNN's own ReLU makes NaN 0
