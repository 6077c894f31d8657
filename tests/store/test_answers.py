"""What the worker is told of store time."""

from __future__ import annotations

import pytest

from everwall.limits import CLOCK_STEP_NS_MAX, MS_NS, SECOND_NS
from everwall.session.state import CLOCK_CONNECTIONS, CLOCK_OFFSET
from everwall.store.answers import CLOCK_DRIFT_NS, StoreClock
from everwall.store.redis import make_clock

NOW_NS = 1_900_000_000 * SECOND_NS


def watched(drift_ns: int, rtt_ns: int = MS_NS) -> tuple[int, int]:
    """(how far the offset moved, how often live sessions were offered) when the server's clock went off by so much."""
    words = make_clock()
    clock = StoreClock(words)
    clock.set(NOW_NS, 0)
    clock.watch(NOW_NS + SECOND_NS + drift_ns, SECOND_NS, rtt_ns)
    return int(words[CLOCK_OFFSET]) - NOW_NS, int(words[CLOCK_CONNECTIONS])


@pytest.mark.parametrize("drift_ns", [CLOCK_DRIFT_NS, -CLOCK_DRIFT_NS])
def test_jitter_of_the_network_moves_no_clock(drift_ns: int) -> None:
    assert watched(drift_ns) == (0, 0)
    assert watched(2 * drift_ns, rtt_ns=CLOCK_DRIFT_NS) == (0, 0), "on a slow way there is more of it"


@pytest.mark.parametrize("drift_ns", [SECOND_NS, -CLOCK_STEP_NS_MAX])
def test_a_clock_that_was_set_by_a_little_is_followed(drift_ns: int) -> None:
    assert watched(drift_ns) == (drift_ns, 0)


@pytest.mark.parametrize("drift_ns", [CLOCK_STEP_NS_MAX + 1, -1000 * SECOND_NS])
def test_a_clock_that_was_set_by_far_has_all_live_sessions_written_again(drift_ns: int) -> None:
    assert watched(drift_ns) == (drift_ns, 1)


def test_what_is_offered_again_is_no_connection() -> None:
    clock = StoreClock(words := make_clock())
    clock.count_connection()
    clock.offer_again()
    assert (clock.connections, words[CLOCK_CONNECTIONS]) == (1, 2)
