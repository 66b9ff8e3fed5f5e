"""Read YAML as its authors mean it: `on` is a word, a key given twice is a mistake, and so is what only looks like a
date."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from memory.errors import ConfigurationError

MOST = 1 << 20
"""Bytes of a file."""

BOOL = "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    """The safe loader, with YAML 1.2's booleans: in 1.1, which PyYAML reads, the key `on` is the boolean true."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if alias and not isinstance(node, yaml.ScalarNode):  # within each other, 300 bytes of them become gigabytes
            problem = "expected lists and mappings written out, got an alias of one"
            raise yaml.composer.ComposerError(None, None, problem, node.start_mark if node is not None else None)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError):  # 2024-02-30, 0x_, !!bool maybe: PyYAML lets these out
            kind, value = node.tag.rpartition(":")[2], str(node.value)[:80]
            raise yaml.constructor.ConstructorError(None, None, f"{value!r} is no {kind}", node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in keys:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            keys.append(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(BOOL, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def parse_yaml(text: str) -> Any:
    """Return what a text in YAML, of which JSON is a part, says.

    Raises
    ------
    ValueError
        It is none.

    Examples
    --------
    >>> parse_yaml('{"state_norm": "page_hinkley"}')
    {'state_norm': 'page_hinkley'}
    >>> parse_yaml("2024-02-30")
    Traceback (most recent call last):
    ...
    ValueError: '2024-02-30' is no timestamp
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("brackets or lists are nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(_problem(error)) from None


def read_yaml(path: Path) -> Any:
    """Return what a YAML file says, as plain Python values.

    Parameters
    ----------
    path
        The file, UTF-8.

    Raises
    ------
    ConfigurationError
        The file cannot be read, is not YAML, or gives a key twice. The message names the file and the line.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "policy.yaml"
    >>> _ = path.write_text("policy: reset_on_shift\\non: [topic_shift]\\n")
    >>> read_yaml(path)
    {'policy': 'reset_on_shift', 'on': ['topic_shift']}
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST + 1)
        if len(content) > MOST:
            raise ConfigurationError(f"{path}: expected a YAML file of at most {MOST >> 20} MiB, got a longer one")
        return yaml.load(content.decode("utf-8"), _Loader)
    except OSError as error:
        raise ConfigurationError(f"{path}: expected a YAML file that can be read, got {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: expected YAML in UTF-8, got byte {error.start}: {error.reason}") from None
    except RecursionError:
        raise ConfigurationError(f"{path}: expected YAML, got brackets or lists nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        raise ConfigurationError(f"{path}:{line} expected YAML, got a mistake: {_problem(error)}") from None


def _problem(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or " ".join(str(error).split())
