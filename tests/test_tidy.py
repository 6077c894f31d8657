"""What a reader of the sources may rely on, and what the generated pages must say."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUFFIXES = {".py", ".md", ".toml", ".sh", ".lua", ".yaml", ".yml", ".txt", ".cfg", ".c", ".h"}
FOLDERS = ["src", "tests", "scripts", "docs", "bench", "examples", "bpf", ".ci"]
LINES_MAX = 700

# Put together from pieces, so that this file is no finding of its own.
BANNED = {
    "a path of somebody's machine": r"/(?:ro" r"ot|ho" r"me/\w+|wo" r"rk|Use" r"rs/\w+)/",
    "a registry's address": r"py" r"pi\.org|python" r"hosted\.org|crates\.i" r"o\b",
    "unfinished work": r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b",
    "a work order's number": r"(?i)\bissu" r"e #?\d",
    "a debugger": r"\bbreak" r"point\(\)|\bpd" r"b\.set_trace",
}


def files() -> Iterator[Path]:
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        if (ROOT / folder).is_dir():
            found += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    for path in sorted(found):
        if (path.suffix in SUFFIXES or path.name in ("Makefile", "run")) and "egg-info" not in str(path):
            yield path


@pytest.mark.parametrize("path", list(files()), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_tidy(path: Path) -> None:
    text = path.read_text()
    lines = text.split("\n")
    if path.suffix == ".py":
        assert len(lines) <= LINES_MAX, f"{len(lines)} lines: split it by what it is about"
    assert not text or (text.endswith("\n") and not text.endswith("\n\n")), "ends with one line end"
    assert "\r" not in text
    for number, line in enumerate(lines, 1):
        assert line == line.rstrip(), f"{path}:{number}: blanks at the end"
        assert path.name == "Makefile" or "\t" not in line, f"{path}:{number}: a tab"
        for what, pattern in BANNED.items():
            assert not re.search(pattern, line), f"{path}:{number}: {what}: {line.strip()}"


def test_the_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "write_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
