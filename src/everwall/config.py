"""What every configuration file shares: one error that says where and what, and YAML with line numbers.

A wrong file is refused with one line that names the file, the line (and column where known), the
key, the value and what was expected. Values of secret keys are never part of it.

``load_yaml`` reads a careful subset of YAML 1.1: mappings, lists and scalars. Scalars stay the text
that was written, and the reader of a key decides what they mean: a port range is no sexagesimal
number, ``no`` may be a name, and ``0123`` is not octal behind anybody's back. Aliases, tags and
duplicate keys are errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

FILE_BYTES_MAX = 64 << 20
DEPTH_MAX = 16
"""Lists and mappings inside one another; no file of ours needs more than four."""
_SHOWN_MAX = 80

_TRUE = {"true", "yes", "on"}
_FALSE = {"false", "no", "off"}


def shown(value: object) -> str:
    """A value as it stands in a message: one line, quoted, not too long."""
    text = value if isinstance(value, str) else str(value)
    if len(text) > _SHOWN_MAX:
        text = text[: _SHOWN_MAX - 3] + "..."
    return repr(text)


class ConfigError(ValueError):
    """A configuration that cannot be used; ``str()`` is one clear line."""

    def __init__(
        self,
        file: str | Path,
        expected: str,
        *,
        line: int | None = None,
        column: int | None = None,
        key: str = "",
        value: object = None,
    ) -> None:
        super().__init__()
        self.file = str(file)
        self.line = line
        self.column = column
        self.key = key
        self.value = value
        self.expected = expected

    def __str__(self) -> str:
        place = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        key = f" {self.key}:" if self.key else ""
        value = f" {shown(self.value)}:" if self.value is not None else ""
        line = f"{place}:{key}{value} expected {self.expected}"
        # A key may hold whatever was quoted in the file; a message stays one harmless line.
        return "".join(letter if letter.isprintable() else " " for letter in line)


def read_bytes(path: Path, key: str = "") -> bytes:
    """What is in the file, at most FILE_BYTES_MAX."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(path, f"a readable file ({reason})", key=key) from None
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError(path, f"a file of at most {FILE_BYTES_MAX >> 20} MiB", key=key)
    return data


def read_text(path: Path, key: str = "") -> str:
    """The file's text; UTF-8, a byte order mark is forgiven."""
    data = read_bytes(path, key)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(path, "UTF-8 text", line=line, key=key) from None


def read_password(path: Path, key: str = "") -> str:
    """The one line of a file that holds nothing but a password."""
    text = read_text(path, key).strip("\r\n")
    if not text or "\n" in text:
        raise ConfigError(path, "one line with the password", key=key)
    return text


@dataclass(frozen=True, slots=True)
class Node:
    """One YAML value and where it stands; ``key`` is its path, as in ``rules[3].service``."""

    file: str
    line: int
    column: int
    key: str
    data: str | list[Node] | dict[str, Node] | None
    key_line: int
    """Where the key stands; the value may begin a line later."""
    key_column: int

    def error(self, expected: str, value: object = None) -> ConfigError:
        """An error about this value; ``value`` replaces what is shown as written."""
        if value is None:
            value = self._shown()
        return ConfigError(self.file, expected, line=self.line, column=self.column, key=self.key, value=value)

    def _shown(self) -> str:
        if self.data is None:
            return "nothing"
        if isinstance(self.data, str):
            return self.data
        return f"a {'list' if isinstance(self.data, list) else 'mapping'} of {len(self.data)}"

    def text(self, expected: str = "text") -> str:
        """The scalar's text."""
        if not isinstance(self.data, str):
            raise self.error(expected)
        return self.data

    def boolean(self) -> bool:
        """``true``, ``yes``, ``on`` or ``false``, ``no``, ``off``."""
        word = self.data.lower() if isinstance(self.data, str) else ""
        if word not in _TRUE | _FALSE:
            raise self.error("true or false")
        return word in _TRUE

    def integer(self, low: int, high: int, expected: str = "") -> int:
        """A decimal number from ``low`` to ``high``."""
        expected = expected or f"a whole number from {low} to {high}"
        if not isinstance(self.data, str) or not re.fullmatch(r"-?[0-9]{1,20}", self.data):
            raise self.error(expected)
        number = int(self.data)
        if not low <= number <= high:
            raise self.error(expected)
        return number

    def one_of(self, *choices: str) -> str:
        """One of the given words, exactly."""
        if not isinstance(self.data, str) or self.data not in choices:
            raise self.error(f"one of {', '.join(choices)}{did_you_mean(self._shown(), choices)}")
        return self.data

    def items(self, expected: str = "a list") -> list[Node]:
        """The entries of a list."""
        if not isinstance(self.data, list):
            raise self.error(expected)
        return self.data

    def one_or_more(self, expected: str) -> list[Node]:
        """The entries of a list that may not be empty; a single scalar stands for a list of one."""
        if isinstance(self.data, str):
            return [self]
        if not isinstance(self.data, list) or not self.data:
            raise self.error(expected)
        return self.data

    def mapping(
        self,
        keys: tuple[str, ...] | None = None,
        required: tuple[str, ...] = (),
        expected: str = "a mapping (key: value)",
    ) -> dict[str, Node]:
        """The entries of a mapping; with ``keys`` no others may stand there."""
        if not isinstance(self.data, dict):
            raise self.error(expected)
        for name, node in self.data.items():
            if keys is not None and name not in keys:
                raise ConfigError(
                    self.file,
                    f"one of the keys {', '.join(keys)}{did_you_mean(name, keys)}",
                    line=node.key_line,
                    column=node.key_column,
                    key=node.key,
                    value=name,
                )
        for name in required:
            if name not in self.data:
                raise self.error(f"a mapping with the key {name}")
        return self.data


def did_you_mean(word: str, known: tuple[str, ...] | list[str]) -> str:
    """A hint for a misspelt word, or nothing."""
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def load_yaml(path: str | Path, text: str | None = None) -> Node | None:
    """The file's one document, or None when there is nothing in it; ``text`` replaces reading the file."""
    if text is None:
        text = read_text(Path(path))
    return _Builder(str(path)).document(text)


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been seen."""

    node: Node
    pending: str | None = None  # the key whose value comes next
    pending_at: tuple[int, int] = (0, 0)  # line and column of that key


class _Builder:
    """Turns parser events into nodes, with a stack of its own: nesting cannot exhaust Python's."""

    def __init__(self, file: str) -> None:
        self.file = file

    def document(self, text: str) -> Node | None:
        try:
            return self._build(yaml.parse(text, Loader=_LOADER))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = " ".join(part for part in (error.context, error.problem) if part)
            raise ConfigError(
                self.file,
                f"YAML ({problem})",
                line=mark.line + 1 if mark else None,
                column=mark.column + 1 if mark else None,
            ) from None
        except yaml.reader.ReaderError as error:
            position = error.position if isinstance(error.position, int) else 0
            line = text.count("\n", 0, position) + 1
            raise ConfigError(self.file, f"printable text ({error.reason})", line=line) from None

    def _build(self, events: Iterator[Any]) -> Node | None:
        root: Node | None = None
        documents = 0
        stack: list[_Open] = []
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise self._error(event, "one YAML document in a file")
            elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
                stack.pop()
            elif isinstance(event, yaml.NodeEvent):
                top = stack[-1] if stack else None
                if top is not None and isinstance(top.node.data, dict) and top.pending is None:
                    top.pending = self._mapping_key(event, top.node)
                    top.pending_at = _place(event)
                    continue
                node = self._node(event, top)
                if top is None:
                    root = node
                elif isinstance(top.node.data, list):
                    top.node.data.append(node)
                elif isinstance(top.node.data, dict) and top.pending is not None:
                    top.node.data[top.pending] = node
                    top.pending = None
                if not isinstance(event, yaml.ScalarEvent):
                    if len(stack) == DEPTH_MAX:
                        raise self._error(event, f"at most {DEPTH_MAX} levels of nesting")
                    stack.append(_Open(node))
        return None if root is not None and root.data is None else root

    def _error(self, event: Any, expected: str, key: str = "", value: object = None) -> ConfigError:
        line, column = _place(event)
        return ConfigError(self.file, expected, line=line, column=column, key=key, value=value)

    def _mapping_key(self, event: Any, owner: Node) -> str:
        self._refuse_tricks(event, owner.key)
        if not isinstance(event, yaml.ScalarEvent):
            raise self._error(event, "a plain word as key", owner.key)
        name = str(event.value)
        assert isinstance(owner.data, dict)
        if name in owner.data:
            first = owner.data[name].key_line
            raise self._error(
                event, f"each key once (it stands in line {first} already)", _path(owner.key, name), name
            )
        return name

    def _node(self, event: Any, top: _Open | None) -> Node:
        key = ""
        if top is not None:
            if isinstance(top.node.data, list):
                key = f"{top.node.key}[{len(top.node.data) + 1}]"
            else:
                key = _path(top.node.key, top.pending or "")
        self._refuse_tricks(event, key)
        data: str | list[Node] | dict[str, Node] | None
        if isinstance(event, yaml.ScalarEvent):
            empty = not event.style and event.value in ("", "~", "null")
            data = None if empty else str(event.value)
        else:
            data = [] if isinstance(event, yaml.SequenceStartEvent) else {}
        place = _place(event)
        key_place = top.pending_at if top is not None and top.pending is not None else place
        return Node(self.file, *place, key, data, *key_place)

    def _refuse_tricks(self, event: Any, key: str) -> None:
        if isinstance(event, yaml.AliasEvent):
            raise self._error(event, "the value itself, not an alias", key, f"*{event.anchor}")
        if event.tag is not None and event.tag != "!":
            raise self._error(event, "a value without a tag", key, event.tag)


def _place(event: Any) -> tuple[int, int]:
    """Line and column of an event, counted from 1."""
    return event.start_mark.line + 1, event.start_mark.column + 1


def _path(owner: str, name: str) -> str:
    return f"{owner}.{name}" if owner else name


_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
