"""A guard against YAML whose aliases of aliases fill the memory."""

from __future__ import annotations

import yaml

from psp_fast.errors import ConfigError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MOST_CHARACTERS = 1_000_000  # of a recipe whose aliases are written out


def check_aliases(text: str) -> None:
    """Raise ConfigError where a recipe's aliases, written out, are more than a million characters."""
    if "*" in text and "&" in text and _written_out(yaml.compose(text, _LOADER), {}) > _MOST_CHARACTERS:
        raise ConfigError(
            "the aliases (*name) of a recipe multiply to more than a million characters: write it plainly"
        )


def _written_out(node: yaml.Node | None, sizes: dict[int, float]) -> float:
    """Characters of a YAML node with its aliases written out; infinitely many where it contains itself."""
    if isinstance(node, yaml.ScalarNode) or node is None:
        return 1 if node is None else len(node.value) + 1
    if id(node) not in sizes:
        sizes[id(node)] = float("inf")
        children = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(_written_out(child, sizes) for child in children)
    return sizes[id(node)]
