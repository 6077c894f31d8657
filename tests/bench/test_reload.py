"""What the times of a reload's packets mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench import reload

MS = 1_000_000


class Told(reload.Traffic):
    """Packets that nobody sends: one each ms, back after 1 ms."""

    def __post_init__(self) -> None:
        self.count = 100
        self.sent[:100] = np.arange(1, 101) * MS
        self.came[:100] = self.sent[:100] + MS
        self.fresh[:100:10] = True
        self.refused[1:100:2] = True


@pytest.fixture
def operator(tmp_path: Any) -> reload._Operator:
    made = reload._Operator(tmp_path, 0.0)
    names = ("begin", "same asked", "same swapped", "same done")
    later = ("refusing asked", "refusing swapped", "refusing done", "end")
    made.at = {name: at * MS for name, at in zip(names + later, (1, 20, 30, 40, 60, 70, 80, 101))}
    made.bounced = [0, 10, 28, 40, 50, 60]
    made.told = [
        {"ruled_out": 0, "read_ms": 9.0, "packets_waited_us": 40.0},
        {"ruled_out": 7, "read_ms": 9.0, "packets_waited_us": 50.0},
    ]
    return made


def test_who_was_allowed_throughout_and_did_not_come_back_is_lost(operator: reload._Operator) -> None:
    traffic = Told(None)  # type: ignore[arg-type]
    assert reload._figures(traffic, operator)["lost"] == 0
    traffic.came[[22, 25, 64]] = 0  # allowed, still allowed, allowed
    traffic.came[75:100:2] = 0  # refused since 70 ms
    figures = reload._figures(traffic, operator)
    assert figures["lost"] == 3
    assert figures["refused_passed_for_ms"] == pytest.approx(5.0), "of 74 ms, back at 75"
    assert (figures["touched"], figures["ruled_out"], figures["packets_waited_us"]) == (0, 7, 50.0)
    assert figures["bounced_share"] == 18 / 18


def test_the_longest_way_is_told_of_each_time(operator: reload._Operator) -> None:
    traffic = Told(None)  # type: ignore[arg-type]
    traffic.came[[5, 25, 35, 30]] += np.array([2, 4, 3, 1]) * MS
    figures = reload._figures(traffic, operator)
    assert (figures["worst_ms_quiet"], figures["worst_ms_reload"], figures["worst_ms_rematch"]) == (3, 5, 4)
    assert (figures["worst_ms_new_quiet"], figures["worst_ms_new_reload"]) == (1, 2)
