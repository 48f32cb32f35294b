"""Label maps of images of any size: the whole image at once, or in a sliding window."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from psp_fast.configs import EvalConfig
from psp_fast.models import PSPNet


@torch.no_grad()
def label_map(model: PSPNet, image: Tensor, size: tuple[int, int], config: EvalConfig) -> Tensor:
    """Class ids (H, W) of one image.

    Args:
        model: in eval mode.
        image: (3, h, w) float32, normalised, on the model's device.
        size: (H, W) of the result; where the image has another size, its scores are resized to it.
        config: whole image or sliding window.
    """
    batch = image[None].contiguous(memory_format=torch.channels_last)
    if config.mode == "whole" and tuple(size) == tuple(image.shape[1:]):
        return model.predict(batch)[0]
    scores = (
        _scores(model, batch) if config.mode == "whole" else sliding_window(model, batch, config.crop, config.stride)
    )
    if tuple(size) != tuple(scores.shape[2:]):
        scores = F.interpolate(scores.float(), size, mode="bilinear", align_corners=False)
    return scores[0].argmax(0)


def sliding_window(model: PSPNet, image: Tensor, crop: tuple[int, int], stride: float) -> Tensor:
    """Mean class probabilities (1, C, H, W) of overlapping crops of image (1, 3, H, W).

    An image smaller than the crop is padded around its centre with 0, the mean. Windows are ceil(crop * stride) apart;
    the last ones are moved back to end at the border.
    """
    height, width = image.shape[2:]
    (crop_h, crop_w), (pad_h, pad_w) = crop, [max(c - s, 0) for c, s in zip(crop, (height, width), strict=True)]
    top, left = pad_h // 2, pad_w // 2
    padded = F.pad(image, (left, pad_w - left, top, pad_h - top))
    total, count = None, image.new_zeros((1, 1, *padded.shape[2:]))
    for y in window_starts(padded.shape[2], crop_h, stride):
        for x in window_starts(padded.shape[3], crop_w, stride):
            probabilities = _scores(model, padded[:, :, y : y + crop_h, x : x + crop_w]).float().softmax(1)
            if total is None:
                total = probabilities.new_zeros((1, probabilities.shape[1], *padded.shape[2:]))
            total[:, :, y : y + crop_h, x : x + crop_w] += probabilities
            count[:, :, y : y + crop_h, x : x + crop_w] += 1
    assert total is not None
    return (total / count)[:, :, top : top + height, left : left + width]


def _scores(model: PSPNet, image: Tensor) -> Tensor:
    """Logits at the image's size, whatever the model's zoom_factor."""
    logits = model(image)
    if logits.shape[2:] == image.shape[2:]:
        return logits
    return F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=model.align_corners)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def window_starts(length: int, crop: int, stride: float) -> list[int]:
    """First pixels of the windows of `crop` pixels that cover `length` pixels, ceil(crop * stride) apart."""
    step = math.ceil(crop * stride)
    windows = math.ceil(max(length - crop, 0) / step) + 1
    return [min(i * step, max(length - crop, 0)) for i in range(windows)]
