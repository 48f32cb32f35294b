"""Evaluation: its numbers by hand, shared between processes, and killed and started again."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("jsonargparse")

from psp_fast.checkpoints import read_checkpoint, save_checkpoint
from psp_fast.cli import main
from psp_fast.configs import DataConfig
from psp_fast.data.scenes import CLASSES
from psp_fast.engine import progress
from psp_fast.engine.distributed import Ranks
from psp_fast.engine.evaluate import evaluate
from psp_fast.engine.run import build_model, describe
from psp_fast.engine.samples import build_dataset
from psp_fast.errors import DataError, PspFastError
from tests.engine import small
from tests.processes import run_ranks

CPU = torch.device("cpu")
ONE = Ranks(0, 1, CPU)
IMAGES = 5


def make(images=3):
    config = small.config()
    scenes = dataclasses.replace(config.data.scenes, val=images)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, scenes=scenes))
    dataset = build_dataset(config.data, "val")
    torch.manual_seed(0)
    return config, dataset, build_model(config.model, len(dataset.classes))


class Watched:
    """A data set that notes what is read of it, and in which the images from `stop` on cannot be used."""

    def __init__(self, dataset, stop=IMAGES):
        self.dataset, self.stop, self.read = dataset, stop, []
        self.classes, self.palette, self.name = dataset.classes, dataset.palette, dataset.name
        self.stamp = dataset.stamp

    def __len__(self):
        return len(self.dataset)

    def load(self, index):
        if index >= self.stop:
            raise DataError("stopped")
        self.read.append(index)
        return self.dataset.load(index)


def same(found, expected):
    assert found.confusion.equal(expected.confusion)
    np.testing.assert_equal(dataclasses.asdict(found.metrics), dataclasses.asdict(expected.metrics))  # NaN as NaN
    assert found.image_iou == expected.image_iou


def evaluated_until(stop, result, ranks=ONE):
    config, dataset, model = make(IMAGES)
    with pytest.raises(DataError, match="stopped"):
        evaluate(model, Watched(dataset, stop), config, ranks, result)


def test_measures_are_those_of_predict():
    config, dataset, model = make()
    model.train()
    model.ppm.eval()  # frozen by the user
    found = evaluate(model, dataset, config, ONE)
    assert model.training and not model.ppm.training
    model.eval()
    counts = []
    for index in range(len(dataset)):
        image, label = dataset.load(index)
        x = (image - np.array(config.augment.mean)) / np.array(config.augment.std)
        predicted = model.predict(torch.from_numpy(x).float().permute(2, 0, 1)[None])[0].numpy()
        hits = [((predicted == c) & (label == c)).sum() for c in range(len(CLASSES))]
        unions = [((predicted == c) | (label == c)).sum() for c in range(len(CLASSES))]
        counts.append([hits, unions])
    for (hits, unions), iou in zip(np.array(counts), found.image_iou, strict=True):
        np.testing.assert_allclose(iou, np.mean(hits[unions > 0] / unions[unions > 0]), rtol=1e-3)
    hits, unions = np.array(counts).sum(0)
    np.testing.assert_allclose(found.metrics.miou, np.mean(hits[unions > 0] / unions[unions > 0]), rtol=1e-3)
    np.testing.assert_allclose(found.metrics.pixel_accuracy, hits.sum() / (3 * 49 * 57), rtol=1e-3)
    np.testing.assert_allclose(found.confusion.diagonal().numpy(), hits, rtol=1e-2, atol=2)
    assert found.confusion.dtype == torch.int64 and found.confusion.sum() == 3 * 49 * 57


def test_an_image_too_large_for_memory_is_named(monkeypatch):
    config, dataset, model = make()

    def short(*_):
        raise MemoryError

    monkeypatch.setattr(type(model), "predict", short)
    with pytest.raises(DataError, match=rf"{dataset.name(0)}: there is not enough memory for its \d+x\d+ pixels"):
        evaluate(model, dataset, config, ONE)


def _shared(rank, world, expected, one_image, folder):
    ranks = Ranks(rank, world, CPU)
    config, dataset, model = make(IMAGES)
    same(evaluate(model, dataset, config, ranks), expected)  # unequal shares
    watched = Watched(dataset)
    same(evaluate(model, watched, config, ranks, folder / "from_one.json"), expected)
    assert watched.read == [[2, 4], [3]][rank]
    evaluated_until(3, folder / "from_two.json", ranks)
    config, dataset, model = make(1)
    same(evaluate(model, dataset, config, ranks, folder / "one_image.json"), one_image)


def test_processes_share_the_images_and_go_on_from_each_others_progress(tmp_path):
    config, dataset, model = make(IMAGES)
    expected = evaluate(model, dataset, config, ONE)
    evaluated_until(2, tmp_path / "from_one.json")
    assert [path.name for path in tmp_path.iterdir()] == ["from_one.measured.0"]
    one_image = evaluate(model, make(1)[1], make(1)[0], ONE)
    run_ranks(_shared, 2, expected, one_image, tmp_path)
    names = ["from_one.json", "from_two.measured.0", "from_two.measured.1", "one_image.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    watched = Watched(dataset)
    same(evaluate(model, watched, config, ONE, tmp_path / "from_two.json"), expected)
    assert watched.read == [3, 4]


def other_weights(config, dataset, model):
    model.cls[-1].bias.data[0] += 1
    return config, dataset


def other_configuration(config, dataset, model):
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, mirror=True)), dataset


def other_samples(config, dataset, model):
    return make(IMAGES - 1)[:2]


def damaged(config, dataset, model):
    return config, dataset


def older(config, dataset, model):
    return config, dataset


@pytest.mark.parametrize("change", [other_weights, other_configuration, other_samples, damaged, older])
def test_starts_anew(tmp_path, capsys, change):
    result, file = tmp_path / "evaluation.json", tmp_path / "evaluation.measured.0"
    evaluated_until(3, result)
    config, dataset, model = make(IMAGES)
    config, dataset = change(config, dataset, model)
    if change is damaged:
        file.write_bytes(file.read_bytes()[:-100])
    if change is older:
        save_checkpoint({k: v for k, v in read_checkpoint(file).items() if k != "stamps"}, file)
    watched = Watched(dataset)
    found = evaluate(model, watched, config, ONE, result)
    assert watched.read == list(range(len(dataset)))
    assert (f"its images are measured again: {file} is truncated" in capsys.readouterr().err) == (change is damaged)
    same(found, evaluate(model, dataset, config, ONE))
    assert list(tmp_path.iterdir()) == [result]


def test_an_image_of_which_no_pixel_counts_has_no_iou(tmp_path):
    config, dataset, model = make(2)
    dataset.load = lambda index, load=dataset.load: (load(index)[0], np.full((49, 57), [3, 255][index], np.uint8))
    found = evaluate(model, dataset, config, ONE)
    assert np.isfinite(found.image_iou[0]) and np.isnan(found.image_iou[1])
    assert found.confusion.sum() == 49 * 57


def opened(fifo, process):
    """The named pipe, for writing, once the process reads it."""
    for _ in range(600):
        assert process.poll() is None, process.communicate()[1]
        try:
            return os.fdopen(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK), "wb")
        except OSError as error:
            assert error.errno == errno.ENXIO  # nobody reads yet
            time.sleep(0.1)
    raise AssertionError(f"{fifo} is not read")


def files(folder):
    """Configuration, data set of files and model."""
    data = DataConfig(root=str(folder), classes=["sky", "ground", "tree"])
    config = dataclasses.replace(small.config(), data=data)
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        Image.fromarray(rng.integers(0, 3, (40, 48), dtype=np.uint8)).save(folder / f"label{i}.png")
    (folder / "val.txt").write_text("".join(f"{i}.png label{i}.png\n" for i in range(IMAGES)))
    return config, build_dataset(config.data, "val"), build_model(config.model, 3)


@pytest.mark.parametrize("name", ["0.png", "label0.png"])
def test_files_that_have_changed_are_measured_again(tmp_path, capsys, name):
    """A broken image stops an evaluation; before it goes on, more than that image may be mended."""
    config, dataset, model = files(tmp_path)
    result = tmp_path / "evaluation.json"
    with pytest.raises(DataError, match="stopped"):
        evaluate(model, Watched(dataset, 3), config, ONE, result)
    Image.open(tmp_path / name).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / name)
    watched = Watched(dataset)
    found = evaluate(model, watched, config, ONE, result)
    assert watched.read == [0, 3, 4]
    assert "2 of 5 images were measured before: going on with the others" in capsys.readouterr().out
    same(found, evaluate(model, dataset, config, ONE))


def spoil(path):
    """Make a file unreadable as an image, of the same size and time of change."""
    before = path.stat()
    path.write_bytes(bytes(before.st_size))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_killed_process_goes_on_where_it_was(tmp_path, capsys):
    config, dataset, model = files(tmp_path)
    save_checkpoint({**describe(config, dataset), "state_dict": model.state_dict()}, tmp_path / "last.pth")
    assert main(["evaluate", str(tmp_path), "--out", str(tmp_path / "whole")]) == 0
    expected = json.loads((tmp_path / "whole" / "evaluation.json").read_text())

    waiting = {i: (tmp_path / f"{i}.png").read_bytes() for i in (2, 3)}
    for i in waiting:  # a pipe in the image's place lets us stop the process there
        (tmp_path / f"{i}.png").unlink()
        os.mkfifo(tmp_path / f"{i}.png")
    # Pipes are refused, so the process is made to open them.
    code = "from psp_fast.data import images; images.open_regular = lambda path: open(path, 'rb')\n"
    code += "from psp_fast.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", code, "evaluate", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with opened(tmp_path / "2.png", process) as pipe:
        time.sleep(progress._SECONDS)  # the file is written after this image
        pipe.write(waiting[2])
    with opened(tmp_path / "3.png", process):
        process.kill()
    process.communicate()
    assert not (tmp_path / "evaluation.json").exists()
    assert (tmp_path / "evaluation.measured.0").exists()

    spoil(tmp_path / "0.png")  # measured already: not read again, as 2.png is not, which still is a pipe
    spoil(tmp_path / "1.png")
    (tmp_path / "3.png").unlink()
    (tmp_path / "3.png").write_bytes(waiting[3])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "60%" in done.stderr and f"written to {tmp_path / 'evaluation.json'}" in done.stdout
    assert json.loads((tmp_path / "evaluation.json").read_text()) == expected
    assert not list(tmp_path.glob("*measured*"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluation.json", b'{"mine": 1}'),
        ("evaluation.json", b"text"),
        ("evaluation.measured.0", b"my own measurements"),
        ("evaluation.measured.7", b"my own measurements"),
        ("evaluation.json", None),
        ("evaluation.measured.0", None),
    ],
)
def test_files_of_others_stop_an_evaluation(tmp_path, name, content):
    if content is None:  # a pipe, which is never read to its end
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "evaluation.measured.csv").write_text("1,2")
    config, dataset, model = make(1)
    with pytest.raises(PspFastError, match=f"{name} is there already and is not an evaluation's: move it"):
        evaluate(model, dataset, config, ONE, tmp_path / "evaluation.json")
    assert content is None or (tmp_path / name).read_bytes() == content
    (tmp_path / name).unlink()
    for _ in range(2):
        evaluate(model, dataset, config, ONE, tmp_path / "evaluation.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evaluation.json", "evaluation.measured.csv"]


def test_damaged_progress_is_not_used(tmp_path, capsys):
    result, file = tmp_path / "evaluation.json", tmp_path / "evaluation.measured.0"
    evaluated_until(2, result)
    save_checkpoint({**read_checkpoint(file), "lengths": 3}, file)
    config, dataset, model = make(IMAGES)
    watched = Watched(dataset)
    evaluate(model, watched, config, ONE, result)
    assert watched.read == list(range(IMAGES))
    assert f"its images are measured again: {file} is damaged" in capsys.readouterr().err
