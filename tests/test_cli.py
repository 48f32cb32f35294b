"""The command line as a user meets it: what works, and what is said when the input cannot be used."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("jsonargparse")

from psp_fast.checkpoints import save_checkpoint
from psp_fast.cli import _separated, main
from psp_fast.configs import Config
from psp_fast.engine.run import before_restart, new_folder
from psp_fast.files import locked
from psp_fast.models import PSPNet
from tests.data import trees

CLASSES = "[sky,ground]"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Eight small labelled images in list files, in the working directory."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lines = []
    for i in range(8):
        image = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        label = np.zeros((40, 48), np.uint8)
        label[20:] = 1
        image[20:] //= 4
        Image.fromarray(image).save(f"{i}.jpg")
        Image.fromarray(label).save(f"{i}.png")
        lines.append(f"{i}.jpg {i}.png\n")
    (tmp_path / "train.txt").write_text("".join(lines[:6]))
    (tmp_path / "val.txt").write_text("".join(lines[6:]))
    return tmp_path


OPTIONS = [
    "--device=cpu", "--model.layers=18", "--model.output_stride=16", "--augment.crop=[41,49]", "--train.batch_size=4",
    "--train.workers=0", "--train.log_every=1", "--train.validate_every=0", "--train.checkpoint_every=1",
]  # fmt: skip


MULTI_SCALE = ["--eval.mirror=true", "--eval.scales=[0.5,1]", "--eval.base_size=[64,48]", "--eval.average=logits"]


def recipe(data=f"{{root: ., classes: {CLASSES}}}"):
    Path("mine.yaml").write_text(f"{{data: {data}}}\n")
    return "mine.yaml"


def train(*more, classes=CLASSES):
    return main(["train", *OPTIONS, "--train.steps=2", *more, recipe(f"{{root: ., classes: {classes}}}")])


def said(capsys):
    return capsys.readouterr().err.split("psp-fast: error: ")[-1]


def test_train_resume_evaluate_predict_on_a_users_own_images(tree, capsys):
    assert train("--out=run") == 0
    assert "picture: run/examples.png" in capsys.readouterr().out
    assert main(["train", "--resume", "run"]) == 0
    window = ["--eval.mode=slide", "--eval.crop=[33,33]", *MULTI_SCALE]
    assert main(["evaluate", *window, "--pictures", "run"]) == 0
    out = capsys.readouterr().out
    assert "ground" in out and "page: run/evaluation.html   pictures: run/pictures" in out
    assert "a sliding window of 33x33" in (tree / "run" / "evaluation.html").read_text()
    measures = json.loads((tree / "run" / "evaluation.json").read_text())
    assert set(measures["classes"]) == {"sky", "ground"}
    assert main(["predict", "--out", "found", "run", "0.jpg", "1.jpg"]) == 0
    assert sorted(p.name for p in (tree / "found").iterdir()) == [
        "0_labels.png",
        "0_overlay.png",
        "1_labels.png",
        "1_overlay.png",
    ]


@pytest.mark.parametrize("channels", [1, 4])
def test_training_on_grey_and_four_band_images(tree, channels):
    rng = np.random.default_rng(0)
    for i in range(8):
        bands = rng.integers(0, 256, (40, 48, 4), dtype=np.uint8)
        Image.fromarray(bands if channels == 4 else bands[..., 0]).save(f"{i}.tif")
    for name in ("train.txt", "val.txt"):
        (tree / name).write_text((tree / name).read_text().replace(".jpg", ".tif"))
    values = [f"--augment.{name}={[value] * channels}" for name, value in (("mean", 127), ("std", 60))]
    assert train("--out=run", f"--model.in_channels={channels}", *values) == 0
    assert main(["evaluate", "run", "--eval.mode=slide", "--eval.crop=[33,33]", "--pictures=1"]) == 0
    assert main(["predict", "run", "7.tif"]) == 0
    assert Image.open("predictions/7_labels.png").size == (48, 40)
    assert main(["export", "run", "net.pt2", "--dynamic"]) == 0


def test_runs_are_numbered_and_never_overwritten(tree, capsys):
    assert train() == 0 and train() == 0
    assert sorted(p.name for p in (tree / "runs").iterdir()) == ["mine-1", "mine-2"]
    assert train("--out=runs/mine-1") == 2
    assert "runs/mine-1 already holds a run: continue it with --resume runs/mine-1" in said(capsys)


def test_a_start_that_failed_leaves_its_folder_free(tree, capsys):
    assert train("--out=run", "--train.batch_size=1") == 1
    assert "ppm.features.0.2" in said(capsys)
    assert list((tree / "run" / "tensorboard").iterdir())
    assert train("--out=run", "--train.steps=1") == 0
    events = sum(path.read_bytes().count(b"main_loss") for path in (tree / "run" / "tensorboard").iterdir())
    assert "steps: 1" in (tree / "run" / "config.yaml").read_text() and events == 1
    assert train("--out=run") == 2


def test_a_start_that_failed_goes_on_once_its_configuration_is_mended(tree, capsys):
    assert train("--out=run", "--train.batch_size=1") == 1
    config = tree / "run" / "config.yaml"
    config.write_text(config.read_text().replace("batch_size: 1", "batch_size: 2"))
    assert main(["train", "--resume=run"]) == 0


def test_a_run_in_the_home_folder_is_resumed(tree, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tree))
    assert main(["train", "--resume=~/run"]) == 2
    assert f"{tree}/run" in said(capsys)


def test_a_table_of_what_pretrained_weights_fill_is_printed(tree):
    save_checkpoint(PSPNet(18, classes=3, output_stride=16, pretrained=False).state_dict(), tree / "first.pth")
    recipe("{root: ., classes: [sky, ground]}")
    options = [*OPTIONS, "--train.steps=1", "--model.pretrained=first.pth", str(tree / "mine.yaml")]
    command = [sys.executable, "-m", "psp_fast", "train", *options]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"new +.*cls\.4", done.stderr) and done.stderr.count("layer4") == 1


def test_output_that_nobody_reads_stops_no_command(tree):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "psp_fast", "info"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_recipe_of_the_users_in_the_output_folder_is_kept(tree, capsys):
    (tree / "run").mkdir()
    (tree / "run" / "config.yaml").write_text("# mine")
    assert train("--out=run") == 2
    assert "run already holds a run" in said(capsys)
    assert train("--out=run2", "--train.batch_size=1") == 1
    (tree / "run2" / "config.yaml").write_text("# edited")
    assert train("--out=run2") == 2
    assert (tree / "run" / "config.yaml").read_text() == "# mine"
    assert (tree / "run2" / "config.yaml").read_text() == "# edited"


@pytest.mark.parametrize("name", ["best.pth", "last.pth", "curves.png"])
def test_files_that_a_run_would_replace_are_kept(tree, capsys, name):
    (tree / "run").mkdir()
    (tree / "run" / name).write_text("mine")
    assert train("--out=run") == 2
    assert f"run holds {name}, which a run would replace: choose another --out" in said(capsys)
    (tree / "run" / "config.yaml").write_text("data: {root: ., classes: [sky, ground]}\n")
    (tree / "run" / "best.pth").write_text("mine")
    (tree / "run" / "last.pth").unlink(missing_ok=True)
    assert main(["train", "--resume", "run"]) == 1
    assert "last.pth is gone: a run that starts at step 0 would replace best.pth" in said(capsys)
    assert sorted(path.name for path in (tree / "run").iterdir()) == sorted(
        {".lock", "best.pth", "config.yaml", name} - {"last.pth"}
    )


def test_a_folder_is_one_trainings(tree, capsys):
    """The lock is a process's own: another holds it here."""
    reader, writer = os.pipe()
    fork = multiprocessing.get_context("fork")

    def hold():
        with locked(tree / "run"):
            os.write(writer, b"1")
            signal.pause()

    process = fork.Process(target=hold)
    process.start()
    try:
        os.read(reader, 1)
        assert train("--out=run") == 2
        assert "run cannot be used: another process is writing to run: wait until it ends" in said(capsys)
        (tree / "run" / "config.yaml").write_text("data: {root: ., classes: [sky, ground]}\n")
        assert main(["train", "--resume=run"]) == 1
        assert "another process is writing to run" in said(capsys)
    finally:
        process.kill()
        process.join()


def test_a_run_that_torchrun_starts_again_goes_on(tree, capsys, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    started, numbered = Config(out="run"), Config()
    for config in (started, numbered):
        with new_folder(config, "mine"):
            pass
        assert before_restart(config, "mine") is None
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert before_restart(started, "mine") == Path("run")
    assert before_restart(numbered, "mine") == Path("runs/mine-1")
    assert before_restart(Config(out="run", device="cpu"), "mine") is None
    assert before_restart(numbered, "other") is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another job")
    assert before_restart(started, "mine") is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun's own, of every launch
    with new_folder(Config(out="unnamed"), "mine"):
        assert before_restart(Config(out="unnamed"), "mine") == Path("unnamed")
    monkeypatch.setattr("psp_fast.engine.run._started_at", lambda process: "another time")
    assert before_restart(Config(out="unnamed"), "mine") is None
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another job")
    assert train("--out=mine") == 0 and train("--out=mine") == 0
    assert capsys.readouterr().out.count("going on at step 2\n") == 1


@pytest.mark.parametrize(
    ("arguments", "positional", "options"),
    [
        ("--out p RUN a.jpg --eval.mode=slide b.jpg", "RUN a.jpg b.jpg", "--out p --eval.mode=slide"),
        ("--pictures RUN", "RUN", "--pictures"),
        ("--pictures 3 RUN", "RUN", "--pictures 3"),
        ("IN --to mmseg OUT", "IN OUT", "--to mmseg"),
        ("--dynamic RUN OUT -h", "RUN OUT", "--dynamic -h"),
        ("--out --eval.mode slide RUN", "RUN", "--out --eval.mode slide"),
        ("RUN --optim.lr -1 --out", "RUN", "--optim.lr -1 --out"),
        ("--out p -- RUN -a.jpg --b", "RUN -a.jpg --b", "--out p"),
    ],
)
def test_options_may_stand_anywhere(arguments, positional, options):
    assert _separated(arguments.split()) == (positional.split(), options.split())


def test_convert_replaces_nothing(tree, capsys):
    (tree / "last.pth").write_text("a checkpoint")
    assert main(["convert", "last.pth", "last.pth"]) == 1
    assert "last.pth is there already: choose another name, or remove it first" in said(capsys)
    assert (tree / "last.pth").read_text() == "a checkpoint"


def test_weights_converted_without_a_recipe_are_evaluated_on_one(tree, capsys):
    model = PSPNet(18, classes=2, output_stride=16, pretrained=False)
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, "semseg.pth")
    assert main(["convert", "semseg.pth", "mine.pth"]) == 0
    assert "for psp-fast predict and export; evaluate takes its data from --recipe" in capsys.readouterr().out
    (tree / "val.txt").rename("other.txt")
    recipe("{root: ., classes: [sky, ground], val_list: other.txt}, eval: {mode: slide, crop: [33, 33]}")
    assert main(["evaluate", "mine.pth", "--device=cpu"]) == 1
    assert "mine.pth names no data: give --recipe RECIPE" in said(capsys)
    assert main(["evaluate", "--recipe", "mine.yaml", "mine.pth", "--device=cpu", "--pictures=1"]) == 0
    assert "ground" in capsys.readouterr().out
    assert "a sliding window of 33x33" in (tree / "evaluation.html").read_text()
    recipe("{root: ., classes: [a, b, c], val_list: other.txt}")
    assert main(["evaluate", "mine.pth", "--recipe", "mine.yaml", "--device=cpu"]) == 2
    assert "was trained on the classes class 0, class 1, not on a, b, c" in said(capsys)


def test_short_memory_is_no_traceback(capsys, monkeypatch):
    def short():
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"
        )

    monkeypatch.setattr("psp_fast.info.report", short)
    assert main(["info"]) == 1
    assert "there is not enough memory: lower train.batch_size or augment.crop" in said(capsys)


def test_check_data(tree, capsys):
    train("--out=run")
    assert main(["check-data", "mine.yaml", "--out", "report"]) == 0
    assert "6 samples, 6 without a problem" in capsys.readouterr().out
    assert Image.open("report/classes_train.png").width > 200
    Image.fromarray(np.full((40, 48), 7, np.uint8)).save("3.png")
    assert main(["check-data", "mine.yaml", "--out", "report"]) == 1
    assert "3.png: label ids other than 0..1 and 255 (ignored): 7 (1920 pixels" in capsys.readouterr().out


def test_check_data_overwrites_nothing(tree, capsys):
    (tree / "mine.yaml").write_text(f"data: {{classes: {CLASSES}}}\n")
    (tree / "classes_train.png").write_text("mine")
    for _ in range(2):
        assert main(["check-data", "mine.yaml"]) == 0
    assert (tree / "classes_train.png").read_text() == "mine"
    assert sorted(p.name for p in (tree / "check-data").iterdir()) == [
        "classes_train-2.png",
        "classes_train.png",
        "classes_val-2.png",
        "classes_val.png",
    ]
    assert main(["check-data", "mine.yaml", "--out=."]) == 0
    assert (tree / "classes_train.png").read_text() == "mine"
    assert "class histogram: classes_train-2.png" in capsys.readouterr().out


def masks_of_0_and_255(tree):
    for path in tree.glob("?.png"):
        Image.fromarray(np.asarray(Image.open(path)) * np.uint8(255)).save(path)


def test_masks_of_0_and_255_are_warned_of(tree, capsys):
    masks_of_0_and_255(tree)
    assert train("--out=run", "--train.validate_every=1") == 0
    printed = capsys.readouterr()
    for where in ("the 4 training crops so far", "the validation labels"):
        assert printed.err.count(f"psp-fast: warning: no pixel of {where} has the class ground: only the value 0") == 1
    assert "set data.label_ids to [0, 255]" in printed.err
    assert "mIoU 100.00 % over 1 of 2 classes" in printed.out
    assert main(["evaluate", "run"]) == 0
    printed = capsys.readouterr()
    assert "warning: no pixel of the validation labels has the class ground" in printed.err
    assert "(over 1 of 2 classes)" in printed.out
    assert main(["check-data", "mine.yaml", "--out=report"]) == 0
    assert "warning: no pixel of the 6 labels has the class ground: only the value 0" in capsys.readouterr().out
    assert main(["check-data", "mine.yaml", "--out=report", "--data.label_ids=[0,255]"]) == 0
    assert "warning" not in capsys.readouterr().out


def test_large_images_are_read_without_a_warning(tree, capsys, monkeypatch, recwarn):
    """Up to twice the size at which Pillow starts to warn; larger ones are refused, with their names."""
    train("--out=run")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 48 - 1)
    assert main(["check-data", "mine.yaml", "--out", "report"]) == 0
    assert not [w for w in recwarn if "exceeds limit" in str(w.message)]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 48 // 2 - 1)
    assert main(["check-data", "mine.yaml", "--out", "report"]) == 1
    assert "0.png: is too large to decode safely" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "build", "samples", "named"),
    [
        ("ade20k", trees.ade20k, (3, 2), "and 120 more classes"),
        ("voc", lambda root: trees.sbd(trees.voc(root)), (4, 2), "tvmonitor"),
        ("cityscapes", trees.cityscapes, (4, 4), "motorcycle"),
        ("camvid", trees.camvid, (3, 2), "bicyclist"),
        ("folder.yaml", trees.folder, (3, 3), "ground"),
    ],
)
def test_check_data_of_each_data_set(tmp_path, monkeypatch, capsys, recipe, build, samples, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.yaml").write_text("data: {dataset: folder, classes: [sky, ground, tree]}\n")
    assert main(["check-data", recipe, "--data.root", str(build(tmp_path / "data")), "--out", "report"]) == 0
    printed = capsys.readouterr().out
    for split, count in zip(("train", "val"), samples, strict=True):
        assert f"{split}: {count} samples, {count} without a problem" in printed
        assert (tmp_path / "report" / f"classes_{split}.png").exists()
    assert printed.count(named) >= 2
    assert ("has the class train" in printed) == (recipe == "cityscapes")


def truncate(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda tree: (tree / "2.jpg").unlink(), "2.jpg"),
        (lambda tree: truncate(tree / "2.jpg"), "2.jpg"),
        (
            lambda tree: Image.fromarray(np.full((40, 48), 9, np.uint8)).save(tree / "2.png"),
            "2.png: label ids other than 0..1 and 255",
        ),
        (lambda tree: Image.fromarray(np.zeros((40, 47), np.uint8)).save(tree / "2.png"), "the image is 48x40"),
        (lambda tree: (tree / "train.txt").write_text("\n"), "train.txt: the list is empty"),
        (lambda tree: (tree / "train.txt").unlink(), "train.txt"),
        (
            lambda tree: (tree / "train.txt").write_text("0.jpg 0.png\n"),
            "the training set has 1 images, fewer than train.batch_size 4",
        ),
    ],
)
@pytest.mark.parametrize("workers", ["0", "1"])
def test_training_on_bad_data_stops_with_the_files_name(tree, capsys, harm, message, workers):
    harm(tree)
    assert train("--train.steps=3", f"--train.workers={workers}") == 1
    error = said(capsys)
    assert message in error
    assert list(tree.glob("runs/*/last.pth")) == []


def test_one_class_is_not_a_data_set(tree, capsys):
    assert train(classes="[sky]") == 1
    assert "at least two classes" in said(capsys)


def test_an_output_folder_that_cannot_be_written(tree, capsys):
    (tree / "file").touch()
    assert train("--out=file/run") == 2
    assert "the output folder file/run cannot be used: file/run cannot be written: Not a directory" in said(capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["evaluate", "run", "--out=file/found"],
        ["predict", "run", "0.jpg", "--out=file/found"],
        ["check-data", "mine.yaml", "--out=file/found"],
        ["export", "run", "file/found/net.onnx"],
    ],
)
def test_a_folder_that_cannot_be_written_is_told_first(tree, capsys, monkeypatch, arguments):
    train("--out=run")
    (tree / "file").touch()
    reads = []
    monkeypatch.setattr(Image, "open", lambda *given: reads.append(given))
    assert main(arguments) == 1
    assert f"file/found cannot be written: {tree / 'file'} is a file; choose another folder" in said(capsys)
    assert reads == []


def test_a_killed_loading_process_is_no_traceback(capsys, monkeypatch):
    def killed():
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr("psp_fast.info.report", killed)
    assert main(["info"]) == 1
    assert "a process that loads images was killed, as where memory is short" in said(capsys)


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tree, capsys):
    from psp_fast.checkpoints import read_checkpoint

    assert train("--out=run", "--optim.lr=1e6", "--train.steps=40") == 1
    assert "not finite" in said(capsys)
    if (tree / "run" / "last.pth").exists():
        assert all(value.isfinite().all() for value in read_checkpoint("run/last.pth")["state_dict"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--train.stepz=3"], "train.stepz"),
        (["train", "nothing"], "no recipe 'nothing'"),
        (["train", "a", "b"], "expected one RECIPE, got a b"),
        (["train", "--resume", "nowhere"], "nowhere holds no run to resume"),
        (["train", "--resume", "nowhere", "--optim.lr=1"], "--resume takes the folder of a run and no other option"),
        (["train", "--train.log_every=0"], "train.log_every must be at least 1, got 0"),
        (["train", "--data.train_splits=[]"], "data.train_splits and data.val_splits must name at least one split"),
        (["train", "voc", "--data.classes=[a,b]"], "data.classes is for data sets of your own: voc has its own"),
        (["train", "camvid", "--data.val_list=a.txt"], "data.val_list is not read with data.dataset camvid: set data."),
        (["train", "--data.dataset=list", "--data.val_splits=[a]"], "data.val_splits is not read with data.dataset "),
        (["train", "voc", "--data.train_splits=[test]"], "voc has no split 'test': choose of train, val, trainval"),
        (["check-data", "ade20k"], "there is no annotations in it or ADEChallengeData2016"),
        (
            ["check-data", "ade20k", "--data.root=nowhere"],
            "nowhere: there is no such folder; data.root is where ade20k",
        ),
        (["check-data", "0.png"], "0.png is not a recipe: it is not UTF-8 text"),
        (["train", "--augment.cat_max_ratio=0"], "augment.cat_max_ratio must be in (0, 1]"),
        (["train", "--eval.stride=2"], "eval.stride must be in (0, 1]"),
        (["train", "--eval.scales=[1,0]"], "eval.scales must be one or more positive numbers"),
        (["train", "--eval.base_size=0"], "eval.base_size must be 1 to 65535 pixels each way, or null, got 0"),
        (["train", "--train.batch_size=1", "--train.workers=0", "--device=cpu"], "ppm.features.0.2"),
        (["train", "--model.layers=19"], "layers must be one of"),
        (["train", "--device=tpu"], "device 'tpu'"),
        (["train", "--model.pretrained=nowhere.pth"], "no pretrained weights at nowhere.pth"),
        (["evaluate"], "no checkpoint given"),
        (["evaluate", "nowhere.pth"], "no checkpoint at nowhere.pth"),
        (["predict", "nowhere.pth", "a.jpg"], "no checkpoint at nowhere.pth"),
        (["evaluate", "0.jpg"], "0.jpg"),
        (["info", "--all"], "takes no arguments"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(tree, capsys, arguments, message):
    assert main(arguments) in (1, 2)
    assert message in said(capsys)
    assert not (tree / "runs").exists() or arguments[0] == "train"


def test_usage(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "check-data" in capsys.readouterr().out
    assert main(["fly"]) == 2
    assert "no command 'fly'" in capsys.readouterr().err


def test_info(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert "torch" in printed and "pyramid_pool" in printed
