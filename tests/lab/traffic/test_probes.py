"""What arrivals of probes tell about the event."""

from __future__ import annotations

from everwall.lab.traffic.probes import Arrivals


def test_a_probe_that_was_under_way_at_the_event_proves_nothing() -> None:
    arrivals = Arrivals()
    arrivals.add(4, 90, 95)
    arrivals.add(4, 99, 130)  # sent before the event, arrived after it
    arrivals.add(4, 150, 160)
    told = {"flow": 4, "packets": 3, "first_after_ns": 160, "silence_ns": 30}
    assert arrivals.summary(100, 100) == [told]


def test_the_first_to_arrive_counts_though_another_was_sent_earlier() -> None:
    arrivals = Arrivals()
    arrivals.add(1, 101, 500)
    arrivals.add(1, 110, 120)
    assert arrivals.summary(100, 100)[0]["first_after_ns"] == 120


def test_a_flow_that_never_came_back_says_so() -> None:
    arrivals = Arrivals()
    arrivals.add(1, 10, 20)
    told = {"flow": 1, "packets": 1, "first_after_ns": None, "silence_ns": None}
    assert arrivals.summary(100, 100) == [told]


def test_who_is_heard_for_a_while_after_the_event_is_silent_only_from_then_on() -> None:
    """A stopped firewall's cut-through answers for half a second more; flows may have moved before that."""
    arrivals = Arrivals()
    for sent in range(0, 700, 10):
        if not 400 <= sent < 450:
            arrivals.add(1, sent, sent + 1)
    (told,) = arrivals.summary(event_ns=100, effective_ns=600)
    assert told["first_after_ns"] == 601
    assert told["silence_ns"] == 60, "from the last one before it stopped to the first one after that"
