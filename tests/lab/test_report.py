"""The report says in words what the figures say, and evidence has a row for everybody."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from rich.console import Console

from everwall.lab import report
from everwall.lab.measure import Node, Run
from tests.lab.test_measure import a_run, without_resiliency


def told(*runs: Run) -> str:
    console = Console(width=100, record=True, force_terminal=False)
    with console.capture() as captured:
        report.show(console, runs)
    return captured.get()


def test_the_report_tells_the_difference_and_the_verdict() -> None:
    on, off = a_run(), without_resiliency()
    on.nodes = [Node("fw1", packets=1234), Node("fw2", victim=True, restored=150)]
    on.store = {"server": "redis 7.0.15", "tls": True, "auth": True}
    text = told(on, off)
    assert "fw2 was killed (SIGKILL) while it carried 150 of 300 connections." in text
    assert "With resiliency on: all 300 connections went on, none was lost." in text
    assert "With resiliency off: 150 connections lost, 150 went on." in text
    assert "redis 7.0.15, TLS, AUTH" in text
    assert "600 to 1000 ms  150" in text, "the histogram has the victim's connections in one bar"
    assert "fw2 *" in text
    assert "first TCP packet of an unknown session is not SYN" in text
    assert "Every promise was kept." in text


def test_the_report_says_how_packets_went() -> None:
    plain, cut = a_run(port="raw"), a_run(port="xdp", cut_through="on")
    plain.nodes = [Node("fw1", forwarded=2000)]
    cut.nodes = [Node("fw1", forwarded=2000, bounced=1900)]
    text = told(cut)
    assert "xdp, cut-through" in text
    assert "1,900 (95%)" in text
    assert "answered in the kernel" not in told(plain)


def test_the_report_tells_of_the_store_that_was_lost_and_filled_again() -> None:
    resync = {"percent": 100, "unsynced_sessions": 0, "took_ms": 1234.5, "nodes_ms": {"fw1": 3.2}}
    on, off = a_run(fail="store", resync=resync), without_resiliency()
    text = told(on, off)
    assert "The store was killed and came back empty; once the firewalls had filled it again, fw2" in text
    assert "100 % in 1,234 ms" in text
    on.resync["unsynced_sessions"] = 2
    assert "100 % in 1,234 ms, 2 unsynced" in told(on)
    off.fail = "store"
    assert "resync" not in told(off)
    assert "store was killed" not in told(off), "without resiliency it was left alone"


def test_the_report_tells_that_the_victim_came_back() -> None:
    text = told(a_run(fail="isolate", returned_ms=412.0))
    assert "fw2 was cut off everything: data, health checks and store while it carried" in text
    assert "fw2 came back at two thirds of the run." in text
    assert "healthy after return" in text
    assert "412 ms" in text


def test_the_report_names_what_was_broken() -> None:
    run = a_run()
    run.on_victim[0].lost = "no answer"
    text = told(run)
    assert "Broken promises" in text
    assert "resiliency on: 1 of the victim's 150 connections were lost" in text


def test_nothing_measured_is_no_report() -> None:
    assert told() == ""


def test_the_json_is_written_with_the_error_when_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lab.json"
    report.write_json(path, [a_run()], "interrupted")
    found = json.loads(path.read_text())
    assert found["error"] == "interrupted"
    assert [run["resiliency"] for run in found["runs"]] == ["on"]
    report.write_json(path, [])
    assert json.loads(path.read_text()) == {"runs": []}


def test_evidence_has_a_row_per_connection_and_per_probe(tmp_path: Path) -> None:
    report.write_evidence(tmp_path, a_run())
    with open(tmp_path / "connections-on.csv", newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) == 300
    assert rows[1]["target"] == "fw2"
    assert float(rows[1]["stall_ms"]) == 700.0
    assert len((tmp_path / "probes-on.csv").read_text().splitlines()) == 26
