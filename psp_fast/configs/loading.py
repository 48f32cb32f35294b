"""From recipe files and command-line options to a `Config`, and back."""

from __future__ import annotations

import dataclasses
import locale
import re
from argparse import ArgumentError
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from psp_fast.configs.checks import check
from psp_fast.configs.schema import Config
from psp_fast.errors import ConfigError, PspFastError
from psp_fast.files import expanded

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

RECIPES = Path(__file__).parent
_LONGEST_REASON = 1000
_WRONG_TYPE = re.compile(
    r'Parser key "(?P<key>[^"]*)":\s*Expected a (<class \'(?P<type>\w+)\'>|typing\.Literal\[(?P<names>[^]]*)\])\. '
    r"Got value: (?P<value>.*)",
    re.DOTALL,
)
_TYPES = {"list": "a list", "tuple": "a list", "int": "an integer", "float": "a number", "bool": "true or false"}


def recipe_file(name: str) -> Path:
    """The file of a recipe: a path to a YAML file, or the name of one that comes with psp_fast.

    Raises:
        ConfigError: there is neither, and the message lists the recipes; or the file is not text.
    """
    _check_utf8("the recipe's name", name)
    path = Path(expanded(name))
    if path.is_file():
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not a recipe: it is not UTF-8 text") from error
        return path
    shipped = RECIPES / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
    raise ConfigError(f"there is no recipe {name!r}: give the path of a YAML file or one of {names}")


def option_parser(prog: str, usage: str, description: str) -> ArgumentParser:
    """A parser without options yet, whose mistakes `parse_options` reports.

    Raises:
        PspFastError: jsonargparse is not installed; all else in psp_fast works without it.
    """
    try:
        from jsonargparse import ArgumentParser
    except ModuleNotFoundError as error:
        raise PspFastError(
            f"options and recipes need the package {error.name}, which is not installed: "
            "run `python -m pip install 'jsonargparse[signatures]'`"
        ) from error
    from psp_fast.configs.words import PARSER_MODE

    return ArgumentParser(prog=prog, usage=usage, description=description, exit_on_error=False, parser_mode=PARSER_MODE)


def parse_options(parser: ArgumentParser, arguments: Sequence[str]) -> Namespace:
    """The options in arguments.

    Raises:
        ConfigError: an unknown option, or a value of the wrong type.
    """
    try:
        return parser.parse_args(list(arguments))
    except (ArgumentError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{_reason(error)}; see {_sources(parser, arguments)}") from error


def _sources(parser: ArgumentParser, arguments: Sequence[str]) -> str:
    """Where a mistake can be: the recipes among the arguments, and the options."""
    recipes = [value for option, value in pairwise(arguments) if option == "--config" and "\n" not in value]
    return " and ".join((*recipes, f"{parser.prog} --help"))


def config_parser(prog: str, usage: str, description: str) -> ArgumentParser:
    """A parser of every field of `Config` (--model.layers 50) and of --config FILE, repeatable, later ones win."""
    parser = option_parser(prog, usage, description)
    parser.add_argument("--config", action="config", help="YAML file of options; may be repeated, later ones win")
    parser.add_class_arguments(Config)
    return parser


def parse_config(parser: ArgumentParser, arguments: Sequence[str]) -> Config:
    """The configuration that the arguments make.

    Raises:
        ConfigError: an unknown option or key, or a value of the wrong type.
    """
    values = parse_options(parser, arguments)
    try:
        return _to_config(parser, values)
    except ArgumentError as error:
        raise ConfigError(f"{_reason(error)}; see {_sources(parser, arguments)}") from error


def config_from_dict(values: Any, source: str = "saved configuration") -> Config:
    """The configuration saved by `dataclasses.asdict` in a checkpoint.

    Args:
        values: as read from a file; no value of it is taken for a file's name.
        source: what messages call it.

    Raises:
        ConfigError: unknown keys or wrong types, as in a damaged file or one of another version.
    """
    _check_sections(values, Config, source)
    parser = option_parser("psp-fast", "", "")
    parser.add_class_arguments(Config)
    try:
        return _to_config(parser, parser.parse_object(values))
    except (ArgumentError, ConfigError) as error:
        raise ConfigError(f"{source}: {_reason(error)}") from error


def _check_sections(values: Any, section: Any, name: str) -> None:
    """Raise ConfigError where a section is no dictionary of its fields: a text would be read as a file's name."""
    if not isinstance(values, dict):
        raise ConfigError(f"{name} must be a dictionary of fields, not {type(values).__name__}")
    fields = {field.name: field for field in dataclasses.fields(section)}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(f"{name} has an unknown field {key!r}")
        if dataclasses.is_dataclass(fields[key].default_factory):
            _check_sections(value, fields[key].default_factory, f"{name}: {key}")


def config_to_yaml(config: Config) -> str:
    """Every field, as a recipe file that makes the same configuration again."""
    parser = config_parser("psp-fast", "", "")
    return parser.dump(parser.parse_object(dataclasses.asdict(config)), skip_unset=False)


def _reason(error: Exception) -> str:
    """What jsonargparse says, which repeats the value, however long; in plain words where it names a type."""
    text = str(getattr(error, "message", error))
    if wrong := _WRONG_TYPE.fullmatch(text):
        wanted = f"one of {wrong['names']}" if wrong["names"] else _TYPES.get(wrong["type"], wrong["type"])
        text = f"{wrong['key']} must be {wanted}, not {wrong['value']}"
    encoding = locale.getpreferredencoding(False)
    if "codec can't" in text and encoding.lower().replace("-", "") != "utf8":
        return f"this process takes text for {encoding}, not UTF-8: set PYTHONUTF8=1, or a UTF-8 locale ({text})"
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]} ..."


def _check_given(values: Namespace, section: Any, prefix: str) -> None:
    """Raise ConfigError where a whole section is null, of which jsonargparse cannot make anything."""
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(field.default_factory):
            if values[field.name] is None:
                raise ConfigError(f"{prefix}{field.name} must not be null")
            _check_given(values[field.name], field.default_factory, f"{prefix}{field.name}.")


def _to_config(parser: ArgumentParser, values: Namespace) -> Config:
    _check_given(values, Config, "")
    tree = parser.instantiate(values)
    config = Config(**{field.name: getattr(tree, field.name) for field in dataclasses.fields(Config)})
    config = _with_expanded_paths(config)
    check(config)
    return config


def _with_expanded_paths(config: Config) -> Config:
    """The configuration with the home folder for ~ in every path; ConfigError for what no path can hold."""
    data, model = config.data, config.model
    pretrained = model.pretrained
    return dataclasses.replace(
        config,
        out=None if config.out is None else _path("out", config.out),
        model=dataclasses.replace(
            model, pretrained=_path("model.pretrained", pretrained) if isinstance(pretrained, str) else pretrained
        ),
        data=dataclasses.replace(
            data,
            root=_path("data.root", data.root),
            train_list=_path("data.train_list", data.train_list),
            val_list=_path("data.val_list", data.val_list),
        ),
    )


def _path(field: str, path: str) -> str:
    if "\0" in path:
        raise ConfigError(f"{field} holds a NUL character, which no path can: {path!r}")
    _check_utf8(field, path)
    return expanded(path)


def _check_utf8(what: str, path: str) -> None:
    """Raise ConfigError for a path that a file, such as the saved configuration, could not hold."""
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{what} {path!r} is not UTF-8: use another name, or a link to it") from error
