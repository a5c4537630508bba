"""YAML that a user may bring: values alone, and no more of them than a recipe can have."""

from __future__ import annotations

from typing import Any

import yaml

from .errors import AuroraError, short

MOST_VALUES = 10_000  # of a YAML file with its aliases put in full: a few lines of nested ones unfold to gigabytes


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses keys that stand twice, and what unfolds beyond measure."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in keys:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"the key {short(key.value)} stands twice, again in line {line}; keep one")
            keys.add((key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key))
        return node

    def get_single_node(self):
        node = super().get_single_node()
        if node is not None and _unfolded(node, {}) > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES:,} values, with its aliases put in full")
        return node


def _unfolded(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, an alias counting for all that it names."""
    if id(node) not in known:
        known[id(node)] = -1
        parts: list[Any] = [] if isinstance(node, yaml.ScalarNode) else node.value
        flat = (part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,)))
        known[id(node)] = 1 + sum(_unfolded(part, known) for part in flat)
    if known[id(node)] < 0:
        raise yaml.YAMLError("an alias stands inside of what it names")
    return known[id(node)]


def parse_yaml(text: str, where: str) -> Any:
    """A value from YAML; tags of Python objects are refused.

    Raises:
        AuroraError: if it is no YAML, a key stands twice, or its aliases unfold to many values or to themselves.
    """
    try:
        return yaml.load(text, _Loader)  # a subclass of SafeLoader
    except RecursionError as error:
        raise AuroraError(f"{where}: nested too deeply") from error
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        words = " ".join(str(error).split())
        raise AuroraError(f"{where} is not YAML: {words[:300]}") from error
