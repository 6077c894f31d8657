"""What waits for the store: look-ups first, one change for each session, and what a lost connection leaves."""

import random

import numpy as np

from everwall.limits import STORE_QUEUE_ROWS
from everwall.rings import make_ring, ring_length, ring_push
from everwall.session import image
from everwall.session.image import CLEAR, DELETE, LOOKUP, WRITE, WRITE_FIRST
from everwall.session.record import derive_keys, field_of
from everwall.store.backlog import Backlog, take, waits_behind
from tests.store.stores import KEYS, asking, sessions


def taken(backlog, count=100):
    """Operation and TAG of what is sent next."""
    return [(row[image.OP], row[image.TAG]) for row in backlog.take(count).tolist()]


def test_lookups_overtake_writes():
    backlog = Backlog(KEYS)
    backlog.put(asking(sessions(3), WRITE_FIRST))
    backlog.put(asking(sessions(2), LOOKUP))
    assert taken(backlog, 3) == [(LOOKUP, 0), (LOOKUP, 1), (WRITE_FIRST, 0)]
    assert taken(backlog) == [(WRITE_FIRST, 1), (WRITE_FIRST, 2)]
    assert len(backlog) == 0


def test_of_two_writes_of_a_session_the_newer_is_sent():
    backlog = Backlog(KEYS)
    backlog.put(asking(sessions(2, PACKETS=1), WRITE))
    backlog.put(asking(sessions(1, PACKETS=2), WRITE))
    rows = backlog.take(100)
    assert rows[:, image.PACKETS].tolist() == [2, 1]


def test_a_delete_replaces_the_write_that_still_waits():
    backlog = Backlog(KEYS)
    backlog.put(asking(sessions(1), WRITE_FIRST))
    backlog.put(asking(sessions(1), DELETE))
    assert taken(backlog) == [(DELETE, 0)]


def test_whoever_waits_for_the_older_write_is_answered_by_the_newer() -> None:
    backlog = Backlog(KEYS)
    backlog.put(asking(sessions(2, CONFIRM=1, PACKETS=1), WRITE))
    newer = sessions(2, PACKETS=2)
    newer[:, image.TAG] = 77
    backlog.put(asking(newer, WRITE))
    rows = backlog.take(100)
    assert rows[:, [image.PACKETS, image.CONFIRM, image.TAG]].tolist() == [[2, 1, 0], [2, 1, 1]]


def test_a_write_that_failed_does_not_replace_a_newer_one():
    backlog = Backlog(KEYS)
    backlog.put(asking(sessions(1, PACKETS=2), WRITE))
    backlog.put_back(asking(sessions(2, PACKETS=1), WRITE))
    assert backlog.take(100)[:, image.PACKETS].tolist() == [2, 1]


def test_a_lost_connection_leaves_the_newest_writes_and_they_are_compared():
    backlog = Backlog(KEYS)
    rows = sessions(5)
    backlog.put(asking(rows[:4], WRITE_FIRST))
    backlog.put(asking(rows[4:], WRITE))
    backlog.put(asking(rows[2:3], DELETE))
    assert backlog.keep_writes(3) == 2, "the delete, and the oldest write beyond three"
    assert taken(backlog) == [(WRITE, 1), (WRITE, 3), (WRITE, 4)]


def test_after_a_gap_what_waits_is_compared_and_nothing_is_dropped():
    backlog = Backlog(KEYS)
    rows = sessions(4)
    backlog.put(asking(rows[:2], WRITE_FIRST))
    backlog.put(asking(rows[2:3], DELETE))
    backlog.put(asking(rows[3:], LOOKUP))
    backlog.compare()
    assert backlog.take(8)[:, image.OP].tolist() == [LOOKUP, WRITE, WRITE, DELETE]


def test_lookups_can_be_taken_alone():
    backlog = Backlog(KEYS)
    backlog.put(asking(sessions(2), LOOKUP))
    backlog.put(asking(sessions(1), WRITE))
    assert backlog.take_lookups()[:, image.TAG].tolist() == [0, 1]
    assert len(backlog.take_lookups()) == 0
    assert len(backlog) == 1


def test_so_many_changes_come_and_go_that_their_index_wraps_around():
    """Against a plain dictionary; the index may hold neither what was sent nor lose what waits."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice, backlog, expected = random.Random(seed), Backlog(KEYS), {}
    rows = asking(sessions(300), WRITE)
    for number in range(60):
        for i in dice.sample(range(300), 100):
            rows[i, image.PACKETS] = number
            backlog.put(rows[i : i + 1])
            expected[i] = number
        taken = backlog.take(dice.randrange(150))
        assert taken[:, image.TAG].tolist() == list(expected)[: len(taken)]
        for row in taken:
            assert row[image.PACKETS] == expected.pop(int(row[image.TAG]))
        assert len(backlog) == len(expected)


def test_a_ring_is_emptied_as_far_as_there_is_room():
    backlog, ring = Backlog(KEYS), make_ring(STORE_QUEUE_ROWS, image.COLUMNS)
    rows = asking(sessions(1000), WRITE)
    for number in range(STORE_QUEUE_ROWS // 1000):
        rows[:, image.ENDPOINT] = number
        ring_push(ring, rows, len(rows))
    assert backlog.collect(ring) == 0
    assert len(backlog) == STORE_QUEUE_ROWS // 1000 * 1000
    rows[:, image.OP] = LOOKUP
    ring_push(ring, rows, len(rows))
    assert backlog.collect(ring) == STORE_QUEUE_ROWS % 1000
    assert ring_length(ring) == 1000 - STORE_QUEUE_ROWS % 1000, "the worker sees how full it is"


def test_what_waits_for_replicas_takes_later_changes_of_its_session_with_it():
    backlog = Backlog(KEYS)
    rows = asking(sessions(4), WRITE)
    backlog.put(rows[1:2])
    rows[3, image.CONFIRM] = image.REPLICATED
    lookups = asking(sessions(2), LOOKUP)
    asked = np.concatenate([rows, lookups])
    fields = np.array([int(field_of(asked, i, KEYS, 0)) for i in range(len(asked))])
    behind = np.zeros(len(asked), np.bool_)
    assert waits_behind(backlog.queue, asked, fields, behind) == 2
    assert behind.tolist() == [False, True, False, True, False, False]


def test_the_stricter_confirmation_outlives_what_takes_the_place_of_its_change():
    backlog = Backlog(KEYS)
    backlog.put(asking(sessions(1, CONFIRM=image.REPLICATED), WRITE))
    later = asking(sessions(1, CONFIRM=image.PRIMARY, PACKETS=9), WRITE)
    later[:, image.TAG] = 5
    backlog.put(later)
    assert backlog.take(9)[0, [image.CONFIRM, image.TAG, image.PACKETS]].tolist() == [image.REPLICATED, 0, 9]


def test_lookups_that_are_asked_once_more_wait_with_the_others_and_find_room():
    backlog, ring = Backlog(KEYS), make_ring(STORE_QUEUE_ROWS, image.COLUMNS)
    rows = asking(sessions(STORE_QUEUE_ROWS // 16), LOOKUP)
    for _ in range(16):
        ring_push(ring, rows, len(rows))
    backlog.collect(ring)
    again = asking(sessions(100, seed=2), LOOKUP)
    backlog.put_back(again)
    assert len(backlog) == STORE_QUEUE_ROWS + 100
    found = backlog.take_lookups()
    assert (found[:1, image.KEY2] == rows[:1, image.KEY2]).all(), "nothing was overwritten"
    assert (found[-100:] == again).all()


def test_whoever_waits_for_a_change_that_comes_back_hears_of_the_newer_one_instead():
    backlog = Backlog(KEYS)
    newer, older = asking(sessions(1, PACKETS=9), WRITE), asking(sessions(1), CLEAR)
    older[0, [image.CONFIRM, image.TAG]] = 1, 77
    backlog.put(newer)
    backlog.put_back(older)
    (row,) = backlog.take(10)
    assert row[[image.OP, image.PACKETS, image.CONFIRM, image.TAG]].tolist() == [WRITE, 9, 1, 77]


def test_with_another_secret_what_waits_has_other_fields_and_still_one_change_a_session():
    other = derive_keys(bytes(range(32)))
    backlog, rows = Backlog(KEYS), sessions(50)
    backlog.put(asking(rows, WRITE))
    backlog.put(asking(rows[:3], LOOKUP))
    backlog.use_keys(other)
    backlog.put(asking(rows[:10], DELETE))
    assert len(backlog) == 53
    taken_rows, fields = np.zeros((60, image.COLUMNS), np.int64), np.zeros(60, np.int64)
    count = take(backlog.queue, taken_rows, fields, 60)
    assert taken_rows[:count, image.OP].tolist() == [LOOKUP] * 3 + [DELETE] * 10 + [WRITE] * 40
    assert all(fields[i] == field_of(taken_rows, i, other, 0) for i in range(count))
