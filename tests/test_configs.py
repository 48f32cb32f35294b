"""Recipes, options, and the mistakes people make in them."""

import dataclasses
import os
import subprocess
import sys
from itertools import pairwise

import pytest
import yaml

pytest.importorskip("jsonargparse")

from psp_fast.cli import main
from psp_fast.configs import Config, config_from_dict, config_parser, config_to_yaml, parse_config, recipe_file
from psp_fast.configs.checks import check
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


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--data.classes=3", "data.classes must be a list, not 3;"),
        ("--augment.crop=65", "augment.crop must be a list, not 65;"),
        ("--train.steps=four", "train.steps must be an integer, not four;"),
        ("--optim.lr=fast", "optim.lr must be a number, not fast;"),
        ("--data.dataset=lists", "data.dataset must be one of 'list', 'folder', "),
    ],
)
def test_wrong_types_are_told_without_pythons_words(option, message):
    with pytest.raises(ConfigError) as found:
        parse(option)
    assert str(found.value).startswith(message) and "typing" not in str(found.value)


def test_unknown_keys_in_a_recipe_are_errors(tmp_path):
    (tmp_path / "a.yaml").write_text("train:\n  stepz: 3\n")
    with pytest.raises(ConfigError, match=r"stepz.*; see .*a\.yaml and .* --help"):
        parse("--config", str(tmp_path / "a.yaml"))
    with pytest.raises(ConfigError, match="stepz"):
        config_from_dict({"train": {"stepz": 3}})


def test_a_missing_recipe_lists_what_there_is():
    with pytest.raises(ConfigError, match=r"no recipe 'ade'.*ade20k, .*camvid, .*scenes"):
        recipe_file("ade")


def test_class_names_are_the_words_as_written(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "data: {classes: [no, yes, on, Off, ~, 1, 0x1F, 2024-01-01, 'quoted']}\n"
        "augment: {mirror: no}\nmodel: {bins: [1, 2]}\n"
    )
    config = parse("--config", str(tmp_path / "a.yaml"))
    assert config.data.classes == ["no", "yes", "on", "Off", "~", "1", "0x1F", "2024-01-01", "quoted"]
    assert config.augment.mirror is False and config.model.bins == [1, 2]
    assert parse("--config", config_to_yaml(config)) == config
    assert parse("--data.classes", "[no, yes]").data.classes == ["no", "yes"]
    assert parse("--data", "{classes: [off, on]}").data.classes == ["off", "on"]
    merged = "data: {<<: {classes: [no, yes]}, root: x}\n"
    assert parse("--config", merged).data.classes == ["no", "yes"]


def test_the_home_folder_is_known_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = {"data.root": "d", "data.train_list": "t.txt", "data.val_list": "v.txt", "model.pretrained": "w.pth"}
    config = parse("--out=~/run", *(f"--{name}=~/{file}" for name, file in options.items()))
    assert config.out == f"{tmp_path}/run"
    for name, file in options.items():
        section, field = name.split(".")
        assert getattr(getattr(config, section), field) == f"{tmp_path}/{file}"
    assert parse("--data.root=~nobody-has-this-name/d").data.root == "~nobody-has-this-name/d"
    assert parse("--data.root=a~/d").data.root == "a~/d"
    (tmp_path / "mine.yaml").write_text("")
    assert recipe_file("~/mine.yaml") == tmp_path / "mine.yaml"


@pytest.mark.parametrize("field", ["out", "data.root", "data.train_list", "data.val_list", "model.pretrained"])
def test_a_path_with_a_nul_is_refused(field):
    with pytest.raises(ConfigError, match=f"{field} holds a NUL character"):
        parse(f"--{field}", "a\0b")


@pytest.mark.parametrize("given", ["words in a file", "words in an option"])
def test_words_in_a_process_that_takes_text_for_ascii(tmp_path, given):
    (tmp_path / "words.yaml").write_text("data: {classes: [Stra\u00dfe]}\n", encoding="utf-8")
    options = ["--config=words.yaml"] if given == "words in a file" else ["--data.classes=[Stra\u00dfe]"]
    environment = {**os.environ, "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "psp_fast", "train", *options]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "not UTF-8: set PYTHONUTF8=1" in done.stderr


def test_a_path_that_no_saved_configuration_could_hold_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.root '.*udce9' is not UTF-8: use another name, or a link to it"):
        parse("--data.root", os.fsdecode(b"caf\xe9"))
    with pytest.raises(ConfigError, match=r"the recipe's name '.*' is not UTF-8"):
        recipe_file(os.fsdecode(b"caf\xe9.yaml"))


GREY = ["--augment.mean=[127]", "--augment.std=[50]"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.in_channels=2"], r"model\.in_channels must be 1 \(grey\), 3 \(RGB\) or 4 .*, got 2"),
        (["--model.in_channels=4"], r"augment\.mean must have as many numbers as model\.in_channels, 4, got"),
        (["--model.in_channels=1", GREY[0]], r"augment\.std must have as many numbers as model\.in_channels, 1, got"),
        (["--model.in_channels=1", *GREY, "--augment.preset=mmseg"], r"mmseg changes hues.*set augment\.preset semseg"),
        (["--model.in_channels=1", *GREY, "--data.dataset=scenes"], r"scenes draws RGB"),
    ],
)
def test_channels_have_to_fit(arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse(*arguments)
    assert parse("--model.in_channels=1", *GREY).augment.mean == (127.0,)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("augment.degrees", ["-1", "181", ".nan", ".inf"]),
        ("augment.scale", ["[0, 1]", "[-1, 1]", "[2, 1]", "[.nan, 1]", "[1, .inf]", "[1, 1e9]"]),
        ("augment.crop", ["[0, 97]", "[97, -1]", "[97, 1000000]"]),
        ("augment.base_scale", ["[0, 97]", "[97, 1000000]"]),
        ("augment.mean", ["[.nan, 1, 1]", "[1, .inf, 1]"]),
        ("augment.std", ["[0, 1, 1]", "[1, -1, 1]", "[1, 1, .nan]", "[.inf, 1, 1]"]),
        ("eval.scales", ["[]", "[0]", "[1, -1]", "[.nan]", "[.inf]", "[1e9]"]),
        ("eval.crop", ["[0, 97]", "[97, 1000000]"]),
        ("eval.base_size", ["0", "-3", "[97, 0]", "1000000"]),
        ("eval.stride", ["0", ".nan", "1.5"]),
        ("model.dropout", ["-0.1", "1", ".nan", ".inf"]),
        ("model.bins", ["[]", "[0]", "[1, -2]"]),
        ("model.in_channels", ["0", "-1"]),
        ("train.seed", ["-1", str(2**64)]),
        ("train.aux_weight", ["-1", ".nan", ".inf"]),
        ("optim.lr", ["0", "-1", ".nan", ".inf"]),
        ("optim.head_lr_factor", ["-1", ".nan", ".inf"]),
        ("optim.momentum", ["-0.1", "1", ".nan", ".inf"]),
        ("optim.weight_decay", ["-1", ".nan", ".inf"]),
        ("optim.power", ["-1", ".nan", ".inf"]),
        ("optim.clip_grad_norm", ["0", "-1", ".nan", ".inf"]),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(name, values):
    section, field = name.split(".")
    for value in values:
        given = yaml.safe_load(value.replace("1e9", "1.0e+9"))
        config = Config()
        setattr(getattr(config, section), field, tuple(given) if isinstance(given, list) else given)
        with pytest.raises(ConfigError, match=rf"^{name} must be "):
            check(config)
    with pytest.raises(ConfigError, match=rf"^{name} must be "):
        parse(f"--{name}={values[0]}")


@pytest.mark.parametrize(
    ("arguments", "field"), [(["--model.bins=[1.5]"], "model.bins"), (["--model.in_channels=2.5"], "model.in_channels")]
)
def test_fractions_are_no_integers(arguments, field):
    with pytest.raises(ConfigError, match=field):
        parse(*arguments)


def test_aliases_in_a_recipe(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("augment: {crop: &side [97, 81]}\neval: {crop: *side}\n")
    assert parse("--config", str(path)).eval.crop == (97, 81)
    lines = [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in pairwise("abcdefghi")]
    bombs = ["\n".join(["a: &a [x, x]", *lines]), "data: &a {classes: *a}", f"a: &a {'x' * 9000}\nb: [{'*a, ' * 900}]"]
    for text in bombs:
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"aliases .* multiply to more than a million characters"):
            parse("--config", str(path))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("model: null", "model"),
        ("data: {scenes: null}", r"data\.scenes"),
        ("train: {steps: null}", r"train\.steps"),
        ("optim: {power: null}", r"optim\.power"),
    ],
)
def test_a_null_is_refused_by_name(tmp_path, text, name):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"^{name} must not be null"):
        parse("--config", str(tmp_path / "a.yaml"))
    saved = dataclasses.asdict(Config())
    saved["optim"]["power"] = None
    with pytest.raises(ConfigError, match=r"optim\.power must not be null"):
        config_from_dict(saved)


def test_a_long_value_is_not_repeated_in_full(tmp_path):
    (tmp_path / "a.yaml").write_text(f"train: {{steps: {'x' * 100_000}}}")
    with pytest.raises(ConfigError, match=r"train\.steps") as caught:
        parse("--config", str(tmp_path / "a.yaml"))
    assert len(str(caught.value)) < 2000


def test_a_recipe_without_end(tmp_path):
    (tmp_path / "a.yaml").write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="nesting depth"):
        parse("--config", str(tmp_path / "a.yaml"))


def test_no_name_is_no_recipe(capsys):
    for command in ("train", "check-data"):
        assert main([command, ""]) == 2
        assert "there is no recipe ''" in capsys.readouterr().err
