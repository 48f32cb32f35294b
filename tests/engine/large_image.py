"""Bytes by which label_map makes a process grow: python -m tests.engine.large_image SIDE CROP MOST_BYTES"""

import sys

import torch
from torch import nn

from benchmarks.memory import measure
from psp_fast.engine.inference import label_map
from tests.engine import small
from tests.engine.test_inference import Coarse, picture


def main(side, crop, most_bytes):
    torch.manual_seed(0)
    model = Coarse(True).eval()
    model.cls[-1] = nn.Conv2d(16, 150, 3, padding=1)
    config = small.config(eval__mode="slide", eval__crop=(crop, crop), eval__stride=1.0)  # each pixel once, for speed
    label_map(model, picture(2 * crop, 2 * crop), config)  # what the first call allocates for good
    image = picture(side, side)
    print(measure(lambda: label_map(model, image, config, most_bytes)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
