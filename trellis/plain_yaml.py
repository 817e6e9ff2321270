"""YAML as people mean it: `on` and `off` are words, and dates stay text.

YAML 1.1, which PyYAML reads, takes `on:` for the key `True`. YAML 1.2 (section 10.3.2, core schema) has
only `true` and `false`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from trellis.errors import InvalidInput
from trellis.faults import shown

_YAML_1_1_ONLY = {f"tag:yaml.org,2002:{name}" for name in ("bool", "timestamp", "merge")}


class _TwiceError(Exception):
    """A key stands twice."""


class _CoreLoader(yaml.SafeLoader):
    """The safe loader with YAML 1.2's booleans, without timestamps and without merge keys."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leave `<<` a key like any other: merges of merges grow exponentially, and YAML 1.2 has none."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key that stands twice (YAML 1.2, section 3.2.1.1), where PyYAML takes the last."""
        first: dict[Hashable, yaml.Node] = {}
        # `!!map x` is no mapping, and told of below.
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # no key of ours: below it is found unhashable
            key = self.construct_object(key_node)
            if key in first:
                lines = (one.start_mark.line + 1 for one in (first[key], key_node))
                raise _TwiceError(
                    "key {} stands in line {} and in line {}: remove one".format(shown(key), *lines)
                )
            first[key] = key_node
        return super().construct_mapping(node, deep=deep)


_CoreLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _YAML_1_1_ONLY]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_CoreLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
# YAML 1.1 wants a point and a sign in `1e-3` and `1.0e3`, and takes them for text.
_CoreLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def load(raw: bytes, *, what: str) -> object:
    """Return the value of one YAML document (JSON is YAML).

    Raises:
        InvalidInput: Not UTF-8, not YAML, a key stands twice, or nested too deeply.
    """
    try:
        return yaml.load(raw.decode("utf-8"), Loader=_CoreLoader)  # noqa: S506 - a subclass of SafeLoader
    except UnicodeDecodeError as error:
        raise InvalidInput(what, f"is not UTF-8: {error.reason} at byte {error.start}") from None
    except _TwiceError as error:
        raise InvalidInput(what, str(error)) from None
    except yaml.YAMLError as error:
        raise InvalidInput(what, f"is not YAML: {error}") from None
    except RecursionError:
        raise InvalidInput(what, "is nested too deeply") from None
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        # PyYAML lets its constructors' own errors through, as for `!!bool foo`, `!!int ''` or a huge integer.
        raise InvalidInput(what, f"is not YAML: {type(error).__name__}: {error}") from None
