"""Bytes by which the process grows as it evaluates an image: python -m tests.engine.large_image SIDE CROP"""

import sys

import torch
from torch import nn

from benchmarks.memory import measure
from psp_fast.engine.distributed import Ranks
from psp_fast.engine.evaluate import evaluate
from tests.engine import small
from tests.engine.test_inference import Coarse, picture

CLASSES = 150


class OneImage:
    """A data set of one square image, in memory."""

    classes = tuple(str(i) for i in range(CLASSES))

    def __init__(self, side):
        self.image = picture(side, side)

    def __len__(self):
        return 1

    def load(self, index):
        return self.image.numpy(), self.image[:, :, 0].numpy() % CLASSES


def main(side, crop):
    torch.manual_seed(0)
    model = Coarse(True)
    model.cls[-1] = nn.Conv2d(16, CLASSES, 3, padding=1)
    config = small.config(eval__mode="slide", eval__crop=(crop, crop), eval__stride=1.0)  # each pixel once, for speed
    ranks = Ranks(0, 1, torch.device("cpu"))
    evaluate(model, OneImage(2 * crop), config, ranks)  # what the first call allocates for good
    dataset = OneImage(side)
    print(measure(lambda: evaluate(model, dataset, config, ranks)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
