"""The store is lost, and the lab waits for what the firewalls say of it, and not for ever."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from everwall.lab import cluster, store
from everwall.lab.cluster import Cluster
from everwall.lab.processes import LabError

Answers = dict[str, list[dict[str, Any]]]


def facts(connections: int, percent: int, connected: bool = True) -> dict[str, Any]:
    return {
        "connected": connected,
        "connections": connections,
        "resync_percent": percent,
        "resync_ms": 3.5 if percent == 100 else None,
        "unsynced_sessions": 100 - percent,
        "last_error": "" if connected else "refused",
    }


@pytest.fixture
def lose_store(monkeypatch: pytest.MonkeyPatch):
    """Loses the store of firewalls that answer, question after question, as told: the last answer stays."""

    def lose(answers: Answers) -> tuple[dict[str, Any], list[str]]:
        losing = Cluster(SimpleNamespace(path=Path()), SimpleNamespace(store_netns=None), None, True)
        losing.firewalls, losing.store = dict.fromkeys(answers), None

        def ask(name: str, command: str) -> dict[str, Any]:
            assert command == "store"
            return answers[name].pop(0) if len(answers[name]) > 1 else answers[name][0]

        monkeypatch.setattr(losing, "ask", ask)
        monkeypatch.setattr(store, "restart", lambda *_: None)
        said: list[str] = []
        return losing.lose_store(said.append), said

    return lose


def test_it_waits_for_the_last_firewall_to_be_whole(lose_store) -> None:
    found, said = lose_store(
        {
            "fw1": [facts(1, 100), facts(2, 100)],
            "fw2": [facts(4, 100), facts(5, 62), facts(5, 100)],
        }
    )
    assert (found["percent"], found["unsynced_sessions"]) == (100, 0)
    assert found["nodes_ms"] == {"fw1": 3.5, "fw2": 3.5}
    assert said[0] == "the store is back, and empty; resync 62 %, unsynced sessions 38"


def test_a_hundred_percent_of_the_store_that_is_gone_do_not_count(lose_store) -> None:
    _, said = lose_store(
        {"fw1": [facts(1, 100), facts(1, 100), facts(2, 100, connected=False), facts(2, 100)]}
    )
    assert [line.partition("resync ")[2].partition(" %")[0] for line in said] == ["0", "0", "100"]


def test_a_resync_that_never_ends_is_an_error_that_says_who_is_how_far(
    lose_store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "RESYNC_DEADLINE_S", 0.0)
    with pytest.raises(LabError, match=r"not within 0 s: fw1 100 %.*, fw2 0 % \(last error: refused\)"):
        lose_store(
            {"fw1": [facts(1, 100), facts(2, 100)], "fw2": [facts(1, 100), facts(1, 100, connected=False)]}
        )
