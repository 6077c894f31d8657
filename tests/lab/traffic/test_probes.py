"""What arrivals of probes tell about the event."""

from __future__ import annotations

from everwall.lab.traffic.probes import Arrivals


def test_a_probe_that_was_under_way_at_the_event_proves_nothing() -> None:
    arrivals = Arrivals()
    arrivals.add(4, 90, 95)
    arrivals.add(4, 99, 130)  # sent before the event, arrived after it
    arrivals.add(4, 150, 160)
    assert arrivals.summary(100) == [{"flow": 4, "packets": 3, "first_after_ns": 160}]


def test_the_first_to_arrive_counts_though_another_was_sent_earlier() -> None:
    arrivals = Arrivals()
    arrivals.add(1, 101, 500)
    arrivals.add(1, 110, 120)
    assert arrivals.summary(100)[0]["first_after_ns"] == 120


def test_a_flow_that_never_came_back_says_so() -> None:
    arrivals = Arrivals()
    arrivals.add(1, 10, 20)
    assert arrivals.summary(100) == [{"flow": 1, "packets": 1, "first_after_ns": None}]
