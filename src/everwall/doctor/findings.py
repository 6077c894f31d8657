"""One line of a report: how bad, about what, what is, and what to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum

_LINE_MAX = 600


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    """It works, and costs something: time, memory, safety, or sessions on a bad day."""
    ERROR = "error"
    """Sessions do not survive like this."""


@dataclass(frozen=True)
class Finding:
    """What was found about one thing."""

    level: Level
    check: str
    """The thing, one word with dashes."""
    text: str
    advice: str = ""
    """What to do; empty where all is well."""

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def ok(check: str, text: str) -> Finding:
    return Finding(Level.OK, check, _line(text))


def warning(check: str, text: str, advice: str) -> Finding:
    return Finding(Level.WARNING, check, _line(text), _line(advice))


def error(check: str, text: str, advice: str) -> Finding:
    return Finding(Level.ERROR, check, _line(text), _line(advice))


def _line(text: str) -> str:
    """One harmless line: parts of it were said by a server that may be anybody's."""
    if len(text) > _LINE_MAX:
        text = text[: _LINE_MAX - 3] + "..."
    return "".join(letter if letter.isprintable() else " " for letter in text)


def count(findings: list[Finding]) -> dict[str, int]:
    """How many of each level."""
    return {level.value: sum(finding.level is level for finding in findings) for level in Level}
