"""The traffic log: a line for each session, and no line is worth a node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everwall.management.logs import TrafficLog


def test_a_line_is_one_json_object(tmp_path: Path) -> None:
    log = TrafficLog(tmp_path / "traffic.log")
    log.write([{"id": 1, "end": "tcp-fin"}, {"id": 2, "end": "aged-out"}])
    log.close()
    lines = (tmp_path / "traffic.log").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [1, 2]


def test_a_full_disk_costs_lines_and_nothing_else() -> None:
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("no /dev/full here")
    log = TrafficLog(full)
    log.write([{"id": number} for number in range(3)])
    log.close()
