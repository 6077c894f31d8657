"""What the benchmark makes of what it has seen: bounds, the search for a steady state, a flood of full strength."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import bounds
from bench.rig import measures, plan
from bench.rig.contenders import Contender
from bench.rig.frames import Kind
from bench.rig.generator import Count, Route, Traffic
from bench.rig.network import Pair

PAIR = Pair("near", "far", 1, "10.0.0.1", "10.0.0.2", bytes(6), bytes(6))


class Device:
    """Stands for the generator and what is behind it: loses what exceeds its capacity, and has hiccups."""

    def __init__(self, capacity: float, disturbed: int = 0, reach: float = 1.0) -> None:
        """``disturbed``: of five runs so many lose 5 %; ``reach``: the share of a rate that leaves."""
        self.capacity, self.disturbed, self.reach, self.runs = capacity, disturbed, reach, 0
        self.contender = Contender("device", Route.encapsulated(PAIR), "far", [])
        self.rig: Any = SimpleNamespace(generator=self)

    def run(self, route: Route, traffic: Traffic, seconds: float) -> Count:
        sent, returned = np.zeros(16, np.uint64), np.zeros(16, np.uint64)
        leaves = traffic.rate * self.reach * seconds
        sent[Kind.STRAY] = int(leaves * traffic.flood)
        sent[Kind.CLIENT_DATA] = int(leaves * (1 - traffic.flood))
        self.runs += 1
        passes = 0.95 if self.runs % 5 < self.disturbed else 1.0
        returned[Kind.CLIENT_DATA] = min(sent[Kind.CLIENT_DATA] * passes, self.capacity * seconds)
        return Count(seconds, sent, returned, 0, 0.0, None)

    def circle(self, route: Route, traffic: Traffic, seconds: float) -> Count:
        amount = np.full(16, 0, np.uint64)
        amount[Kind.CLIENT_DATA] = self.capacity * seconds * 1.5
        return Count(seconds, amount, amount, 0, 0.0, None)


@pytest.mark.parametrize("disturbed", [0, 2])
def test_a_steady_state_is_the_devices_and_not_that_of_a_hiccup(disturbed: int) -> None:
    device = Device(1_000_000, disturbed)
    assert 980_000 < measures.steady(device.rig, device.contender) <= 1_000_000


def test_what_loses_in_most_trials_is_no_steady_state() -> None:
    device = Device(1_000_000, disturbed=3)
    assert measures.steady(device.rig, device.contender) == 0.0


@pytest.mark.parametrize("reach", [1.1, 1.0, 0.85])
def test_so_much_is_asked_for_that_the_whole_flood_leaves(reach: float) -> None:
    device = Device(9e9, reach=reach)
    bench = plan.Bench(device.rig, rounds=1, seconds=0.1)
    more = bench._flood_asked(device.contender, 500_000)
    flood = measures.flooded(device.rig, device.contender, more * 500_000, more * plan.FLOOD_RATE, 1.0).count
    assert plan.FLOOD_RATE <= flood.sent_rate(*measures.FLOOD) <= 1.15 * plan.FLOOD_RATE
    assert flood.sent_rate(*measures.ESTABLISHED) == pytest.approx(flood.sent_rate(Kind.STRAY) / 2, rel=0.01)


def test_each_bound_is_held_against_a_figure() -> None:
    assert set(plan.BOUNDS) <= set(plan.FIGURES)
    found = {name: float(bound) for name, (_, bound) in plan.BOUNDS.items()}
    found |= {"cutthrough_ns": 100.1, "cps_vs_kernel": 0.79}
    del found["flood_established_loss"]
    held = bounds.held_against(plan.BOUNDS, {**found, "resiliency_latency_us": None})
    assert {name for name, row in held.items() if row["ok"] is False} == {"cutthrough_ns", "cps_vs_kernel"}
    assert {name for name, row in held.items() if row["ok"] is None} == {
        "resiliency_latency_us",
        "flood_established_loss",
    }
    assert held["cutthrough_ns"] == {"measured": 100.1, "bound": "<= 100", "ok": False}


def test_the_end_says_what_is_not_met(capsys: pytest.CaptureFixture[str]) -> None:
    device = Device(1.0)
    device.rig.missing = {}
    bench = plan.Bench(device.rig, rounds=1, seconds=0.1)
    bench._found |= dict.fromkeys(plan.SANE, 1e9) | {"cutthrough_vs_bounce": 0.7, "cutthrough_ns": 101.0}
    figures = bench.figures()
    assert figures["sane"], "a bound that is not met does not make a run worthless"
    assert figures["bounds"]["cutthrough_ns"]["ok"] is False
    said = capsys.readouterr().out.splitlines()
    (line,) = [line for line in said if line.endswith("NOT MET")]
    assert line.split() == ["cutthrough_ns", "101.000", "<=", "100", "NOT", "MET"]
    assert any(line.split() == ["cutthrough_vs_bounce", "0.700", ">=", "0.65", "ok"] for line in said)
