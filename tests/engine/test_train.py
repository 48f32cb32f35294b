"""Training: that it learns, what it keeps, how it stops, and that killing it changes nothing."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

pytest.importorskip("jsonargparse")

from psp_fast.checkpoints import read_checkpoint, save_checkpoint
from psp_fast.configs import ScenesConfig, config_to_yaml
from psp_fast.data.scenes import CLASSES
from psp_fast.engine import resuming
from psp_fast.engine.distributed import Ranks
from psp_fast.engine.evaluate import Evaluation
from psp_fast.engine.metrics import Metrics
from psp_fast.engine.optim import build_optimizer, poly_lr
from psp_fast.engine.run import BEST, LAST, build_model, load_trained
from psp_fast.engine.train import Trainer
from psp_fast.errors import CheckpointError, ConfigError, TrainingError
from tests.engine import small
from tests.processes import run_ranks

ONE = Ranks(0, 1, torch.device("cpu"))


def train(folder, checkpoint=None, **changes):
    return Trainer(small.config(**changes), ONE, checkpoint).run(folder)


def weights(folder, name=LAST):
    return read_checkpoint(folder / name)["state_dict"]


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "whole"
    return folder, train(folder)


def test_a_run_leaves_its_results(finished):
    folder, metrics = finished
    results = {"best.pth", "curves.png", "examples.png", "history.json", "last.pth", "metrics.json", "tensorboard"}
    assert results <= {p.name for p in folder.iterdir()}
    history = json.loads((folder / "history.json").read_text())
    assert [row["step"] for row in history if "main_loss" in row] == [2, 4, 6]
    assert [row["step"] for row in history if "miou" in row] == [4, 6]
    assert history[-1]["miou"] == metrics.miou
    assert json.loads((folder / "metrics.json").read_text())["miou"] == metrics.miou


def test_a_trained_model_is_rebuilt_from_its_checkpoint(finished):
    folder, _ = finished
    trained = load_trained(folder / BEST, torch.device("cpu"))
    assert not trained.model.training
    assert len(trained.classes) == len(trained.palette) == trained.model.cls[4].out_channels
    assert_same_weights(trained.model.state_dict(), weights(folder, BEST))


def test_training_learns_its_few_images(tmp_path):
    train(
        tmp_path,
        train__steps=24,
        train__validate_every=0,
        train__checkpoint_every=100,
        augment__scale=(1, 1),
        augment__degrees=0,
    )
    losses = [row["main_loss"] for row in json.loads((tmp_path / "history.json").read_text()) if "main_loss" in row]
    assert losses[-1] < 0.75 * losses[0]


def test_poly_learning_rate_and_head_factor():
    config = small.config().optim
    assert poly_lr(config, 0, 100) == 0.01
    assert poly_lr(config, 50, 100) == pytest.approx(0.01 * 0.5**0.9)
    model = build_model(small.config().model, 5)
    optimizer = build_optimizer(model, config)
    assert [group["lr_factor"] for group in optimizer.param_groups] == [1] * 5 + [10] * 3
    counted = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert counted == sum(p.numel() for p in model.parameters())


def test_deterministic_mode_reaches_torch():
    try:
        Trainer(small.config(train__deterministic=True), ONE)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_and_clipping_train(tmp_path, amp):
    tiny = {"augment__crop": (17, 17), "train__batch_size": 2, "train__steps": 2, "train__validate_every": 0}
    train(tmp_path, train__amp=amp, optim__clip_grad_norm=1.0, **tiny)
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


def test_a_loss_that_is_not_finite_stops_with_its_step(tmp_path, monkeypatch):
    update = Trainer._update

    def poisoned(self, images, labels):
        if self.step == 4:
            images = torch.full_like(images, np.nan)
        update(self, images, labels)

    monkeypatch.setattr(Trainer, "_update", poisoned)
    with pytest.raises(TrainingError, match=r"loss of step 5 is not finite.*optim\.lr"):
        train(tmp_path, train__log_every=10, train__validate_every=0)
    kept = read_checkpoint(tmp_path / LAST)
    assert kept["step"] == 4
    assert all(value.isfinite().all() for value in kept["state_dict"].values())


def test_weights_that_are_not_finite_are_never_saved(tmp_path, monkeypatch):
    update = Trainer._update

    def ruined(self, images, labels):
        update(self, images, labels)
        if self.step == 2:
            with torch.no_grad():
                self.model.cls[4].bias.fill_(np.inf)

    monkeypatch.setattr(Trainer, "_update", ruined)
    with pytest.raises(TrainingError, match="weights are not finite after step 3"):
        train(tmp_path, train__checkpoint_every=1)
    assert read_checkpoint(tmp_path / LAST)["step"] == 2


def start_process(folder, *options, torchrun=0):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(torchrun)] if torchrun else []
    arguments = [sys.executable, *launcher, "-m", "psp_fast", "train", "--resume", str(folder), *options]
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def test_a_killed_and_resumed_run_ends_bit_identical(tmp_path):
    """SIGKILL at three different moments; dropout, augmentation, data order, momentum and workers all take part."""
    config = config_to_yaml(
        small.config(train__steps=11, train__workers=1, train__validate_every=4, train__checkpoint_every=1)
    )
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(config)
    whole = start_process(tmp_path / "whole")
    finish(whole)
    last = tmp_path / "killed" / LAST
    for least_step, delay in ((2, 0.0), (5, 0.2), (8, 0.05)):
        process = start_process(tmp_path / "killed")
        deadline = time.monotonic() + 120
        while not (last.exists() and read_checkpoint(last)["step"] >= least_step):
            assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
            time.sleep(0.2)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert read_checkpoint(last)["step"] < 11
    finish(start_process(tmp_path / "killed"))
    assert_same_weights(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    histories = [json.loads((tmp_path / name / "history.json").read_text()) for name in ("whole", "killed")]
    clocks = {"seconds", "images_per_second"}
    curves = [[{k: v for k, v in row.items() if k not in clocks} for row in history] for history in histories]
    assert curves[0] == curves[1]


class InFloat64(Trainer):
    """The same training without float32's rounding, which ReLUs near zero turn into visible differences."""

    def _update(self, images, labels):
        super()._update(images.double(), labels)


def train_in_float64(rank, world, folder):
    """Into folder/valid and folder/all, the two means of the loss."""
    torch.set_default_dtype(torch.float64)
    try:
        for loss_mean in ("valid", "all"):
            # Small scales and rotation leave the processes unequal shares of ignored pixels, as a mean of means shows.
            short = {"train__steps": 3, "train__validate_every": 0, "train__loss_mean": loss_mean}
            config = small.config(model__dropout=0.0, augment__scale=(0.5, 0.9), **short)
            trainer = InFloat64(config, Ranks(rank, world, torch.device("cpu")))
            trainer._validation_due = lambda: False  # evaluation reads float32 images
            trainer.config.train.checkpoint_every = 3
            with pytest.MonkeyPatch.context() as patch:
                nothing = Evaluation(Metrics(0, 0, 0, 0, [], [], []), torch.zeros(0, 0), [])
                patch.setattr("psp_fast.engine.train.evaluate", lambda *_, found=nothing: found)
                trainer.run(folder / loss_mean)
    finally:
        torch.set_default_dtype(torch.float32)


def test_two_processes_equal_one_on_the_same_global_batch(tmp_path):
    train_in_float64(0, 1, tmp_path / "one")
    run_ranks(train_in_float64, 2, tmp_path / "two")
    losses = set()
    for loss_mean in ("valid", "all"):
        one, two = (read_checkpoint(tmp_path / name / loss_mean / LAST) for name in ("one", "two"))
        for key, value in one["state_dict"].items():
            assert value.dtype in (torch.float64, torch.int64)
            torch.testing.assert_close(two["state_dict"][key], value, rtol=1e-8, atol=1e-10, msg=key)
        for row, other in zip(one["history"], two["history"], strict=True):
            assert row["main_loss"] == pytest.approx(other["main_loss"], rel=1e-10)
        losses.add(one["history"][0]["main_loss"])
    assert len(losses) == 2


def test_torchrun_trains_on_two_processes(tmp_path):
    config = config_to_yaml(
        small.config(train__steps=2, train__validate_every=0, train__log_every=1, model__dropout=0.0)
    )
    for name, processes in (("one", 0), ("two", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(config)
        output = finish(start_process(tmp_path / name, torchrun=processes))
        assert output.count("picture: ") == 1, output  # one process prints
    first = [json.loads((tmp_path / name / "history.json").read_text())[0]["main_loss"] for name in ("one", "two")]
    assert first[1] == pytest.approx(first[0], rel=1e-5)


def test_checkpoints_that_cannot_be_resumed_are_named(finished, tmp_path):
    folder, _ = finished
    with pytest.raises(
        CheckpointError, match=r"cannot be resumed from: it lacks best, history, optimizer, scaler, seconds, validated"
    ):
        train(tmp_path, folder / BEST)
    content = read_checkpoint(folder / LAST)
    for name, harm in (("optimizer", {"state": 3}), ("step", "four"), ("best", [1]), ("history", None)):
        save_checkpoint({**content, name: harm}, tmp_path / LAST)
        with pytest.raises(
            CheckpointError, match=rf"last\.pth: .*{name}.* is damaged|last\.pth is damaged: its field .{name}"
        ):
            train(tmp_path / "run", tmp_path / LAST)
    assert not (tmp_path / "run").exists()
    content["state_dict"].pop("cls.4.bias")
    save_checkpoint(content, tmp_path / LAST)
    with pytest.raises(CheckpointError, match="holds another model"):
        train(tmp_path, tmp_path / LAST)


def test_a_run_killed_before_its_validation_validates_when_resumed(tmp_path, monkeypatch):
    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_validate", killed)
        train(tmp_path)
    kept = read_checkpoint(tmp_path / LAST)
    assert (kept["step"], kept["validated"]) == (4, False)
    train(tmp_path, tmp_path / LAST)
    history = json.loads((tmp_path / "history.json").read_text())
    assert [row["step"] for row in history if "miou" in row] == [4, 6]


def test_auxiliary_weight_and_head_learning_rate_take_effect(tmp_path):
    once = {"train__steps": 1, "train__validate_every": 0, "model__dropout": 0.0, "optim__weight_decay": 0.0}
    variants = {
        "plain": {},
        "no aux": {"train__aux_weight": 0.0},
        "slow heads": {"optim__head_lr_factor": 1.0},
        "clipped": {"optim__clip_grad_norm": 1e-6},
    }
    moved = {}
    for name, changes in variants.items():
        train(tmp_path / name, **once, **changes)
        moved[name] = weights(tmp_path / name)
    torch.manual_seed(0)
    start = build_model(small.config(model__dropout=0.0).model, len(CLASSES)).state_dict()

    def distance(name, key):
        return (moved[name][key] - start[key]).norm()

    assert distance("plain", "aux.0.weight") > 0 and distance("no aux", "aux.0.weight") == 0
    ratio = distance("plain", "cls.4.weight") / distance("slow heads", "cls.4.weight")
    assert ratio == pytest.approx(10, rel=1e-3)
    assert distance("clipped", "cls.4.weight") <= 1.1 * 0.1 * 1e-6


@pytest.mark.parametrize("zoom_factor", [8, 1])
def test_the_loss_is_a_mean_over_valid_or_all_pixels(zoom_factor):
    """Against PyTorch's cross entropy on the network's own logits, where a third of the labels are ignored."""
    torch.manual_seed(2)
    images, labels = torch.randn(2, 3, *small.SIZE), torch.randint(0, len(CLASSES), (2, *small.SIZE))
    labels[:, :14] = 255
    for loss_mean in ("valid", "all"):
        changes = {"model__zoom_factor": zoom_factor, "model__dropout": 0.0, "train__loss_mean": loss_mean}
        trainer = Trainer(small.config(**changes), ONE)
        with torch.no_grad():
            logits = trainer.model._logits(images)[0]
        resized = trainer._resized(labels, images)
        full = torch.nn.functional.interpolate(logits, resized.shape[1:], mode="bilinear", align_corners=True)
        total = torch.nn.functional.cross_entropy(full, resized, ignore_index=255, reduction="sum")
        count = (resized != 255).sum() if loss_mean == "valid" else resized.numel()
        trainer._update(images, labels)
        assert trainer.pending[0][0].item() == pytest.approx((total / count).item(), rel=1e-4)


def test_zoom_factor_below_8_trains_on_smaller_labels(tmp_path):
    metrics = train(tmp_path, model__zoom_factor=2, train__steps=1, eval__mode="slide", eval__crop=(33, 33))
    assert 0 <= metrics.miou <= 1


EDITS = {
    "model.layers 18, not 34": {"model__layers": 34},
    r"augment.crop \(41, 49\), not \(33, 33\)": {"augment__crop": (33, 33)},
    "train.seed 0, not 1": {"train__seed": 1},
    "train.batch_size 4, not 2": {"train__batch_size": 2},
    "data.scenes.train 10, not 9": {"data__scenes": ScenesConfig(height=49, width=57, train=9, val=3, seed=1)},
    "train.steps is 5, but .* is at step 6": {"train__steps": 5},
}


@pytest.mark.parametrize("message", EDITS)
def test_an_edit_of_what_was_computed_is_refused_by_name(finished, message):
    folder, _ = finished
    with pytest.raises(ConfigError, match=message):
        Trainer(small.config(**EDITS[message]), ONE, folder / LAST)


def test_reordered_classes_are_refused(tmp_path):
    saved = dataclasses.asdict(small.config(data__dataset="list", data__classes=["a", "b"]))
    reordered = small.config(data__dataset="list", data__classes=["b", "a"])
    with pytest.raises(ConfigError, match=r"data.classes \['a', 'b'\], not \['b', 'a'\]"):
        resuming.changes(saved, reordered, 0, tmp_path)
    moved = small.config(data__dataset="list", data__classes=["a", "b"], data__root="elsewhere", model__recompute=True)
    assert resuming.changes(saved, moved, 0, tmp_path) == ["data.root . -> elsewhere"]


def test_an_edit_of_what_is_to_come_is_applied_and_told(finished, tmp_path, capsys):
    folder, _ = finished
    new = {"optim__momentum": 0.5, "optim__weight_decay": 0.25, "optim__head_lr_factor": 2.0, "train__amp": "fp16"}
    content = read_checkpoint(folder / LAST)
    save_checkpoint({**content, "samples": 11}, tmp_path / LAST)
    trainer = Trainer(small.config(**new, train__steps=7), ONE, tmp_path / LAST)
    groups = trainer.optimizer.param_groups
    assert {(group["momentum"], group["weight_decay"]) for group in groups} == {(0.5, 0.25)}
    assert [group["lr_factor"] for group in groups] == [1] * 5 + [2] * 3
    kept = [state["momentum_buffer"] for state in content["optimizer"]["state"].values()]
    found = [state["momentum_buffer"] for state in trainer.optimizer.state_dict()["state"].values()]
    assert len(kept) == len(found) and all(map(torch.equal, kept, found))
    assert capsys.readouterr().out == (
        "going on at step 6, with optim.head_lr_factor 10.0 -> 2.0, optim.momentum 0.9 -> 0.5, "
        "optim.weight_decay 0.0001 -> 0.25, train.steps 6 -> 7, train.amp off -> fp16, training images 11 -> 10\n"
    )
    assert trainer._state()["config"]["optim"]["momentum"] == 0.5


def test_tensorboard_that_cannot_be_written_does_not_stop_training(tmp_path, monkeypatch, capsys):
    def full(*given, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    train(tmp_path, train__steps=2, train__log_every=1, train__validate_every=0)
    assert read_checkpoint(tmp_path / LAST)["step"] == 2
    told = f"going on without {tmp_path / 'tensorboard'}: it cannot be written (No space left on device)"
    assert capsys.readouterr().err.count(told) == 1
