"""The arithmetic of a run, on samples whose answers are known by heart."""

from __future__ import annotations

import json

import pytest

from everwall.lab.measure import (
    CPU_SHARE_WANTED,
    Connection,
    Node,
    Probe,
    Run,
    broken_promises,
    choose_victim,
    cpu_share,
    find_flaps,
    histogram,
    mark_ms,
    next_pace,
    quantiles,
)


def a_run(**changes: object) -> Run:
    """300 connections on three firewalls, fw2 killed, everything as promised."""
    run = Run(resiliency="on", fail="kill", traffic="tcp", firewalls=3, victim="fw2", opened=300)
    run.detection_bound_ms = 800
    run.detection_ms = 400.0
    names = ["fw1", "fw2", "fw2", "fw3"]
    run.connections = [
        Connection(number, "idle", f"10.10.0.10:{number}", names[number % 4], verified=1000, stall_ms=5.0)
        for number in range(300)
    ]
    for each in run.on_victim:
        each.stall_ms = 700.0
    run.probes = [Probe(n, f"10.10.0.10:{n}", "fw2", fast=True, gap_ms=420.0 + n) for n in range(25)]
    run.drops = {"non-syn-tcp": 0}
    for name, value in changes.items():
        setattr(run, name, value)
    return run


def without_resiliency() -> Run:
    run = a_run(resiliency="off", drops={"non-syn-tcp": 1200})
    for each in run.on_victim:
        each.lost = "no answer"
    return run


def test_a_run_as_promised_breaks_nothing() -> None:
    assert broken_promises(a_run()) == []
    assert broken_promises(without_resiliency()) == []


def test_the_json_has_every_promised_figure_and_adds_up() -> None:
    found = json.loads(json.dumps(a_run().to_json()))
    assert found["connections"] == 300
    assert found["on_victim"] == 150
    assert found["lost"] == found["lost_on_victim"] == found["corrupt"] == 0
    assert found["survived"] == 300
    assert found["bytes_verified"] == 300_000
    assert found["detection_ms"] == 400.0
    assert found["gap_ms"] == {"p50": 432.0, "p99": 444.0, "max": 444.0}
    assert found["stall_ms"] == {"p50": 5.0, "p99": 700.0, "max": 700.0}
    assert found["drops"] == {"non-syn-tcp": 0}
    assert sum(bar["connections"] for bar in found["stall_histogram"]) == 300
    assert {"resiliency", "fail", "traffic", "firewalls", "restored", "cpu_share", "store"} <= found.keys()


def test_a_cut_through_that_hardly_answers_anything_is_a_broken_promise() -> None:
    nodes = [Node("fw1", forwarded=1000, bounced=900), Node("fw2", victim=True, forwarded=1000, bounced=80)]
    run = a_run(port="xdp", cut_through="on", nodes=nodes)
    assert broken_promises(run) == ["the cut-through is on and answered 49% of the packets, less than 50%"]
    nodes[1].bounced = 900
    assert broken_promises(run) == []
    found = run.to_json()
    assert (found["port"], found["cut_through"]) == ("xdp", "on")
    assert (found["forwarded"], found["bounced"], found["bounced_share"]) == (2000, 1800, 0.9)
    assert broken_promises(a_run(port="xdp")) == [], "and where it is off nobody expects it to"


def test_lost_and_survived_are_all_connections() -> None:
    found = without_resiliency().to_json()
    assert (found["lost"], found["lost_on_victim"], found["survived"]) == (150, 150, 150)


def test_one_lost_connection_breaks_the_promise() -> None:
    run = a_run()
    run.on_victim[0].lost = "ConnectionResetError"
    assert broken_promises(run) == ["1 of the victim's 150 connections were lost"]


def test_a_connection_lost_elsewhere_breaks_the_promise_in_both_runs() -> None:
    for run in (a_run(), without_resiliency()):
        run.connections[0].lost = "no answer"
        assert broken_promises(run) == ["1 connections were lost that the victim did not carry"]


def test_a_firewall_that_was_marked_unhealthy_loses_its_connections_where_nothing_restores_them() -> None:
    for run, broken in (
        (without_resiliency(), []),
        (
            a_run(),
            ["2 connections were lost that the victim did not carry (1 times another firewall was marked"],
        ),
    ):
        run.flapped = ["fw3"]
        held, moved, other = run.connections[3], run.connections[0], run.connections[4]
        moved.first_target = "fw3"
        for each in (held, moved):
            each.lost = "no answer"
        assert [line.partition(" unhealthy")[0] for line in broken_promises(run)] == broken
        assert run.to_json()["lost_by_flaps"] == (0 if broken else 2)
        other.lost = "no answer"
        assert any("connections were lost that the victim did not" in line for line in broken_promises(run))


def test_a_connection_that_a_flap_brought_to_the_victim_may_find_back_to_a_firewall_that_knows_it() -> None:
    run = without_resiliency()
    back, again = run.on_victim[:2]
    back.lost, back.first_target = "", "fw3"
    again.lost, again.first_target, again.target_after = "", "fw2", "fw2"
    assert any("cannot tell the difference" in line for line in broken_promises(run)), "nobody flapped"
    run.flapped = ["fw3"]
    assert broken_promises(run) == []
    assert (run.to_json()["spared_by_flaps"], run.to_json()["lost_on_victim"]) == (2, 148)
    again.target_after = "fw1"
    assert any("cannot tell the difference" in line for line in broken_promises(run))


def test_a_wrong_byte_breaks_the_promise() -> None:
    run = a_run()
    run.connections[7].corrupt = "8192 bytes at position 4096 are not the ones that were sent"
    assert broken_promises(run) == ["1 connections carried other bytes than were sent"]


def test_a_lab_that_cannot_tell_the_difference_is_broken() -> None:
    run = without_resiliency()
    run.on_victim[0].lost = ""
    assert any("cannot tell the difference" in line for line in broken_promises(run))


def test_connections_must_end_by_the_counter_that_says_so() -> None:
    run = without_resiliency()
    run.drops["non-syn-tcp"] = 149
    assert any("non-syn-tcp counts 149" in line for line in broken_promises(run))


def test_gap_and_stall_have_bounds_made_of_the_detection() -> None:
    late = a_run()
    late.probes[0].gap_ms = 500.1
    assert any("longest gap" in line for line in broken_promises(late))
    stalled = a_run()
    stalled.on_victim[0].stall_ms = 1100.1
    assert any("longest stall" in line for line in broken_promises(stalled))
    assert any("longest gap" in line for line in broken_promises(a_run(fail="store", probes=late.probes)))
    for fail in ("hang", "partition", "isolate"):
        assert broken_promises(a_run(fail=fail, probes=late.probes, returned_ms=400.0)) == []


def test_a_victim_that_comes_back_has_to_be_a_target_again() -> None:
    for run in (a_run(fail="isolate"), without_resiliency()):
        run.fail = "isolate"
        assert broken_promises(run) == ["the victim came back and was not marked healthy again"]
    assert a_run(fail="hang", returned_ms=412.34).to_json()["returned_ms"] == 412.3


def test_a_drain_has_no_detection_and_a_short_gap() -> None:
    run = a_run(fail="drain", detection_ms=0.0)
    for each in run.probes:
        each.gap_ms = 12.0
    assert broken_promises(run) == []
    run.probes[3].gap_ms = 60.1
    assert broken_promises(run) == ["the longest gap is 60 ms, the bound is 60 ms"]


def test_a_failure_that_is_noticed_late_or_never_breaks_the_promise() -> None:
    assert any("detection took 801 ms" in line for line in broken_promises(a_run(detection_ms=801.0)))
    assert any("detection took for ever" in line for line in broken_promises(a_run(detection_ms=None)))


def test_a_probe_flow_that_never_came_back_breaks_the_promise_and_stays_out_of_the_quantiles() -> None:
    run = a_run()
    run.probes[0].gap_ms = None
    assert broken_promises(run) == ["1 UDP probe flows of the victim never came back"]
    for each in run.probes:
        each.gap_ms = None
    assert run.gap_ms == {"p50": None, "p99": None, "max": None}


def test_too_small_a_victim_proves_nothing() -> None:
    run = a_run()
    for each in run.on_victim[60:]:
        each.target = "fw3"
    assert any("less than 25%" in line for line in broken_promises(run))
    assert any("UDP probe flows on the victim" in line for line in broken_promises(a_run(probes=[])))


def test_quantiles_are_values_that_were_measured() -> None:
    assert quantiles([float(n) for n in range(1, 101)]) == {"p50": 50.0, "p99": 99.0, "max": 100.0}
    assert quantiles([3.0]) == {"p50": 3.0, "p99": 3.0, "max": 3.0}


def test_the_histogram_loses_nobody() -> None:
    counted = dict(histogram([0.0, 9.9, 10.0, 4999.0, 5000.0, 1e9]))
    assert counted[10] == 2
    assert counted[30] == 1
    assert counted[5000] == 1
    assert counted[None] == 2


def test_the_victim_has_most_flows_and_equals_are_told_apart_by_name() -> None:
    assert choose_victim(["fw2", "fw1", "fw2", "fw3"]) == "fw2"
    assert choose_victim(["fw3", "fw1"]) == "fw1"
    assert choose_victim([]) == ""


def test_detection_is_the_first_unhealthy_mark_after_the_event() -> None:
    events = [
        {"time_ns": 50, "target": "fw2", "state": "unhealthy"},
        {"time_ns": 2_000_100, "target": "fw1", "state": "unhealthy"},
        {"time_ns": 3_000_100, "target": "fw2", "state": "draining"},
        {"time_ns": 5_000_100, "target": "fw2", "state": "unhealthy"},
        {"time_ns": 9_000_100, "target": "fw2", "state": "unhealthy"},
    ]
    assert mark_ms(events, "fw2", "unhealthy", 100) == 5.0
    assert mark_ms(events, "fw3", "unhealthy", 100) is None
    assert mark_ms(events, "fw2", "draining", 100) == 3.0


def test_a_flap_is_an_unhealthy_mark_of_a_firewall_that_was_well() -> None:
    events = [
        {"time_ns": 10, "target": "fw1", "state": "unhealthy"},
        {"time_ns": 110, "target": "fw1", "state": "unhealthy"},
        {"time_ns": 120, "target": "fw1", "state": "healthy"},
        {"time_ns": 130, "target": "fw2", "state": "unhealthy"},
    ]
    assert find_flaps(events, "fw2", 100, 125) == ["fw1"]
    assert find_flaps(events, "fw2", 100, 135) == ["fw1", "fw2"], "the victim was well before the event"


def test_the_busy_share_counts_neither_idle_nor_waiting() -> None:
    before = [100, 0, 100, 1000, 50, 0, 0, 0, 0, 0]
    after = [140, 0, 120, 1130, 60, 0, 0, 0, 0, 0]
    assert cpu_share(before, after) == pytest.approx(60 / 200)
    assert cpu_share(before, before) == 0.0


def test_the_pace_settles_at_the_wanted_share() -> None:
    """A machine where 10 % is other work and each unit of pace costs 20 %."""
    pace = 1.0
    for _ in range(12):
        pace = next_pace(pace, 0.10 + 0.20 * pace)
    assert 0.10 + 0.20 * pace == pytest.approx(CPU_SHARE_WANTED, abs=0.02)


def test_the_pace_stays_within_bounds_on_a_machine_that_is_busy_with_other_work() -> None:
    pace = 1.0
    for _ in range(30):
        pace = next_pace(pace, 1.0)
    assert pace == pytest.approx(0.25)
    for _ in range(30):
        pace = next_pace(pace, 0.0)
    assert pace == pytest.approx(4.0)
