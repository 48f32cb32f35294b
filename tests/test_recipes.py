"""The recipes of published networks: the numbers of their sources, and that every command in docs/recipes.md parses."""

import re
import shlex
from pathlib import Path

import pytest
import torch

pytest.importorskip("jsonargparse")

from psp_fast.configs import config_parser, parse_config, recipe_file
from psp_fast.configs.loading import RECIPES
from psp_fast.data import LAYOUTS
from psp_fast.engine.run import build_model
from psp_fast.engine.samples import build_train_transform
from psp_fast.engine.windows import window_starts
from psp_fast.normalisation import MEAN, STD

DOCS = Path(__file__).parents[1] / "docs" / "recipes.md"
COMMANDS = [
    shlex.split(line, comments=True)
    for line in re.findall(r"psp-fast (?:train|check-data) [a-z][^`\n]*", DOCS.read_text())
]


def parse(recipe, *options):
    parser = config_parser("psp-fast train", "", "")
    return parse_config(parser, ["--config", str(recipe_file(recipe)), *options])


def table(number):
    """The configurations of the commands of one of the paper's tables, in its order."""
    part = DOCS.read_text().split(f"\nTable {number}, ")[1].split("\nTable ")[0]
    return [parse(*shlex.split(line)) for line in re.findall(r"`psp-fast train ([^`]*)`", part)]


@pytest.mark.parametrize(
    ("recipe", "crop", "steps", "base_size", "splits"),
    [
        ("ade20k", 473, 150_000, 512, ["train"]),
        ("voc", 473, 30_000, 512, ["train_aug"]),
        ("cityscapes", 713, 90_000, 2048, ["train"]),
    ],
)
def test_the_papers_and_semsegs_numbers(recipe, crop, steps, base_size, splits):
    config = parse(recipe)
    model, augment, optim, train, test = config.model, config.augment, config.optim, config.train, config.eval
    assert (config.data.dataset, config.data.train_splits, config.data.val_splits) == (recipe, splits, ["val"])
    assert (model.layers, model.bins, model.zoom_factor, model.dropout) == (50, [1, 2, 3, 6], 8, 0.1)
    assert (model.stem, model.dilation, model.align_corners, model.pretrained) == ("deep", "semseg", True, True)
    assert (augment.preset, augment.crop, augment.scale, augment.mirror) == ("semseg", (crop, crop), (0.5, 2.0), True)
    assert (augment.degrees, augment.blur, augment.mean, augment.std) == (10, True, MEAN, STD)
    assert (optim.lr, optim.head_lr_factor, optim.weight_decay, optim.momentum) == (0.01, 10, 1e-4, 0.9)
    assert (optim.power, optim.min_lr) == (0.9, 0)
    assert (train.steps, train.batch_size, train.aux_weight, train.loss_mean) == (steps, 16, 0.4, "valid")
    assert (test.mode, test.crop, test.base_size, test.absent) == ("slide", (crop, crop), base_size, "zero")
    assert (test.average, test.scales, test.mirror) == ("probabilities", [1.0], True)
    assert test.stride == pytest.approx(2 / 3, abs=1e-12)


@pytest.mark.parametrize(
    ("recipe", "crop", "base_scale", "steps", "batch_size", "splits"),
    [
        ("ade20k", (512, 512), (2048, 512), 160_000, 16, ["train"]),
        ("voc", (512, 512), (2048, 512), 40_000, 16, ["train_aug"]),
        ("cityscapes", (512, 1024), (2048, 1024), 80_000, 8, ["train"]),
    ],
)
def test_mmsegmentations_numbers(recipe, crop, base_scale, steps, batch_size, splits):
    config = parse(f"{recipe}_mmseg")
    model, augment, optim, train = config.model, config.augment, config.optim, config.train
    assert (config.data.dataset, config.data.train_splits, config.data.val_splits) == (recipe, splits, ["val"])
    assert (model.layers, model.bins, model.zoom_factor, model.dropout) == (50, [1, 2, 3, 6], 8, 0.1)
    assert (model.stem, model.dilation, model.align_corners) == ("v1c", "mmseg", False)
    assert (augment.preset, augment.crop, augment.base_scale, augment.scale) == ("mmseg", crop, base_scale, (0.5, 2.0))
    assert (augment.cat_max_ratio, augment.mirror, augment.mean, augment.std) == (0.75, True, MEAN, STD)
    assert (optim.lr, optim.head_lr_factor, optim.weight_decay, optim.momentum) == (0.01, 1, 5e-4, 0.9)
    assert (optim.power, optim.min_lr) == (0.9, 1e-4)
    assert (train.steps, train.batch_size, train.aux_weight, train.loss_mean) == (steps, batch_size, 0.4, "all")
    test = config.eval
    assert (test.mode, test.average, test.absent) == ("whole", "logits", "skip")
    assert (test.base_size, test.scales, test.mirror) == (base_scale, [1.0], False)


@pytest.mark.parametrize("recipe", [name for s in ("ade20k", "voc", "cityscapes") for name in (s, f"{s}_mmseg")])
def test_networks_and_transforms_can_be_made(recipe):
    config = parse(recipe, "--model.pretrained", "false")
    build_train_transform(config.augment)
    with torch.device("meta"):
        model = build_model(config.model, len(LAYOUTS[config.data.dataset].classes))
    assert model.cls[4].out_channels == len(LAYOUTS[config.data.dataset].classes)


def test_the_pages_commands_parse():
    assert len(COMMANDS) > 35
    for _, _, recipe, *options in COMMANDS:
        parse(recipe, *options)
    named = {command[2] for command in COMMANDS if command[1] == "train"}
    assert (
        {path.stem for path in RECIPES.glob("*.yaml")} - {"scenes", "camvid"}
        == named - {"RECIPE"}
        == {name for s in ("ade20k", "voc", "cityscapes") for name in (s, f"{s}_mmseg")}
    )


def test_table_1_has_every_pyramid():
    baseline, *pyramids = table(1)
    assert (baseline.model.use_ppm, baseline.train.aux_weight) == (False, 0.4)
    assert all(config.model.use_ppm for config in pyramids)
    assert [(tuple(c.model.bins), c.model.pool, c.model.dim_reduction) for c in pyramids] == [
        (bins, pool, reduced) for reduced in (False, True) for bins in ((1,), (1, 2, 3, 6)) for pool in ("max", "avg")
    ]
    for config in pyramids:
        with torch.device("meta"):
            model = build_model(parse_without_weights(config).model, 150)
        levels = len(config.model.bins) * (2048 // len(config.model.bins) if config.model.dim_reduction else 2048)
        assert model.cls[0].in_channels == 2048 + levels


def parse_without_weights(config):
    config.model.pretrained = False
    return config


def test_table_2_has_the_weights():
    found = table(2)
    assert [config.train.aux_weight for config in found] == [0, 0.3, 0.4, 0.6, 0.9, 1]
    assert not any(config.model.use_ppm for config in found)


def test_table_3_has_the_depths():
    assert [config.model.layers for config in table(3)] == [50, 101, 152, 269]


def test_table_4_goes_step_by_step():
    baseline, augmented, auxiliary, pyramid, deep, multi_scale = table(4)
    augment = baseline.augment
    assert (augment.scale, augment.mirror, augment.degrees, augment.blur) == ((1.0, 1.0), False, 0, False)
    assert augmented.augment == parse("ade20k").augment
    assert [config.train.aux_weight for config in (baseline, augmented, auxiliary)] == [0, 0, 0.4]
    assert not (auxiliary.model.use_ppm or baseline.model.use_ppm or augmented.model.use_ppm)
    assert pyramid == parse("ade20k") and deep.model.layers == 269
    assert deep.eval == pyramid.eval and multi_scale.model == deep.model
    assert (multi_scale.eval.scales, multi_scale.eval.mirror) == ([0.5, 0.75, 1, 1.25, 1.5, 1.75], True)


def test_mmsegmentations_crops_of_769_are_513_apart():
    (options,) = (options for _, _, _, *options in COMMANDS if "[769, 769]" in options)
    config = parse("cityscapes_mmseg", *options)
    assert (config.augment.crop, config.eval.crop, config.model.align_corners) == ((769, 769), (769, 769), True)
    assert config.augment.base_scale == config.eval.base_size == (2049, 1025)
    assert window_starts(2049, 769, config.eval.stride) == [0, 513, 1026, 1280]
