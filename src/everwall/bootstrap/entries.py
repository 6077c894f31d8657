"""Keys and values with the place where each stands, from an init-cfg.txt, user data or a secret.

The three differ in form only. An init-cfg.txt has one ``key=value`` a line; in user data a semicolon parts them as
well as a line end; a secret is a JSON object. Each is a layer, and a bootstrap may have several: what
stands in the first of them counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from everwall.bootstrap.faults import LineError, UserDataError
from everwall.bootstrap.keys import (
    NETWORKING_KEYS,
    SECRET_KEYS,
    SWAP_KEY,
    UNUSED_KEYS,
    USED_KEYS,
    USER_DATA_KEYS,
    not_used,
)
from everwall.bootstrap.secret import is_secret
from everwall.config import did_you_mean

_SCRIPTS = {
    "#!": "a script",
    "#cloud-": "a cloud-init file",
    "#include": "a cloud-init include file",
    "## template:": "a cloud-init template",
    "Content-Type:": "a MIME archive",
    "MIME-Version:": "a MIME archive",
    "<powershell>": "a PowerShell script",
    "<script>": "a batch script",
}
"""How user data that is meant for others begins."""


class Kind(Enum):
    """What a layer is, in words."""

    INIT_CFG = "init-cfg.txt"
    USER_DATA = "user data"
    SECRET = "secret"
    XML = "bootstrap.xml"


class Entry(NamedTuple):
    """A value and where it stands; ``line`` 0 where there are no lines."""

    key: str
    value: str
    line: int
    file: str
    folder: Path = Path()
    """What relative paths in the value are relative to."""

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file


@dataclass
class Layer:
    """What one source says."""

    file: str
    """As messages name it."""
    kind: Kind
    folder: Path = Path()
    """What relative paths are relative to."""
    entries: dict[str, Entry] = field(default_factory=dict)
    warnings: list[tuple[int, str]] = field(default_factory=list)
    """Line and whole text."""

    def warn(self, line: int, key: str, text: str) -> None:
        # What is no word may be the second line of a broken secret.
        name = key if re.fullmatch(r"[a-z][a-z_-]{0,62}[a-z0-9]", key) else "(a key that is not shown)"
        place = f"{self.file}:{line}" if line else self.file
        self.warnings.append((line, f"{place}: {name}: {text}"))


def read_init_cfg(text: str, file: str, folder: Path) -> Layer:
    """The layer of an init-cfg.txt. Raises LineError."""
    layer = Layer(file, Kind.INIT_CFG, folder)
    for number, line in _lines(text):
        if line.strip() and not line.lstrip().startswith("#"):
            _line(layer, number, line)
    return layer


def read_user_data(text: str, file: str) -> Layer:
    """The layer of user data. Raises LineError, or UserDataError where it is meant for another reader."""
    layer = Layer(file, Kind.USER_DATA)
    for start, what in _SCRIPTS.items():
        if text.lstrip("\ufeff \t\r\n").startswith(start):
            raise UserDataError(file, f"key=value, parted by semicolons or line ends, not {what}", line=1)
    for number, line in _lines(text):
        if line.lstrip().startswith("#"):
            continue
        for piece in line.split(";"):
            # Who writes "a=1; b=2" means what he writes.
            if piece.strip():
                _line(layer, number, piece.strip())
    return layer


def read_secret(text: str, file: str) -> Layer:
    """The layer of a secret's string. Raises UserDataError; nothing of the text is shown."""
    expected = "a secret of key/value pairs: a JSON object whose values are texts"
    try:
        pairs = json.loads(text, object_pairs_hook=_Pairs)
    except ValueError:
        pairs = None
    if not isinstance(pairs, _Pairs):
        raise UserDataError(file, expected)
    layer = Layer(file, Kind.SECRET)
    for key, value in pairs:
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise UserDataError(file, expected, key=key if key in USED_KEYS else "")
        text_value = str(value).strip()
        if any(character != "\t" and not character.isprintable() for character in text_value):
            raise LineError(file, "printable text in one line", key=key if key in USED_KEYS else "")
        _add(layer, Entry(key.strip(), text_value, 0, file))
    return layer


class _Pairs(list[tuple[str, object]]):
    """A JSON object as it was written, a key that stands twice included."""


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        yield number, line.removesuffix("\r")


def _line(layer: Layer, number: int, line: str) -> None:
    for character in line:
        if character != "\t" and not character.isprintable():
            expected = f"printable text, not the character U+{ord(character):04X}"
            raise LineError(layer.file, expected, line=number)
    key, equals, value = line.partition("=")
    if not equals or not key.strip():
        # The line is not shown: it may hold a secret.
        raise LineError(layer.file, "key=value, or # and a comment", line=number)
    if line != line.strip() or key != key.rstrip() or value != value.lstrip():
        text = "spaces around key and value are ignored here, not everywhere"
        layer.warn(number, key.strip(), text)
    _add(layer, Entry(key.strip(), value.strip(), number, layer.file, layer.folder))


def _add(layer: Layer, entry: Entry) -> None:
    key, line = entry.key, entry.line
    if key in layer.entries:
        where = f"in line {layer.entries[key].line}" if line else "there"
        raise LineError(
            layer.file,
            f"each key once (it stands {where} already)",
            line=line or None,
            key=key,
            value=shown_value(entry),
        )
    layer.entries[key] = entry
    in_file = layer.kind is Kind.INIT_CFG
    known = (*USED_KEYS, *UNUSED_KEYS, *(() if in_file else USER_DATA_KEYS))
    if key in UNUSED_KEYS:
        if entry.value:
            layer.warn(line, key, not_used(UNUSED_KEYS[key]))
    elif key in USED_KEYS:
        if not entry.value and key not in NETWORKING_KEYS:
            layer.warn(line, key, "empty: as if it were not there")
    elif key not in known:
        if not in_file or key not in USER_DATA_KEYS:
            layer.warn(line, key, f"unknown key{did_you_mean(key, known)}")
        elif entry.value:
            layer.warn(line, key, not_used(_ONLY_IN_USER_DATA.get(key, "it belongs into user data")))


_ONLY_IN_USER_DATA = {SWAP_KEY: f"op-command-modes={SWAP_KEY} is what counts in a file"}


def merged(layers: Sequence[Layer]) -> tuple[dict[str, Entry], list[str]]:
    """All entries, the first layer's before the second's; with a warning for each that is passed over."""
    entries: dict[str, Entry] = {}
    overruled: list[str] = []
    for layer in layers:
        for key, entry in layer.entries.items():
            first = entries.get(key)
            if first is None or not first.value:
                entries[key] = entry
            elif entry.value and entry.value != first.value:
                overruled.append(f"{entry.place}: {key}: not used, because {first.place} says it too")
    return entries, overruled


def shown_value(entry: Entry) -> str | None:
    """The value for a message; None where it may be a secret."""
    known = entry.key in USED_KEYS and entry.key not in SECRET_KEYS
    # A URL with a password in it, or the secret itself where its file was asked for.
    secret = (entry.key == "redis-endpoint" and "@" in entry.value) or is_secret(entry.value)
    return entry.value if known and not secret else None


def words_of(entry: Entry) -> Iterable[str]:
    """The words of a list, parted by commas or spaces."""
    return filter(None, re.split(r"[,\s]+", entry.value))
