"""``everwall size``: the sum in words, as JSON, and numbers without sense."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from everwall.cli.main import application


def run(*arguments: str) -> Any:
    return CliRunner().invoke(application("size"), ["size", *arguments])


def test_both_formulas_stand_beside_each_other() -> None:
    done = run("--sessions", "10000000", "--firewalls", "10", "--replicas", "1")
    assert done.exit_code == 0
    assert "12.80 GB  128 bytes a session" in done.stdout
    assert "7.33 GB  73.3 bytes a session (measured, redis 7.0.15)" in done.stdout
    assert "noeviction" in done.stdout
    assert "16 GB of memory: 2 machines" in done.stdout


def test_a_server_that_was_not_measured_says_so() -> None:
    done = run("--sessions", "1000", "--firewalls", "1", "--server", "valkey8", "--host-names", "10")
    assert done.stdout.count("not measured, redis figure used") == 2


def test_json_has_the_sum_in_bytes() -> None:
    done = run("--sessions", "1000000", "--firewalls", "2", "--json")
    body = json.loads(done.stdout)
    assert body["sessions"] == 2_000_000
    assert body["vendor"] == 256_000_000
    assert body["session_bytes"] == {"bytes": 73.3, "source": "measured, redis 7.0.15"}


def test_nonsense_ends_with_1_and_one_line() -> None:
    done = run("--sessions", "0", "--firewalls", "2")
    assert done.exit_code == 1
    assert done.stderr == "everwall: --sessions: 0: expected 1 to 16000000 (a node has room for no more)\n"
    assert run("--sessions", "1", "--firewalls", "2", "--server", "redis6").exit_code == 2
