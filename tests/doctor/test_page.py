"""The page about the doctor names every check there is, and the figures that the command uses."""

from __future__ import annotations

import re
from pathlib import Path

from everwall.doctor.sizing import SERVERS

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = (ROOT / "docs" / "doctor.md").read_text()


def test_every_check_is_on_the_page() -> None:
    sources = [path.read_text() for path in (ROOT / "src" / "everwall" / "doctor").glob("*_checks.py")]
    checks = {
        name for text in sources for name in re.findall(r'\b(?:ok|warning|error)\(\s*"([a-z-]+)"', text)
    }
    tabled = {
        name
        for row in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)
        for name in re.findall("`([a-z-]+)`", row)
    }
    assert len(checks) > 30
    assert checks <= tabled, f"not on the page: {sorted(checks - tabled)}"


def test_the_figures_of_the_page_are_those_of_the_command() -> None:
    for name, server in SERVERS.items():
        label = f"{name[:-1]} {name[-1]}"
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| {label} |"))
        figures = [float(number) for number in re.findall(r"\| ([0-9.]+)", row)]
        assert figures == [server.session.bytes, server.session_hashed.bytes, server.host_name.bytes]
        assert server.session.source.split(" (")[0] in row
