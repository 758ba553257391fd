"""YAML read strictly: no duplicate keys, and no text that takes hours and gigabytes to read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from quantspike.errors import QuantspikeError

# A params file is small: a hundred times what the largest needs.
_LONGEST_FILE = 2**20
_LONGEST_VALUE = 2000
_MOST_VALUES = 20_000

# YAML 1.1 also takes 010 for 8, 1:30 for 90 and 1_0 for 10.
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_DECIMAL = r"[-+]?(0|[1-9][0-9]*|[0-9]*\.[0-9]*([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN)"


def load_yaml(path: Path) -> Any:
    """Read a YAML file of one document.

    Raises:
        QuantspikeError: the file is absent, is not YAML, has a duplicate key, or is too large.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LONGEST_FILE + 1)
        if len(text) > _LONGEST_FILE:
            raise ValueError(f"it has more than {_LONGEST_FILE:,} characters")
        return yaml.load(text, _Loader)
    except FileNotFoundError:
        raise QuantspikeError(f"{path} does not exist: run in the project's folder, or use --params") from None
    except OSError as error:
        raise QuantspikeError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # PyYAML fails on hostile text in more ways than by its own errors
        raise QuantspikeError(f"{path} is not valid YAML: {_reason(error)}") from error


def shortened(text: str) -> str:
    """Return the text, or its first 500 characters."""
    return text if len(text) <= 500 else f"{text[:500]} ..."


class _Loader(yaml.SafeLoader):
    """Refuse duplicate keys, of which YAML would silently take the last, and aliases that stand for too many values."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = 0
        self._sizes: dict[yaml.Node | None, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Count every value as often as aliases repeat it."""
        is_alias, before = self.check_event(yaml.AliasEvent), self._values
        node = super().compose_node(parent, index)
        if is_alias and node not in self._sizes:
            raise _error("an alias stands within the section that it names", node)
        self._values += self._sizes[node] if is_alias else 1
        self._sizes.setdefault(node, self._values - before)
        if isinstance(node, yaml.ScalarNode) and len(node.value) > _LONGEST_VALUE:
            raise _error(f"a value has more than {_LONGEST_VALUE:,} characters", node)
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and not re.fullmatch(_DECIMAL, node.value):
            raise _error(f"{node.value!r}: write a number in decimal digits, or text in quotes", node)
        if self._values > _MOST_VALUES:
            raise _error(f"it stands for more than {_MOST_VALUES:,} values", node)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse a duplicate key."""
        node = super().compose_mapping_node(anchor)
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":  # <<, resolved later
                continue
            if key.value in keys:
                raise yaml.YAMLError(f"duplicate key {key.value!r} in line {key.start_mark.line + 1}")
            keys.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Name the place of an error that PyYAML lets through."""
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:
            raise _error(_reason(error), node) from error


def _error(problem: str, node: yaml.Node | None) -> yaml.YAMLError:
    """Return an error that tells line and column."""
    return ConstructorError(None, None, problem, None if node is None else node.start_mark)


def _reason(error: Exception) -> str:
    """Return what an exception says; its kind too where that would be no sentence."""
    told = isinstance(error, (yaml.YAMLError, ValueError))
    return shortened(str(error) if told else f"{type(error).__name__}: {error}")
