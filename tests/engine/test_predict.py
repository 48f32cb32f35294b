"""Predicting the user's own images, whatever their kind."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("jsonargparse")

from psp_fast.checkpoints import save_checkpoint
from psp_fast.data import default_palette
from psp_fast.engine.predict import predict
from psp_fast.engine.run import Trained, build_model, describe, load_trained
from psp_fast.engine.samples import build_dataset
from psp_fast.errors import DataError
from tests.engine import small

CPU = torch.device("cpu")
CONFIG = small.config()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "best.pth"
    torch.manual_seed(0)
    config = small.config()
    dataset = build_dataset(config.data, "train")
    model = build_model(config.model, len(dataset.classes))
    save_checkpoint({**describe(config, dataset), "step": 0, "state_dict": model.state_dict()}, path)
    return load_trained(path, CPU)


def pixels(height=37, width=52):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path, kind):
    rgb = Image.fromarray(pixels())
    if kind == "16 bit":
        Image.fromarray(pixels()[..., 0].astype(np.uint16) * 257).save(path.with_suffix(".png"))
        return path.with_suffix(".png")
    if kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        rgb.save(path.with_suffix(".jpg"), exif=exif)
        return path.with_suffix(".jpg")
    suffix = {"RGB": ".jpg", "CMYK": ".jpg"}.get(kind, ".png")
    rgb.convert(kind).save(path.with_suffix(suffix))
    return path.with_suffix(suffix)


@pytest.mark.parametrize("kind", ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "16 bit", "rotated"])
def test_every_kind_of_image(trained, tmp_path, kind):
    path = write(tmp_path / "photo", kind)
    [_, overlay] = predict(trained, [str(path)], tmp_path / "out", small.config(), CPU)
    labels = Image.open(tmp_path / "out" / "photo_labels.png")
    assert labels.size == ((37, 52) if kind == "rotated" else (52, 37))
    assert labels.mode == "P"
    ids = np.asarray(labels)
    assert ids.max() < len(trained.classes)
    assert labels.getpalette()[3 * int(ids[0, 0]) : 3 * int(ids[0, 0]) + 3] == trained.palette[ids[0, 0]].tolist()
    assert Image.open(overlay).width >= labels.width


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (200, 3)])
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_every_size(trained, tmp_path, size, mode):
    Image.fromarray(pixels(*size)).save(tmp_path / "a.png")
    predict(trained, [str(tmp_path / "a.png")], tmp_path, small.config(eval__mode=mode, eval__crop=(33, 33)), CPU)
    assert Image.open(tmp_path / "a_labels.png").size == size[::-1]


def test_results_that_would_overwrite_each_other_are_refused(trained, tmp_path):
    with pytest.raises(DataError, match="2 of the images are called 'a'"):
        predict(trained, ["x/a.png", "y/a.jpg"], tmp_path, small.config(), CPU)


def test_a_broken_image_is_named_before_anything_is_written(trained, tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "cut.jpg")
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cut\.jpg"):
        predict(trained, [str(tmp_path / "cut.jpg")], tmp_path / "out", small.config(), CPU)
    assert not (tmp_path / "out").exists()


def test_a_path_with_a_nul_is_refused(trained, tmp_path):
    with pytest.raises(DataError, match=r"'a\\x00b.jpg' holds a NUL character"):
        predict(trained, ["a\0b.jpg"], tmp_path, CONFIG, CPU)


def test_more_than_256_classes(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "photo.png")
    torch.manual_seed(0)
    config = small.config()
    model = build_model(config.model, 300).eval()
    with torch.no_grad():  # the last class, whatever the image
        model.cls[-1].bias.copy_(torch.arange(300) * 1e3)
    wide = Trained(model, config, [f"class {i}" for i in range(300)], default_palette(300))
    labels, overlay = predict(wide, [str(tmp_path / "photo.png")], tmp_path / "out", config, CPU)
    assert (np.asarray(Image.open(labels)) == 299).all()
    assert Image.open(overlay).size[0] >= 52


def test_only_earlier_results_of_the_same_image_are_replaced(trained, tmp_path):
    (tmp_path / "y").mkdir()
    for path in (tmp_path / "a.png", tmp_path / "y" / "a.png", tmp_path / "b_labels.png", tmp_path / "b.png"):
        Image.fromarray(pixels()).save(path)
    before = (tmp_path / "b_labels.png").read_bytes()
    with pytest.raises(
        DataError, match=r"b_labels\.png is there already and is not an earlier result of .*b\.png: move"
    ):
        predict(trained, [str(tmp_path / f"{name}.png") for name in ("a", "b_labels", "b")], tmp_path, CONFIG, CPU)
    assert (tmp_path / "b_labels.png").read_bytes() == before
    assert not (tmp_path / "a_labels.png").exists()  # told before anything is written
    os.mkfifo(tmp_path / "a_overlay.png")
    with pytest.raises(DataError, match=r"a_overlay\.png is there already"):
        predict(trained, [str(tmp_path / "a.png")], tmp_path, CONFIG, CPU)
    (tmp_path / "a_overlay.png").unlink()
    for _ in range(2):
        predict(trained, [str(tmp_path / "a.png")], tmp_path, CONFIG, CPU)
    with pytest.raises(DataError, match=r"a_labels\.png is there already and is not an earlier result of .*y/a\.png"):
        predict(trained, [str(tmp_path / "y" / "a.png")], tmp_path, CONFIG, CPU)
    corrected = Image.open(tmp_path / "a_labels.png")
    corrected.load()
    corrected.save(tmp_path / "a_labels.png")  # by hand, in another program
    with pytest.raises(DataError, match=r"a_labels\.png is there already"):
        predict(trained, [str(tmp_path / "a.png")], tmp_path, CONFIG, CPU)


@pytest.mark.parametrize(
    ("mode", "advice"), [("whole", "at once: predict it with --eval.mode slide"), ("slide", "low")]
)
@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")]
)
def test_an_image_too_large_for_memory_is_named(trained, tmp_path, monkeypatch, mode, advice, error):
    def short(*_):
        raise error

    Image.fromarray(pixels()).save(tmp_path / "a.png")
    monkeypatch.setattr(type(trained.model), "forward", short)
    monkeypatch.setattr(type(trained.model), "predict", short)
    with pytest.raises(DataError, match=rf"a\.png: there is not enough memory for its 52x37 pixels.*{advice}"):
        predict(trained, [str(tmp_path / "a.png")], tmp_path / "out", small.config(eval__mode=mode), CPU)


def test_other_errors_of_torchs_stay_what_they_are(trained, tmp_path, monkeypatch):
    def wrong(*_):
        raise RuntimeError("shapes differ")

    Image.fromarray(pixels()).save(tmp_path / "a.png")
    monkeypatch.setattr(type(trained.model), "predict", wrong)
    with pytest.raises(RuntimeError, match="shapes differ"):
        predict(trained, [str(tmp_path / "a.png")], tmp_path / "out", CONFIG, CPU)
