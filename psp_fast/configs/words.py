"""YAML in which the names of classes are the words as written."""

from __future__ import annotations

from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from psp_fast.configs.aliases import check_aliases

PARSER_MODE = "psp_fast"


class _Words(yaml.SafeLoader):
    """Every scalar is a string; mappings are merged as ever."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012


def _load(text: str) -> Any:
    check_aliases(text)
    return _with_words(get_loader("yaml")(text), yaml.load(text, _Words))


def _with_words(value: Any, written: Any) -> Any:
    """A parsed value with `written`'s words for names: YAML takes no, yes, on and off for booleans, 1 for a number.

    No field of the configuration is a list of booleans, so that a list alone, as an option has it, is one of names.
    """
    if isinstance(value, list):
        return [word if isinstance(item, bool) else item for item, word in zip(value, written, strict=True)]
    if isinstance(value, dict):
        words = {name: _with_words(value[name], written[name]) for name in ("data",) if name in value}
        if isinstance(value.get("classes"), list):
            words["classes"] = written["classes"]
        return {**value, **words}
    return value


set_loader(PARSER_MODE, _load, (yaml.YAMLError,))
