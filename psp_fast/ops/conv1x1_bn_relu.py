"""1x1 convolution, batch norm, residual sum and ReLU in one op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from psp_fast.ops import backend, reference
from psp_fast.ops.pointwise import convolve_with_statistics
from psp_fast.ops.sync_batch_norm_relu import batch_norm_relu_of_statistics, check_options, sync_batch_norm_relu
from psp_fast.ops.sync_batch_norm_relu_library import apply_in_place

_OP = "conv1x1_bn_relu"
# On the CPU the convolution is PyTorch's own, and the kernels are batch norm's.
_CPU_DTYPES = (torch.float32, torch.bfloat16, torch.float64)
backend.register(_OP, "cpu", backend.Kernel("csrc/cpu", _CPU_DTYPES, backend.missing_native))
_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
backend.register(_OP, "cuda", backend.Kernel("triton", _TRITON_DTYPES, backend.missing_triton))
Norm = tuple[Tensor | None, Tensor | None, Tensor, Tensor, float]
"""A frozen batch norm: weight, bias, running mean and variance, eps."""


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

    Nothing is kept between calls: the batch norm is applied to the convolution's result, not folded into its weight.

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
    if not training and _is_inference(x, weight, bn_weight, bn_bias, residual):
        assert running_mean is not None and running_var is not None  # check_options has seen to it
        return _infer(x, weight, (bn_weight, bn_bias, running_mean, running_var, eps), residual, relu)
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


def _is_inference(x: Tensor, weight: Tensor, *others: Tensor | None) -> bool:
    """Whether a kernel may be called past the dispatcher: no gradient is asked for, and nothing watches."""
    tensors = [x, weight, *(t for t in others if t is not None)]
    return (
        backend.choose(_OP, x) != "reference"
        and x.numel() > 0
        and not backend.autocasts(x)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
        and backend.unobserved(*tensors)
    )


def _infer(x: Tensor, weight: Tensor, norm: Norm, residual: Tensor | None, relu: bool) -> Tensor:
    bn_weight, bn_bias, running_mean, running_var, eps = norm
    if backend.choose(_OP, x) == "triton":
        scale, shift = scale_and_shift(*norm)
        return _kernels().matmul_affine_relu(x, weight.flatten(1), scale, shift, residual, relu)
    z = F.conv2d(x, weight)
    return apply_in_place(z, running_mean, running_var, eps, bn_weight, bn_bias, residual, relu)


def scale_and_shift(
    weight: Tensor | None, bias: Tensor | None, running_mean: Tensor, running_var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(scale, shift), each (C,) in at least 32 bits: the frozen batch norm of x is scale * x + shift."""
    scale = (reference.at_least_fp32(running_var) + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale
    return scale, shift if bias is None else shift + bias


def _kernels() -> Any:
    from psp_fast.kernels import conv1x1_bn_relu as kernels

    return kernels
