"""The simulator keeps its own promises: it can fail, it repeats itself, every run has its kill."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from everwall.engine import Engine
from everwall.sim.__main__ import main
from everwall.sim.cluster import STRICT, SimulationFailure, simulate
from everwall.sim.loop import MS
from everwall.sim.plan import Kind, Moment, Plan, draw, draw_strict
from everwall.store.memory import MemoryStore
from tests.sim.planted import (
    AlwaysAnswers,
    BlindDelete,
    NeverCompares,
    NeverHears,
    NeverRefreshed,
    NeverWaits,
    NewPlaceOnly,
    NoPolicyCheck,
    NoRestore,
    ServersTime,
)

SEEDS = range(1, 201)


def first_failure(
    engine: type[Engine] = Engine,
    store: type[MemoryStore] = MemoryStore,
    where: Callable[[Plan], object] = lambda plan: True,
    **planted: Any,
) -> SimulationFailure:
    """``where``: plans that can tell; the others are left out because they take their time."""
    for seed in SEEDS:
        if not where(draw(seed)):
            continue
        try:
            simulate(seed, engine, store(), **planted)
        except SimulationFailure as failure:
            return failure
    raise AssertionError(f"{engine.__name__} with {store.__name__} and {planted} went through all seeds")


def test_an_engine_that_restores_nothing_is_found() -> None:
    failure = first_failure(NoRestore)
    assert "no round trip" in failure.what
    assert "park: " in str(failure), "the story says what became of the flow's packets"


def test_an_engine_that_restores_against_todays_policy_is_found() -> None:
    assert "which policy does not allow" in first_failure(NoPolicyCheck).what


def test_an_engine_that_answers_what_no_rule_says_is_found() -> None:
    assert "about which no rule says so" in first_failure(AlwaysAnswers).what


def test_an_engine_that_lets_records_grow_old_is_found() -> None:
    failure = first_failure(NeverRefreshed)
    assert "no round trip" in failure.what or "is lost" in failure.what
    assert draw(failure.seed).long, "only flows that outlive the first expiry can tell"


def test_an_engine_that_answers_before_the_store_has_it_is_found() -> None:
    assert "before the store had it" in first_failure(NeverWaits).what


def test_an_engine_that_writes_without_comparison_is_found() -> None:
    assert "HSET took a record back" in first_failure(NeverCompares).what


def test_a_store_that_deletes_without_comparison_is_found() -> None:
    assert "deleted a record" in first_failure(store=BlindDelete).what


def test_a_store_whose_time_goes_back_is_found() -> None:
    assert "took a record back" in first_failure(store=ServersTime, where=clock_is_set_back).what


def clock_is_set_back(plan: Plan) -> bool:
    return any(fault.step < 0 for fault in plan.faults)


def test_a_node_that_asks_the_new_place_only_is_found() -> None:
    assert "no round trip" in first_failure(where=lambda plan: plan.moving, protocol=NewPlaceOnly).what


def test_a_node_that_takes_what_it_knows_of_the_layout_for_more_than_a_lease_is_found() -> None:
    assert "no round trip" in first_failure(where=lambda plan: plan.relayout, link=NeverHears).what


@pytest.mark.kernel
def test_a_failure_says_how_to_see_it_again() -> None:
    with pytest.raises(SimulationFailure) as caught:
        simulate(4, NoRestore)
    first, last = str(caught.value).split("\n")[0], str(caught.value).split("\n")[-1]
    assert first.startswith("seed 4, after ")
    assert last == "see it again: make sim SEED=4"
    with pytest.raises(SimulationFailure) as again:
        simulate(4, NoRestore)
    assert str(again.value) == str(caught.value)


@pytest.mark.kernel
def test_a_run_is_its_seed() -> None:
    report = simulate(7)
    assert report == simulate(7)
    assert report.restored_after_kill > 0


def test_the_command_names_the_seed_before_anything_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "18"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "seed 18"
    assert lines[1].startswith("[1/1] seed 18: ")


def test_many_seeds_end_with_a_summary(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--first", "18", "--seeds", "2", "--jobs", "2"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "seeds 18 to 19, 2 at a time"
    assert lines[3].startswith("2 seeds, 0 failed")


def test_in_strict_mode_what_a_client_was_told_survives_kills_at_any_instant() -> None:
    reports = [simulate(seed, mode=STRICT) for seed in range(1, 4)]
    assert sum(report.acknowledged for report in reports) > 100
    assert sum(report.lost_by_store for report in reports) <= 2


def test_a_strict_plan_kills_again_and_again() -> None:
    for plan in map(draw_strict, SEEDS):
        assert all(rule.strict for rule in plan.rulebook.rules)
        assert sum(fault.kind is Kind.KILL for fault in plan.faults) >= 3


def test_every_plan_has_a_kill_and_every_fault_has_its_turn() -> None:
    plans = [draw(seed) for seed in SEEDS]
    assert all(any(fault.kind is Kind.KILL for fault in plan.faults) for plan in plans)
    seen = {fault.kind for plan in plans for fault in plan.faults}
    assert seen == set(Kind)
    assert 0.2 < sum(plan.long for plan in plans) / len(plans) < 0.5
    assert 0.2 < sum(plan.change is not None for plan in plans) / len(plans) < 0.6
    assert any(fault.step for plan in plans for fault in plan.faults)
    assert any(plan.wait_replicas for plan in plans)
    assert 0.2 < sum(plan.relayout is not None for plan in plans) / len(plans) < 0.4
    assert 0.1 < sum(plan.rotation is not None for plan in plans) / len(plans) < 0.4
    assert not any(plan.moving and (plan.relayout or plan.rotation) for plan in plans)
    doubled = 0
    moments = {fault.moment for plan in plans for fault in plan.faults}
    assert moments == set(Moment)
    for plan in plans:
        nodes = [fault for fault in plan.faults if not fault.kind.is_of_store]
        for before, after in pairwise(nodes):
            if after.at <= before.at + 1_500 * MS:
                doubled += 1
                assert plan.nodes > 2, "one is left"
            else:
                assert after.at > before.at + before.lasts + before.back, "the cluster is whole again"
    assert doubled > 10
