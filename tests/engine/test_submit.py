"""From Cityscapes as distributed to label maps for its server."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("jsonargparse")

from psp_fast.cli import main
from psp_fast.configs import Config, DataConfig
from psp_fast.data.official import cityscapes
from psp_fast.engine.inference import label_map
from psp_fast.engine.run import Trained, load_trained
from psp_fast.engine.submit import submit
from psp_fast.errors import DataError
from psp_fast.models import PSPNet
from tests.data import trees

TINY = [
    "--device=cpu", "--model.layers=18", "--model.output_stride=16", "--model.pretrained=false",
    "--augment.crop=[25,33]", "--train.steps=2", "--train.batch_size=2", "--train.workers=0",
    "--train.validate_every=0", "--eval.mode=whole", "--eval.mirror=false", "--eval.base_size=null",
]  # fmt: skip


def test_train_evaluate_and_submit(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = str(trees.cityscapes(tmp_path / "cityscapes"))
    assert main(["train", "cityscapes", "--data.root", root, *TINY, "--out", "run"]) == 0
    assert "motorcycle" in capsys.readouterr().out
    assert main(["evaluate", "run/last.pth"]) == 0
    for _ in range(2):  # an earlier result is replaced
        assert main(["submit", "run", "--out", "submission"]) == 0
    assert "2 label maps written to submission" in capsys.readouterr().out
    written = sorted((tmp_path / "submission").iterdir())
    assert [path.name for path in written] == [f"berlin_000000_00000{i}_leftImg8bit.png" for i in (0, 1)]
    trained = load_trained("run/last.pth", torch.device("cpu"))
    for path, source in zip(written, cityscapes.images_to_submit(tmp_path / "cityscapes"), strict=True):
        stored = Image.open(path)
        assert (stored.mode, stored.size) == ("L", (64, 32))
        image = torch.from_numpy(np.array(Image.open(source)))
        train_ids = label_map(trained.model, image, trained.config).numpy()
        assert np.array_equal(np.asarray(stored), np.array(cityscapes.IDS)[train_ids])


def test_mistakes(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = str(trees.camvid(tmp_path / "camvid"))
    assert main(["train", "camvid", "--data.root", root, *TINY, "--train.amp=off", "--out", "run"]) == 0
    assert main(["submit", "run/last.pth"]) == 2
    assert "submit is for networks of Cityscapes' 19 classes; this one's 11 are not those" in capsys.readouterr().err
    assert main(["submit"]) == 2
    assert "no checkpoint given" in capsys.readouterr().err


def test_the_images_are_not_replaced(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = trees.cityscapes(tmp_path / "cityscapes")
    images = cityscapes.images_to_submit(root)
    before = [path.read_bytes() for path in images]
    trained = Trained(PSPNet(18, classes=19, pretrained=False).eval(), Config(), cityscapes.LAYOUT.classes, None)
    config = dataclasses.replace(Config(), data=DataConfig("cityscapes", str(root)))
    with pytest.raises(
        DataError, match=r"leftImg8bit\.png is there already and is not an earlier result of psp-fast sub"
    ):
        submit(trained, config, images[0].parent, torch.device("cpu"))
    assert [path.read_bytes() for path in images] == before
