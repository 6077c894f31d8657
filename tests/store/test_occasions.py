"""A store that lacks sessions although its connection was never lost."""

from __future__ import annotations

from itertools import pairwise

from everwall.limits import (
    CLOCK_STEP_NS_MAX,
    LOOP_GAP_NS_MAX,
    REFUSAL_PAUSE_MAX_S,
    REFUSAL_PAUSE_MIN_S,
    SECOND_NS,
)
from everwall.store.occasions import Refusals, is_clock_step, stood_still

PAUSE_NS = int(REFUSAL_PAUSE_MIN_S * SECOND_NS)


def test_what_was_refused_is_offered_once_after_a_pause() -> None:
    refusals = Refusals()
    refusals.note(0, 0)
    assert not refusals.pending, "nothing was refused"
    refusals.note(3, 0)
    assert refusals.pending
    assert not refusals.is_due(PAUSE_NS - 1)
    assert refusals.is_due(PAUSE_NS)
    assert not refusals.is_due(PAUSE_NS), "once"
    assert not refusals.pending


def test_more_refusals_of_the_same_trouble_do_not_put_it_off() -> None:
    refusals = Refusals()
    for k in range(10):
        refusals.note(k + 1, k * PAUSE_NS // 10)
    assert refusals.is_due(PAUSE_NS)


def test_a_server_that_goes_on_refusing_is_offered_everything_ever_less_often() -> None:
    refusals, now, offers = Refusals(), 0, []
    for second in range(600):
        now = second * SECOND_NS
        if refusals.is_due(now):
            offers.append(second)
        refusals.note(second + 1, now)
    pauses = [after - before for before, after in pairwise(offers)]
    assert pauses[:4] == [4, 8, 16, 32]
    assert set(pauses[6:]) == {int(REFUSAL_PAUSE_MAX_S)}


def test_long_after_a_trouble_the_next_one_begins_with_a_short_pause() -> None:
    refusals = Refusals()
    refusals.note(1, 0)
    assert refusals.is_due(PAUSE_NS)
    later = 1_000 * SECOND_NS
    refusals.note(2, later)
    assert refusals.is_due(later + PAUSE_NS)


def test_only_a_clock_that_was_set_by_far_makes_expiries_untrue() -> None:
    assert not is_clock_step(CLOCK_STEP_NS_MAX)
    assert is_clock_step(CLOCK_STEP_NS_MAX + 1)
    assert is_clock_step(-CLOCK_STEP_NS_MAX - 1)


def test_a_thread_that_slept_longer_than_it_meant_to_stood_still() -> None:
    assert not stood_still(0, SECOND_NS, SECOND_NS + LOOP_GAP_NS_MAX)
    assert stood_still(0, SECOND_NS, SECOND_NS + LOOP_GAP_NS_MAX + 1)
    assert stood_still(0, -5, LOOP_GAP_NS_MAX + 1), "it did not mean to sleep at all"
