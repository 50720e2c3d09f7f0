# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see https://www.gnu.org/licenses/gpl-3.0.txt)
"""Manifests are YAML, but only what JSON can say too, and every value remembers its line.

YAML 1.1 reads ``1.10`` as a float, ``no`` as false, ``12:30`` as 750 and ``2026-01-15`` as a date.
A manifest is signed as JSON, so numbers and words of which two readers could think differently are
refused here and have to be quoted. A date stays the text that it is.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field

import yaml

MAX_SIZE = 1 << 20

_PREFIX = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"(0|-?[1-9][0-9]{0,18})\Z")
_NULL = ("", "~", "null")
_BOOLEAN = {"true": True, "false": False}
_AMBIGUOUS_WORDS = frozenset(
    case
    for word in ("yes", "no", "on", "off", "y", "n", "true", "false", "null")
    for case in (word, word.capitalize(), word.upper())
) - {"true", "false", "null"}
#: What YAML 1.1 or 1.2 readers may take for a number: 1.10, 1e3, 0x1f, 0o17, 017, 1_000, 1:30,
#: .inf, .nan
_AMBIGUOUS_NUMBER = re.compile(
    r"[-+]?(\.?[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|0[xob][0-9a-fA-F_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|\.(inf|Inf|INF))\Z"
    r"|\.(nan|NaN|NAN)\Z"
)

Path = tuple[t.Union[str, int], ...]


@dataclass(frozen=True)
class YamlProblem:
    """Something that a manifest's YAML may not do; ``line`` counts from 1."""

    line: int
    path: Path
    message: str


@dataclass
class YamlDocument:
    """The document as JSON values, the line of every key and item, and what is wrong with the
    YAML itself.
    """

    data: t.Any = None
    lines: dict[Path, int] = field(default_factory=dict)
    problems: list[YamlProblem] = field(default_factory=list)

    def line(self, path: Path) -> int:
        """The line of the value at the path, or of the nearest one that there is around it; 0 in
        a document that was not read from a text.
        """
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1 if self.lines else 0)


class _Loader(yaml.SafeLoader):
    """Composes nodes without deciding what plain scalars mean."""


# Every plain scalar is composed as a string; _Reader decides.
_Loader.yaml_implicit_resolvers = {}


class _Reader:
    def __init__(self) -> None:
        self.document = YamlDocument()
        self._seen: set[int] = set()

    def _problem(self, node: yaml.Node, path: Path, message: str) -> None:
        self.document.problems.append(YamlProblem(node.start_mark.line + 1, path, message))

    def value(self, node: yaml.Node, path: Path) -> t.Any:
        self.document.lines.setdefault(path, node.start_mark.line + 1)
        if id(node) in self._seen:
            self._problem(node, path, "an alias (*name) stands here; write the value out")
            return None
        self._seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return self._sequence(node, path)
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, t.Any]:
        if node.tag != _PREFIX + "map":
            self._problem(node, path, f"the tag {node.tag} is not allowed")
        result: dict[str, t.Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, path, "a key must be a word")
                continue
            key = key_node.value
            if key in result:
                self._problem(key_node, path + (key,), f"the key {key!r} stands here a second time")
                continue
            self.document.lines[path + (key,)] = key_node.start_mark.line + 1
            result[key] = self.value(value_node, path + (key,))
        return result

    def _sequence(self, node: yaml.SequenceNode, path: Path) -> list[t.Any]:
        if node.tag != _PREFIX + "seq":
            self._problem(node, path, f"the tag {node.tag} is not allowed")
        return [self.value(item, path + (index,)) for index, item in enumerate(node.value)]

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> t.Any:
        text: str = node.value
        if node.tag != _PREFIX + "str":
            self._problem(node, path, f"the tag {node.tag} is not allowed")
            return text
        if node.style is not None:
            return text
        if text in _NULL:
            return None
        if text in _BOOLEAN:
            return _BOOLEAN[text]
        if _INTEGER.match(text):
            return int(text)
        if text in _AMBIGUOUS_WORDS or _AMBIGUOUS_NUMBER.match(text):
            self._problem(node, path, f"{text} can be read in more than one way; put it in quotes")
        return text


def read_manifest_yaml(text: str) -> YamlDocument:
    """Read a manifest's YAML. Never raises for what the text says: see ``problems`` of the
    result.
    """
    reader = _Reader()
    document = reader.document
    if len(text.encode("utf-8", "surrogatepass")) > MAX_SIZE:
        document.problems.append(
            YamlProblem(1, (), f"the document is larger than {MAX_SIZE} bytes")
        )
        return document
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            document.problems.append(YamlProblem(1, (), "the document is empty"))
        else:
            document.data = reader.value(node, ())
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        document.problems.append(
            YamlProblem(mark.line + 1 if mark else 1, (), f"not YAML: {exc.problem or exc.context}")
        )
    except yaml.reader.ReaderError as exc:
        line = text.count("\n", 0, exc.position) + 1
        document.problems.append(
            YamlProblem(line, (), f"not YAML: the character {exc.character!r} is not allowed")
        )
    except RecursionError:
        document.problems.append(YamlProblem(1, (), "nested too deeply"))
    finally:
        if loader is not None:
            loader.dispose()
    return document
