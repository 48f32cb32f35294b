"""Whole-image and sliding-window label maps."""

import numpy as np
import pytest
import torch
from torch import nn

from psp_fast import PSPNet
from psp_fast.configs import EvalConfig
from psp_fast.engine.inference import label_map, sliding_window, window_starts


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return PSPNet(layers=18, classes=6, pretrained=False, output_stride=16).eval()


@pytest.mark.parametrize(
    ("length", "crop", "expected"),
    [(473, 473, [0]), (100, 473, [0]), (474, 473, [0, 1]), (1000, 473, [0, 316, 527]), (7, 3, [0, 2, 4])],
)
def test_windows_step_two_thirds_and_end_at_the_border(length, crop, expected):
    assert window_starts(length, crop, 2 / 3) == expected


def test_whole_image_is_the_models_prediction(model):
    image = torch.randn(3, 50, 61)
    found = label_map(model, image, (50, 61), EvalConfig())
    assert torch.equal(found.long(), model(image[None]).argmax(1)[0])


def test_another_size_compares_resized_scores(model):
    image = torch.randn(3, 50, 61)
    found = label_map(model, image, (25, 30), EvalConfig())
    scores = nn.functional.interpolate(model(image[None]), (25, 30), mode="bilinear")
    assert torch.equal(found, scores.argmax(1)[0])


def test_sliding_window_averages_probabilities_by_hand(model):
    image = torch.randn(1, 3, 40, 33)
    with torch.no_grad():
        found = sliding_window(model, image, (33, 33), 2 / 3)
        top, bottom = (model(image[:, :, y : y + 33]).softmax(1) for y in (0, 7))
    expected = torch.cat([top[:, :, :7], (top[:, :, 7:] + bottom[:, :, :26]) / 2, bottom[:, :, 26:]], 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.sum(1).numpy(), 1, rtol=1e-5)


def test_images_smaller_than_the_window_are_padded_around_their_centre(model):
    image = torch.randn(1, 3, 20, 15)
    with torch.no_grad():
        found = sliding_window(model, image, (33, 33), 2 / 3)
        padded = model(nn.functional.pad(image, (9, 9, 6, 7))).softmax(1)
    torch.testing.assert_close(found, padded[:, :, 6:26, 9:24], rtol=1e-4, atol=1e-5)
    assert label_map(model, image[0], (20, 15), EvalConfig(mode="slide", crop=(33, 33))).shape == (20, 15)
