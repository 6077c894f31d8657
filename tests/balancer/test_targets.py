"""States of targets: which probes bring them about, by which reason, and what the data path is told."""

from __future__ import annotations

import pytest

from everwall.balancer.choice import CHOICE, FAIL_OPEN, HEALTHY, MOVE, NEVER
from everwall.balancer.targets import Reason, State, Targets
from everwall.limits import GWLB_TARGETS_MAX, SECOND_NS

PASS, FAIL = Reason.NONE, Reason.FAILED_CHECKS


def one(**kind) -> Targets:
    targets = Targets(healthy_threshold=3, unhealthy_threshold=2, **kind)
    targets.register("fw1", "10.0.0.1", 0)
    targets.started("fw1", 0)
    return targets


def probe(targets: Targets, *outcomes: Reason, start: int = 1) -> list[State]:
    seen = []
    for second, outcome in enumerate(outcomes, start):
        targets.probed("fw1", outcome, second * SECOND_NS)
        seen.append(targets["fw1"].state)
    return seen


def told(targets: Targets) -> tuple[int, int]:
    row = targets.rows[targets["fw1"].row]
    return int(row[CHOICE]), int(row[MOVE])


def test_initial_until_the_healthy_threshold():
    targets = one()
    assert probe(targets, PASS, PASS, PASS) == [State.INITIAL, State.INITIAL, State.HEALTHY]
    assert [(e.state, e.reason) for e in targets.events] == [
        (State.INITIAL, Reason.REGISTRATION),
        (State.INITIAL, Reason.INITIAL_CHECKING),
        (State.HEALTHY, Reason.NONE),
    ]


def test_only_consecutive_outcomes_count():
    targets = one()
    assert probe(targets, PASS, PASS, FAIL, PASS, PASS) == [State.INITIAL] * 5
    assert probe(targets, PASS, FAIL, PASS, FAIL, PASS) == [State.HEALTHY] * 5


@pytest.mark.parametrize("reason", [Reason.FAILED_CHECKS, Reason.TIMEOUT, Reason.CODE_MISMATCH])
def test_unhealthy_says_why_and_when(reason):
    targets = one()
    probe(targets, PASS, PASS, PASS)
    probe(targets, reason, reason, start=10)
    event = targets.events[-1]
    assert (event.time, event.target, event.state, event.reason) == (
        11 * SECOND_NS,
        "fw1",
        State.UNHEALTHY,
        reason,
    )
    assert targets["fw1"].since == 11 * SECOND_NS


def test_a_target_that_never_answered_becomes_unhealthy():
    assert probe(one(), FAIL, FAIL) == [State.INITIAL, State.UNHEALTHY]


def test_data_path_is_told_who_takes_new_flows_and_who_loses_his():
    for rebalance, move in ((True, 1), (False, 0)):
        targets = one(rebalance=rebalance, deregistration_delay=10)
        assert told(targets) == (FAIL_OPEN, 0)
        probe(targets, PASS, PASS, PASS)
        assert told(targets) == (HEALTHY, 0)
        probe(targets, FAIL, FAIL)
        assert told(targets) == (FAIL_OPEN, move)
        probe(targets, PASS, PASS, PASS)
        targets.deregister("fw1", 100)
        assert told(targets) == (NEVER, 0)
        targets.handle_timer(110)
        assert told(targets) == (NEVER, move)


def test_draining_ends_after_the_deregistration_delay():
    targets = one(deregistration_delay=60 * SECOND_NS)
    targets.deregister("fw1", SECOND_NS)
    assert (targets["fw1"].state, targets["fw1"].reason) == (State.DRAINING, Reason.DEREGISTRATION)
    targets.handle_timer(61 * SECOND_NS - 1)
    assert targets["fw1"].state is State.DRAINING
    targets.handle_timer(61 * SECOND_NS)
    assert (targets["fw1"].state, targets["fw1"].reason) == (State.UNUSED, Reason.NOT_REGISTERED)


def test_probe_that_ends_after_deregistration_changes_nothing():
    targets = one(deregistration_delay=0)
    targets.deregister("fw1", 0)
    assert probe(targets, PASS, PASS, PASS) == [State.UNUSED] * 3


def test_registering_again_begins_anew_under_the_same_reference():
    targets = one(deregistration_delay=0)
    reference = targets["fw1"].reference
    targets.deregister("fw1", 0)
    targets.register("fw1", "10.0.0.1", 5)
    assert (targets["fw1"].state, targets["fw1"].reference) == (State.INITIAL, reference)


def test_another_address_is_another_target_to_its_flows():
    targets = one(deregistration_delay=0)
    reference = targets["fw1"].reference
    targets.deregister("fw1", 0)
    targets.register("fw1", "10.0.0.9", 5)
    assert targets["fw1"].reference != reference
    assert targets.by_reference(reference) is None


def test_registering_twice_is_refused():
    targets = one()
    with pytest.raises(ValueError, match="registered already"):
        targets.register("fw1", "10.0.0.1", 1)
    with pytest.raises(ValueError, match="as target fw1"):
        targets.register("fw2", "10.0.0.1", 1)
    with pytest.raises(ValueError, match=r"ten"):
        targets.register("fw3", "ten", 1)


def test_deregistering_twice_or_nobody_is_refused():
    targets = one()
    targets.deregister("fw1", 0)
    with pytest.raises(ValueError, match="draining already"):
        targets.deregister("fw1", 1)
    with pytest.raises(KeyError):
        targets.deregister("fw9", 1)


def test_targets_are_bounded_and_the_longest_gone_makes_room():
    targets = Targets(deregistration_delay=0)
    for number in range(GWLB_TARGETS_MAX):
        targets.register(f"t{number}", f"10.0.{number >> 8}.{number & 255}", 0)
    with pytest.raises(ValueError, match="300 targets"):
        targets.register("one-more", "10.1.0.0", 0)
    targets.deregister("t7", 1)
    targets.deregister("t8", 2)
    row = targets["t7"].row
    assert targets.register("one-more", "10.1.0.0", 3).row == row
    assert "t7" not in targets
    assert "t8" in targets
