"""Connections that ended by policy while they were alive are remembered for a while, as many as there is room for."""

from __future__ import annotations

import pytest

from everwall.limits import REFUSED_FLOWS, REFUSED_NS
from everwall.session import state
from everwall.session.refused import any_refused, forget_refused, remember_refused, was_refused
from everwall.session.state import Sessions, make_sessions
from tests.session.test_remembered import flows

pytestmark = pytest.mark.kernel

NOW = 5_000_000_000


@pytest.fixture
def sessions() -> Sessions:
    return make_sessions(64, parked_packets=8, lookups=8)


@pytest.mark.parametrize("family", [4, 6])
def test_a_flow_is_remembered_with_its_client_and_forgotten_in_time(sessions: Sessions, family: int) -> None:
    meta = flows(2, family)
    assert not any_refused(sessions, NOW)
    sessions.words[state.ANSWER] = 3 | state.ANSWER_CLIENT_UPPER
    remember_refused(sessions, meta, 0, NOW)
    sessions.words[state.ANSWER] = 0
    assert any_refused(sessions, NOW)
    assert not was_refused(sessions, meta, 1, NOW)
    assert was_refused(sessions, meta, 0, NOW + REFUSED_NS - 1)
    assert sessions.words[state.ANSWER] == 3 | state.ANSWER_CLIENT_UPPER
    assert not was_refused(sessions, meta, 0, NOW + REFUSED_NS)
    assert not any_refused(sessions, NOW + REFUSED_NS), "and nobody looks any more"


def test_a_flow_that_is_let_in_anew_is_forgotten_alone(sessions: Sessions) -> None:
    meta = flows(2)
    for i in range(2):
        remember_refused(sessions, meta, i, NOW)
    forget_refused(sessions, meta, 0)
    assert [was_refused(sessions, meta, i, NOW) for i in range(2)] == [False, True]


def test_most_of_as_many_as_a_quarter_of_the_room_stay(sessions: Sessions) -> None:
    meta = flows(REFUSED_FLOWS // 4)
    for i in range(len(meta)):
        remember_refused(sessions, meta, i, NOW)
    kept = sum(was_refused(sessions, meta, i, NOW) for i in range(len(meta)))
    assert kept > 0.8 * len(meta), "a hash spreads them"
