"""The map of a cluster's slots: what is older than it, and what is not. No I/O."""

from __future__ import annotations

import time

import pytest

from everwall.session.image import WRITE
from everwall.store.protocol import ErrorReply
from tests.store.stores import asking, sessions
from tests.store.test_crowding import OLD, Busy, routed, thirds

pytestmark = pytest.mark.kernel

SLOT = 1


def test_a_map_that_was_asked_for_before_a_server_sent_requests_elsewhere_does_not_undo_that():
    """Else they would go back to a server that has just said that it is not the one."""
    store = routed()
    store._surveyed_ns = time.monotonic_ns()
    rows, moved = asking(sessions(1), WRITE), ErrorReply(f"MOVED {SLOT} {OLD[2]}")
    store._redirect(store._shard(store._owners[SLOT]).ordinary, [(moved, rows)], False)
    store._learn(thirds(OLD))
    owner = store._shard(store._owners[SLOT])
    assert owner is store._shards[OLD[2]]
    assert owner is not store._shard(store._owners[SLOT + 1]), "of no other slot was anything said"
    store._surveyed_ns = time.monotonic_ns() + 1
    store._learn(thirds(OLD))
    assert store._shard(store._owners[SLOT]) is store._shards[OLD[0]], "a later one is believed"


def test_who_wants_a_map_while_one_is_being_asked_for_gets_a_later_one():
    store = routed()
    for link in store.links:
        link.link = Busy()
    for wanted in (False, True):
        store._survey_wanted = False
        if wanted:
            store._lost(store.links[0])
        store._survey._results.put(thirds(OLD))
        store._look_around()
        assert store._survey_wanted == wanted
