"""Recipes, options, and the mistakes people make in them."""

import dataclasses

import pytest

from psp_fast.configs import Config, config_from_dict, config_parser, config_to_yaml, parse_config, recipe_file
from psp_fast.configs.loading import RECIPES
from psp_fast.errors import ConfigError


def parse(*arguments):
    return parse_config(config_parser("psp-fast train", "", ""), arguments)


def test_defaults_are_the_papers():
    config = parse()
    assert config == Config()
    assert (config.optim.lr, config.optim.power, config.optim.momentum, config.optim.weight_decay) == (
        0.01,
        0.9,
        0.9,
        1e-4,
    )
    assert (config.optim.head_lr_factor, config.train.aux_weight, config.train.batch_size) == (10, 0.4, 16)
    assert (config.augment.crop, config.augment.scale, config.augment.degrees) == ((473, 473), (0.5, 2.0), 10)


@pytest.mark.parametrize("recipe", sorted(p.stem for p in RECIPES.glob("*.yaml")))
def test_shipped_recipes_parse_and_survive_saving(recipe, tmp_path):
    config = parse("--config", str(recipe_file(recipe)))
    saved = tmp_path / "config.yaml"
    saved.write_text(config_to_yaml(config))
    assert parse("--config", str(saved)) == config
    assert config_from_dict(dataclasses.asdict(config)) == config


def test_options_override_recipes_and_later_recipes_earlier_ones(tmp_path):
    (tmp_path / "mine.yaml").write_text("train: {steps: 7, seed: 3}\noptim: {clip_grad_norm: 5}\n")
    config = parse(
        "--config", str(recipe_file("scenes")), "--config", str(tmp_path / "mine.yaml"), "--train.steps", "9"
    )
    assert (config.train.steps, config.train.seed, config.optim.clip_grad_norm, config.data.dataset) == (
        9,
        3,
        5.0,
        "scenes",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.stepz", "3"], r"train\.stepz"),
        (["--trian.steps", "3"], r"trian\.steps"),
        (["--train.steps", "many"], r"train\.steps[\s\S]*many"),
        (["--model.pool", "min"], r"model\.pool[\s\S]*min"),
        (["--augment.crop", "[473]"], r"augment\.crop"),
        (["--config", "nowhere.yaml"], r"nowhere\.yaml"),
    ],
)
def test_unknown_and_mistyped_options_are_errors(arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse(*arguments)


def test_unknown_keys_in_a_recipe_are_errors(tmp_path):
    (tmp_path / "a.yaml").write_text("train:\n  stepz: 3\n")
    with pytest.raises(ConfigError, match="stepz"):
        parse("--config", str(tmp_path / "a.yaml"))
    with pytest.raises(ConfigError, match="stepz"):
        config_from_dict({"train": {"stepz": 3}})


def test_a_missing_recipe_lists_what_there_is():
    with pytest.raises(ConfigError, match=r"no recipe 'ade'.*ade20k, .*camvid, .*scenes"):
        recipe_file("ade")
