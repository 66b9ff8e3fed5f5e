"""Read YAML as its authors mean it: `on` is a word, and a key given twice is a mistake."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from memory.errors import ConfigurationError

BOOL = "tag:yaml.org,2002:bool"


class _Loader(yaml.SafeLoader):
    """The safe loader, with YAML 1.2's booleans: in 1.1, which PyYAML reads, the key `on` is the boolean true."""

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
        return yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigurationError(f"{path}: expected a YAML file that can be read, got {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: expected YAML in UTF-8, got byte {error.start}: {error.reason}") from None
    except RecursionError:
        raise ConfigurationError(f"{path}: expected YAML, got brackets or lists nested too deeply") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise ConfigurationError(f"{path}:{line} expected YAML, got a mistake: {problem}") from None
