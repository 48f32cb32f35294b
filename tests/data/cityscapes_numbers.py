"""The official evaluation of Cityscapes, to compare with: classes, and scores of label maps on a small tree.

    python -m tests.data.cityscapes_numbers     writes cityscapes_numbers.json anew

Needs cityscapesscripts (2.3.0 needs NumPy below 2.4), not psp_fast. The label maps that `prediction` makes are given
to the official evaluation as files of a submission.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.data import trees

NUMBERS = Path(__file__).with_suffix(".json")


def prediction(truth: np.ndarray, index: int) -> np.ndarray:
    """Label map (H, W) uint8 in trainIds for a `truth` in trainIds: a third of the blocks and all void is guessed.

    The class train (16), which the truth lacks, is never guessed.
    """
    guesses = trees.blocks(truth.shape, [i for i in range(19) if i != 16], 7000 + index)
    guessed = trees.blocks(truth.shape, [0, 0, 1], 8000 + index).astype(bool) | (truth == 255)
    return np.where(guessed, guesses, truth).astype(np.uint8)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = trees.cityscapes(Path(folder))
        os.environ["CITYSCAPES_DATASET"], os.environ["CITYSCAPES_RESULTS"] = str(root), str(root / "results")
        from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
        from cityscapesscripts.helpers.csHelpers import getCsFileInfo
        from cityscapesscripts.helpers.labels import id2label, labels, trainId2label
        from cityscapesscripts.helpers.version import version

        truth = sorted(str(path) for path in root.glob("gtFine/val/*/*_gtFine_labelIds.png"))
        for index, path in enumerate(truth):
            known = np.vectorize(lambda i: id2label[i].trainId)(np.asarray(Image.open(path)))
            ids = np.vectorize(lambda train_id: trainId2label[train_id].id)(prediction(known, index))
            info = getCsFileInfo(path)
            trees.label(root / "results" / f"{info.city}_{info.sequenceNb}_{info.frameNb}_leftImg8bit.png", ids)
        official.args.quiet, official.args.evalInstLevelScore, official.args.evalPixelAccuracy = True, False, True
        official.args.JSONOutput = False  # a file that is not needed, and fails on NumPy's integers
        found = [official.getPrediction(official.args, path) for path in truth]
        scores = official.evaluateImgLists(found, truth, official.args)
    numbers = {
        "cityscapesscripts": version,
        "labels": [[label.name, label.id, label.trainId, list(label.color)] for label in labels],
        "class_iou": {name: None if np.isnan(iou) else iou for name, iou in scores["classScores"].items()},
        "mean_iou": scores["averageScoreClasses"],
    }
    NUMBERS.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
