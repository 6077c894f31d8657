"""What waits for the store: look-ups first, one change for each session, and what a lost connection leaves."""

from everwall.session import image
from everwall.session.image import DELETE, LOOKUP, WRITE, WRITE_FIRST
from everwall.store.backlog import Backlog
from tests.store.stores import asking, sessions


def taken(backlog, count=100):
    """Operation and TAG of what is sent next."""
    return [(row[image.OP], row[image.TAG]) for row in backlog.take(count).tolist()]


def test_lookups_overtake_writes():
    backlog = Backlog()
    backlog.add(asking(sessions(3), WRITE_FIRST))
    backlog.add(asking(sessions(2), LOOKUP))
    assert taken(backlog, 3) == [(LOOKUP, 0), (LOOKUP, 1), (WRITE_FIRST, 0)]
    assert taken(backlog) == [(WRITE_FIRST, 1), (WRITE_FIRST, 2)]
    assert len(backlog) == 0


def test_of_two_writes_of_a_session_the_newer_is_sent():
    backlog = Backlog()
    backlog.add(asking(sessions(2, PACKETS=1), WRITE))
    backlog.add(asking(sessions(1, PACKETS=2), WRITE))
    rows = backlog.take(100)
    assert rows[:, image.PACKETS].tolist() == [2, 1]


def test_a_delete_replaces_the_write_that_still_waits():
    backlog = Backlog()
    backlog.add(asking(sessions(1), WRITE_FIRST))
    backlog.add(asking(sessions(1), DELETE))
    assert taken(backlog) == [(DELETE, 0)]


def test_a_write_that_failed_does_not_replace_a_newer_one():
    backlog = Backlog()
    backlog.add(asking(sessions(1, PACKETS=2), WRITE))
    backlog.put_back(asking(sessions(2, PACKETS=1), WRITE))
    assert backlog.take(100)[:, image.PACKETS].tolist() == [2, 1]


def test_a_lost_connection_leaves_the_newest_writes_and_they_are_compared():
    backlog = Backlog()
    rows = sessions(5)
    backlog.add(asking(rows[:4], WRITE_FIRST))
    backlog.add(asking(rows[4:], WRITE))
    backlog.add(asking(rows[2:3], DELETE))
    assert backlog.keep_writes(3) == 2, "the delete, and the oldest write beyond three"
    assert taken(backlog) == [(WRITE, 1), (WRITE, 3), (WRITE, 4)]


def test_lookups_can_be_taken_alone():
    backlog = Backlog()
    backlog.add(asking(sessions(2), LOOKUP))
    backlog.add(asking(sessions(1), WRITE))
    assert backlog.take_lookups()[:, image.TAG].tolist() == [0, 1]
    assert len(backlog.take_lookups()) == 0
    assert len(backlog) == 1
