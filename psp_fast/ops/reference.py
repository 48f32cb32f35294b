"""Ground truth: every op of `psp_fast.ops` in plain PyTorch, same names and signatures, any float dtype, any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def pyramid_pool(x: Tensor, bins: Sequence[int] = (1, 2, 3, 6), mode: str = "avg") -> tuple[Tensor, ...]:
    """Adaptive pooling of x (N, C, H, W) to b x b cells for every b; windows overlap where b does not divide a side."""
    pool = F.adaptive_avg_pool2d if mode == "avg" else F.adaptive_max_pool2d
    return tuple(pool(x, b) for b in bins)


def conv3x3(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """conv2d of x (N, C, H, W) with weight (O, C, 3, 3), stride 1, padding equal to dilation: (N, O, H, W)."""
    return F.conv2d(x, weight, padding=dilation, dilation=dilation)


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
    """`sync_batch_norm_relu` of the 1x1 convolution of x (N, C, H, W) with weight (O, C, 1, 1): (N, O, H, W)."""
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


def sync_batch_norm_relu(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
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
    """relu(batch_norm(x) + residual) for x (N, C, H, W), like x.

    With a process group of several ranks the training statistics are those of the batches of all ranks together;
    ranks may hold different batch sizes. No group, or one rank, means this process's batch. running_mean and
    running_var are updated in place, momentum being the weight of the new batch; running_var is unbiased, the
    normalisation is not.
    """
    if training and process_group is not None and dist.get_world_size(process_group) > 1:
        y = _synced_batch_norm(x, weight, bias, running_mean, running_var, momentum, eps, process_group)
    else:
        y = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    # In place: neither batch norm nor ReLU needs what is overwritten for its backward.
    if residual is not None:
        y = y.add_(residual)
    return y.relu_() if relu else y


class _AllReduceSum(torch.autograd.Function):
    """Sum over the ranks; the gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, value: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group  # type: ignore[attr-defined]
        value = value.clone()
        dist.all_reduce(value, group=group)
        return value

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        grad = grad.clone()
        dist.all_reduce(grad, group=ctx.group)  # type: ignore[attr-defined]
        return grad, None


def _synced_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    group: dist.ProcessGroup,
) -> Tensor:
    dims, shape = (0, 2, 3), (1, -1, 1, 1)
    values = at_least_fp32(x)
    count = values.new_full((1,), values.numel() // values.shape[1])
    total, count = _AllReduceSum.apply(torch.cat([values.sum(dims), count]), group).split([values.shape[1], 1])
    mean = total / count.clamp(min=1)
    centred = values - mean.view(shape)
    var = _AllReduceSum.apply(centred.square().sum(dims), group) / count.clamp(min=1)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            share = momentum * (count > 0).to(count)  # nothing is taken in where no rank has a value
            running_mean.lerp_(mean.to(running_mean), share.to(running_mean))
            running_var.lerp_((var * count / (count - 1).clamp(min=1)).to(running_var), share.to(running_var))
    y = centred * (var + eps).rsqrt().view(shape)
    if weight is not None:
        y = y * weight.view(shape)
    if bias is not None:
        y = y + bias.view(shape)
    return y.to(x.dtype)


def upsample_concat(x: Tensor, pyramid: Sequence[Tensor], align_corners: bool = True) -> Tensor:
    """x (N, C, H, W) and every level (N, C_b, b, b) upsampled bilinearly to H x W: (N, C + sum C_b, H, W)."""
    size = x.shape[2:]
    levels = [F.interpolate(p, size, mode="bilinear", align_corners=align_corners) for p in pyramid]
    return torch.cat([x, *levels], 1)


def pyramid_conv3x3(x: Tensor, pyramid: Sequence[Tensor], weight: Tensor, align_corners: bool = True) -> Tensor:
    """conv2d, padding 1, of `upsample_concat(x, pyramid)` with weight (O, C + sum C_b, 3, 3): (N, O, H, W)."""
    return F.conv2d(upsample_concat(x, pyramid, align_corners), weight, padding=1)


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    align_corners: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """Cross entropy of logits (N, C, h, w), upsampled bilinearly to H x W, against target (N, H, W) of class ids.

    As `torch.nn.functional.cross_entropy`: a scalar for "mean" and "sum", (N, H, W) for "none"; "mean" divides by the
    number (with `weight`, the summed weight) of the pixels that are not ignore_index, and is 0 where there are none.
    """
    full = F.interpolate(at_least_fp32(logits), target.shape[1:], mode="bilinear", align_corners=align_corners)
    target = target.long()
    weight = None if weight is None else weight.to(full.dtype)
    losses = F.cross_entropy(
        full, target, weight, ignore_index=ignore_index, label_smoothing=label_smoothing, reduction="none"
    )
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    valid = target != ignore_index
    total = valid.sum() if weight is None else weight[target.where(valid, 0)].where(valid, 0).sum()
    return losses.sum() / torch.where(total > 0, total, 1)


def upsample_argmax(
    logits: Tensor, size: Sequence[int], align_corners: bool = True, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Class of the largest logit after bilinear upsampling of (N, C, h, w) to size (H, W); ties go to the first class.

    (N, H, W) of dtype; None means uint8 up to 256 classes, else int64.
    """
    full = F.interpolate(at_least_fp32(logits), tuple(size), mode="bilinear", align_corners=align_corners)
    return full.argmax(1).to(dtype or (torch.uint8 if logits.shape[1] <= 256 else torch.int64))


def at_least_fp32(x: Tensor) -> Tensor:
    """x itself in fp32 or float64, half precisions widened to fp32."""
    return x if x.dtype == torch.float64 else x.float()
