"""Label maps: whole images and sliding windows, scales, mirrors, and both ways of averaging, against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.memory import STATUS, measure_in_process
from psp_fast import PSPNet
from psp_fast.engine.inference import label_map
from psp_fast.engine.windows import scaled_size, window_starts
from tests.engine import small

CLASSES = 6


class Coarse(nn.Module):
    """The least that label maps ask of a network: logits at an eighth of the size, upsampled, in milliseconds."""

    def __init__(self, align_corners):
        super().__init__()
        self.cls = nn.Sequential(nn.Conv2d(3, 16, 9, 8, 4), nn.Tanh(), nn.Conv2d(16, CLASSES, 3, padding=1))
        self.align_corners = align_corners

    def forward(self, x):
        return F.interpolate(self.cls(x), x.shape[2:], mode="bilinear", align_corners=self.align_corners)


@pytest.fixture(scope="module", params=[True, False])
def model(request):
    torch.manual_seed(0)
    return Coarse(request.param).eval()


def picture(height, width):
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalised(image, config):
    mean, std = torch.tensor(config.augment.mean), torch.tensor(config.augment.std)
    return ((image.float() - mean) / std).permute(2, 0, 1)[None]


def slide(model, image, crop, softmax, flip):
    """Mean over windows of image (1, 3, h, w), a window at a time, on a padded image that exists as a whole."""
    height, width = image.shape[2:]
    pad_h, pad_w = max(crop[0] - height, 0), max(crop[1] - width, 0)
    padded = F.pad(image, (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2))
    total, count = torch.zeros(1, CLASSES, *padded.shape[2:]), torch.zeros(padded.shape[2:])
    for y in window_starts(padded.shape[2], crop[0], 2 / 3):
        for x in window_starts(padded.shape[3], crop[1], 2 / 3):
            part = padded[:, :, y : y + crop[0], x : x + crop[1]]
            scores = model(part).softmax(1) if softmax else model(part)
            if flip:
                scores = (scores + model(part.flip(3)).softmax(1).flip(3)) / 2
            total[:, :, y : y + crop[0], x : x + crop[1]] += scores
            count[y : y + crop[0], x : x + crop[1]] += 1
    top, left = pad_h // 2, pad_w // 2
    return (total / count)[:, :, top : top + height, left : left + width]


@torch.no_grad()
def expected_probabilities(model, image, config):
    total = torch.zeros(1, CLASSES, *image.shape[:2])
    for scale in config.eval.scales:
        size = scaled_size(tuple(image.shape[:2]), scale, config.eval.base_size)
        scaled = F.interpolate(normalised(image, config), size, mode="bilinear")
        crop = size if config.eval.mode == "whole" else config.eval.crop
        total += F.interpolate(slide(model, scaled, crop, True, config.eval.mirror), image.shape[:2], mode="bilinear")
    return total.argmax(1)[0]


@torch.no_grad()
def expected_logits(model, image, config):
    total = torch.zeros(1, CLASSES, *image.shape[:2])
    for scale in config.eval.scales:
        size = scaled_size(tuple(image.shape[:2]), scale, config.eval.base_size)
        scaled = F.interpolate(normalised(image, config), size, mode="bilinear")
        crop = tuple(map(min, config.eval.crop, size)) if config.eval.mode == "slide" else size
        for flip in (False, True) if config.eval.mirror else (False,):
            scores = slide(model, scaled.flip(3) if flip else scaled, crop, False, False)
            scores = F.interpolate(scores, image.shape[:2], mode="bilinear", align_corners=model.align_corners)
            total += (scores.flip(3) if flip else scores).softmax(1)
    return total.argmax(1)[0]


@pytest.mark.parametrize(
    ("length", "crop", "expected"),
    [(473, 473, [0]), (100, 473, [0]), (474, 473, [0, 1]), (1000, 473, [0, 316, 527]), (7, 3, [0, 2, 4])],
)
def test_windows_step_two_thirds_and_end_at_the_border(length, crop, expected):
    assert window_starts(length, crop, 2 / 3) == expected


@pytest.mark.parametrize(
    ("shape", "scale", "base_size", "expected"),
    [
        ((300, 400), 1.0, None, (300, 400)),
        ((300, 400), 1.75, 512, (672, 896)),
        ((401, 300), 0.5, 512, (256, 192)),
        ((1, 4000), 1.0, 512, (1, 512)),
        ((300, 400), 1.0, (2048, 512), (512, 683)),  # mmseg: the short side
        ((300, 400), 0.5, (512, 512), (192, 256)),  # mmseg: the long side
    ],
)
def test_sizes_of_scaled_images(shape, scale, base_size, expected):
    assert scaled_size(shape, scale, base_size) == expected


def test_whole_image_is_the_models_prediction():
    torch.manual_seed(0)
    model = PSPNet(layers=18, classes=CLASSES, pretrained=False, output_stride=16).eval()
    config, image = small.config(), picture(50, 61)
    found = label_map(model, image, config)
    assert torch.equal(found.long(), model(normalised(image, config)).argmax(1)[0])


CASES = [
    {"mode": "slide", "crop": (33, 41)},
    {"mode": "slide", "crop": (33, 33), "mirror": True, "batch_size": 3},
    {"mode": "slide", "crop": (65, 81), "mirror": True},  # larger than the image
    {"mode": "slide", "crop": (49, 33), "mirror": True, "scales": [0.5, 1.25], "base_size": 60},
    {"mode": "whole", "base_size": 40},
    {"mode": "whole", "mirror": True, "scales": [0.75, 1.25], "base_size": (90, 60)},
]


@pytest.mark.parametrize("options", CASES)
@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("most_bytes", [1 << 30, 50_000])
def test_averages_are_those_of_whole_score_maps(model, options, average, most_bytes):
    config = small.config(**{f"eval__{key}": value for key, value in {**options, "average": average}.items()})
    image = picture(75, 58)
    expected = (expected_logits if average == "logits" else expected_probabilities)(model, image, config)
    found = label_map(model, image, config, most_bytes)
    assert found.dtype == torch.uint8
    assert (found == expected).float().mean() > 0.999  # what lies between two classes may fall either way


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells a process's peak memory")
def test_memory_of_a_sliding_window_is_bounded():
    side, crop, most_bytes = 1200, 129, 70_000_000
    found = measure_in_process("tests.engine.large_image", str(side), str(crop), str(most_bytes))
    a_crop = 4 * 150 * crop * crop
    assert most_bytes / 2 < found < most_bytes + 4 * a_crop  # the scores of the image: 864 MB
