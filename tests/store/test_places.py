"""Records that may lie in several places: the number of buckets changes, the secret changes, and nothing is lost.

Two nodes, told of the change at different times, against the twin in memory and against a real server alike; with all
places on one server, and apart, as on a Redis Cluster, where a request goes to one after the other.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from everwall.limits import BUCKET_TTL_S
from everwall.session import image
from everwall.session.image import DELETE, FOUND, LOOKUP, LOST, MISSING, WRITE, WRITE_FIRST, WRITTEN
from everwall.session.record import derive_keys
from everwall.store.layout import Epoch, Layout, LayoutError, bucket_key, meta_key
from everwall.store.moving import Apart, move_bucket
from everwall.store.protocol import WRITE_SCRIPT, ErrorReply, ProtocolError, clock_key, reply_bytes
from everwall.store.relayout import announce, open_epoch, settle
from tests.store import stores
from tests.store.stores import KEYS, NOW, Memory, asking, sessions

pytestmark = pytest.mark.kernel

SECRET = b"a cluster secret of 32 bytes ..."
NEXT = b"the one after it, of 32 bytes .."
OLD_FIRST, NEW_FIRST = derive_keys(SECRET, NEXT), derive_keys(NEXT, SECRET)
OLD_ONLY, NEW_ONLY = derive_keys(SECRET), derive_keys(NEXT)


class Node(stores.Node):
    """A node for whose requests all places are on one server, or apart."""

    apart = False

    def __init__(self, store, keys=KEYS, buckets: int = 64) -> None:
        super().__init__(store, keys, buckets, apart=self.apart)


@pytest.fixture(autouse=True, params=[False, True], ids=["together", "apart"])
def apart(request, monkeypatch) -> bool:
    monkeypatch.setattr(Node, "apart", request.param)
    return bool(request.param)


@pytest.fixture
def together(apart) -> None:
    """For what only one server can do, or only the other kind of store does not."""
    if apart:
        pytest.skip("places are on one server here")


def begin(store, buckets: int) -> Layout:
    """An operator changes the number of buckets; the nodes of these tests live at NOW, whatever the server's clock."""
    text = store.ask((b"GET", meta_key("test")))
    layout = Layout(Epoch(0, int(text))).changed(buckets, NOW).begun(NOW + 10)
    store.ask((b"SET", meta_key("test"), str(layout).encode()))
    return layout


def learn(node: Node, now_s: int, keys=None) -> bool:
    """A node's probe is answered."""
    node.protocol.hear(node.store.ask((b"GET", meta_key("test"))))
    return node.protocol.move(now_s, keys)


def fields_in(store, epoch: Epoch) -> int:
    """How many records an epoch holds."""
    return sum(
        len(store.ask((b"HKEYS", bucket_key("test", epoch, bucket)))) for bucket in range(epoch.buckets)
    )


# The number of buckets ------------------------------------------------------------------------------------


def test_readers_ask_the_new_epoch_and_the_old_one_and_a_record_moves_when_it_is_refreshed(store):
    node, rows = Node(store, buckets=8), sessions(50)
    node.ask(rows, WRITE_FIRST)
    layout = begin(store, 64)
    assert learn(node, layout.from_s)
    assert node.outcome(rows, LOOKUP) == [FOUND] * 50
    assert len(node.commands) == 100
    assert node.outcome(rows[:20], WRITE) == [WRITTEN] * 20
    assert (fields_in(store, layout.current), fields_in(store, layout.former)) == (20, 30)
    assert node.outcome(rows, LOOKUP) == [FOUND] * 50
    assert node.outcome(rows[10:30], DELETE) == [WRITTEN] * 20
    assert node.outcome(rows, LOOKUP) == [FOUND] * 10 + [MISSING] * 20 + [FOUND] * 20


def test_outside_a_change_a_lookup_is_one_command_again(store):
    node, rows = Node(store, buckets=8), sessions(5)
    layout = begin(store, 16)
    learn(node, layout.from_s)
    node.ask(rows, WRITE_FIRST)
    store.ask((b"SET", meta_key("test"), str(layout.settled()).encode()))
    assert not learn(node, layout.from_s + 60), "what is written to is the same"
    assert node.outcome(rows, LOOKUP) == [FOUND] * 5
    assert len(node.commands) == 5


def test_a_takeover_from_a_node_that_has_moved_by_one_that_has_not_yet_loses_nothing(store):
    """Before anybody writes to the new epoch everybody asks it: a node that is slow is slow by less than the notice."""
    quick, slow, rows = Node(store, buckets=8), Node(store, buckets=8), sessions(40)
    quick.ask(rows[:20], WRITE_FIRST)
    layout = begin(store, 64)
    assert not learn(quick, NOW), "announced: it writes where the slow one looks"
    quick.ask(rows[20:], WRITE_FIRST)
    quick.ask(rows[:10], WRITE)
    assert slow.outcome(rows, LOOKUP) == [FOUND] * 40
    assert learn(quick, layout.from_s)
    assert not learn(slow, layout.from_s - 1), "its clock is a little behind"
    quick.ask(rows, WRITE)
    assert slow.outcome(rows, LOOKUP) == [FOUND] * 40
    taken = rows.copy()
    taken[:, image.OWNER], taken[:, image.GENERATION] = 2, 1
    assert slow.outcome(taken[:20], WRITE) == [WRITTEN] * 20, "to the old epoch, and cleared from the new one"
    assert quick.outcome(rows[:20], WRITE) == [LOST] * 20
    assert quick.outcome(rows[:20], DELETE) == [LOST] * 20
    found = quick.ask(rows, LOOKUP)
    assert (found[:, image.OP] == FOUND).all()
    assert found[:, image.OWNER].tolist() == [2] * 20 + [1] * 20


def test_of_two_records_the_later_one_counts_wherever_it_lies(store):
    one, other, rows = Node(store, buckets=8), Node(store, buckets=8), sessions(6)
    layout = begin(store, 64)
    one.ask(rows, WRITE_FIRST)
    learn(other, layout.from_s)
    newer = rows.copy()
    newer[:3, image.GENERATION], newer[3:, image.START] = 1, NOW * 1000 + 1
    other.ask(newer, WRITE_FIRST)
    for node in (one, other):
        learn(node, layout.from_s)
        found = node.ask(rows, LOOKUP)
        assert found[:, image.GENERATION].tolist() == [1, 1, 1, 0, 0, 0]
        assert (found[3:, image.START] == NOW * 1000 + 1).all()


def test_a_forged_record_in_one_place_does_not_hide_the_genuine_one_in_the_other(store):
    node, rows = Node(store, buckets=8), sessions(10)
    node.ask(rows, WRITE_FIRST)
    layout = begin(store, 64)
    learn(node, layout.from_s)
    for row in rows:
        places = [command[1:] for command in node.protocol.encoded(asking(row[None], LOOKUP), NOW).commands]
        store.ask((b"HSET", *places[0], b"\x10" + b"\xff" * 51))
    assert node.outcome(rows, LOOKUP) == [FOUND] * 10
    assert node.outcome(rows, WRITE) == [WRITTEN] * 10
    assert node.outcome(rows, LOOKUP) == [FOUND] * 10


def test_a_record_that_moves_between_the_two_questions_is_found_by_the_second_look(together):
    store, rows = Memory(), sessions(1)
    mover, reader = Node(store, buckets=8), Node(store, buckets=8)
    mover.ask(rows, WRITE_FIRST)
    layout = begin(store, 64)
    learn(mover, layout.from_s)
    learn(reader, layout.from_s)
    batch = reader.protocol.encoded(asking(rows, LOOKUP), NOW)
    new, old = batch.commands
    first = store.send([new])
    mover.ask(rows, WRITE)
    decoded = reader.protocol.decode(batch, b"".join(map(reply_bytes, first + store.send([old]))), NOW)
    assert len(decoded.rows) == 0
    assert reader.outcome(decoded.again) == [FOUND]


def test_a_session_that_is_nowhere_is_asked_for_twice_and_missing(store):
    node = Node(store, buckets=8)
    learn(node, begin(store, 64).from_s)
    assert node.outcome(sessions(3), LOOKUP) == [MISSING] * 3
    assert len(node.commands) == 12


def test_a_server_out_of_memory_refuses_the_move_and_the_record_stays_where_it_is(together):
    store, rows = Memory(), sessions(4)
    node = Node(store, buckets=8)
    node.ask(rows, WRITE_FIRST)
    layout = begin(store, 64)
    learn(node, layout.from_s)
    node.ask(rows[:1], WRITE)  # loads the scripts
    batch = node.protocol.encoded(asking(rows[1:], WRITE), NOW)
    assert [command[0] for command in batch.commands if command[0] != b"EXPIRE"] == [b"EVALSHA"]
    replies = [ErrorReply("OOM command not allowed")] + [1] * (len(batch.commands) - 1)
    decoded = node.protocol.decode(batch, b"".join(map(reply_bytes, replies)), NOW)
    assert len(decoded.unwritten) == 3
    assert node.outcome(rows, LOOKUP) == [FOUND] * 4


def test_what_dead_nodes_left_is_moved_as_it_is_and_the_old_epoch_ends(store, apart):
    dead, heir, rows = Node(store, buckets=8), Node(store, buckets=8), sessions(300)
    rows[100:, image.EXPIRY] = 2_500_000_000  # whatever the server's clock says
    rows[:100, image.EXPIRY] = 1_000_000_000
    dead.ask(rows, WRITE_FIRST)
    store.ask((b"HSET", bucket_key("test", Epoch(0, 8), 3), b"rubbish", b"x"))
    layout = begin(store, 64)
    learn(heir, layout.from_s)
    newer = rows[200:210].copy()
    newer[:, image.PACKETS] = 9999
    heir.ask(newer, WRITE_FIRST)
    if apart:
        walk = Apart(store.ask, "test", layout, lambda key: "the only one")
        moved, emptied = zip(*map(walk.move_bucket, range(8)), strict=True)
        assert (sum(moved), set(emptied), walk.silent) == (190, {True}, {})
    else:
        assert sum(move_bucket(store.ask, "test", layout, bucket) for bucket in range(8)) == 190
    assert fields_in(store, layout.former) == 0
    settle(store.ask, "test", layout)
    assert store.ask((b"GET", meta_key("test"))) == b"v1 epoch 1 buckets 64"
    learn(heir, layout.from_s + 1)
    assert heir.protocol.places == 1
    assert heir.outcome(rows, LOOKUP) == [MISSING] * 100 + [FOUND] * 200
    assert (heir.ask(newer, LOOKUP)[:, image.PACKETS] == 9999).all(), "what was refreshed is not put back"
    left = [store.ask((b"EXPIRE", bucket_key("test", layout.current, b), b"1", b"NX")) for b in range(64)]
    assert not any(left), "every bucket has an expiry"


def test_after_its_time_the_old_epoch_is_asked_no_more(store):
    node = Node(store, buckets=8)
    layout = begin(store, 64)
    learn(node, layout.until_s)
    assert node.protocol.places == 2
    learn(node, layout.until_s + 1)
    assert node.protocol.places == 1
    assert layout.until_s - layout.from_s >= BUCKET_TTL_S


def test_of_two_operators_one_is_told_of_the_other(store):
    Node(store, buckets=8)
    first = announce(store.ask, "test", 64)
    assert first.current == Epoch(1, 64)
    assert announce(store.ask, "test", 64) == first, "the same again goes on with it"
    with pytest.raises(LayoutError, match="a change is under way: v1 epoch 1 buckets 64"):
        announce(store.ask, "test", 32)
    settle(store.ask, "test", first)
    with pytest.raises(LayoutError, match="there are 64 buckets already"):
        announce(store.ask, "test", 64)
    assert announce(store.ask, "test", 32).former == Epoch(1, 64)


def test_while_a_change_is_announced_nodes_ask_the_new_epoch_and_do_not_write_to_it_whatever_the_time(store):
    """The server's clock may be set by any amount in the middle of the notice."""
    node, rows = Node(store, buckets=8), sessions(20)
    layout = announce(store.ask, "test", 64)
    assert layout.is_announced
    assert not learn(node, NOW + 2**30)
    node.ask(rows, WRITE_FIRST)
    assert (node.protocol.places, fields_in(store, layout.current)) == (2, 0)
    opened = open_epoch(store.ask, "test", layout)
    assert open_epoch(store.ask, "test", opened) == opened, "once is enough"
    assert open_epoch(store.ask, "test", layout) == opened, "also for two who carry the change out"
    assert learn(node, opened.from_s)
    assert settle(store.ask, "test", layout) == opened, "a step behind: it is not over yet"
    assert settle(store.ask, "test", opened) == settle(store.ask, "test", opened) == opened.settled()


def test_a_step_that_a_failover_has_lost_is_taken_again_and_a_change_that_was_lost_is_given_up(store):
    Node(store, buckets=8)
    layout = announce(store.ask, "test", 64)
    opened = open_epoch(store.ask, "test", layout)
    store.ask((b"SET", meta_key("test"), str(layout).encode()))
    assert settle(store.ask, "test", opened) == layout, "whoever carries it out goes on from there"
    store.ask((b"SET", meta_key("test"), b"8"))
    with pytest.raises(LayoutError, match="under way no more: 8"):
        open_epoch(store.ask, "test", layout)

    def emptied(command, at=b""):
        return None if command[0] == b"GET" else store.ask(command)

    with pytest.raises(ConnectionError, match="is not set"):
        settle(emptied, "test", opened)


def test_an_operator_who_read_before_the_other_wrote_changes_nothing(store):
    Node(store, buckets=8)

    def late(command, at=b""):
        if clock_key("test") in command:  # between reading and writing
            announce(store.ask, "test", 16)
        return store.ask(command)

    with pytest.raises(LayoutError, match="somebody else"):
        announce(late, "test", 64)
    assert b"buckets 16 " in store.ask((b"GET", meta_key("test")))


@pytest.mark.parametrize("buckets", [0, -1, (1 << 24) + 1])
def test_a_number_of_buckets_out_of_range_is_refused(buckets):
    store = Memory()
    Node(store, buckets=8)
    with pytest.raises(LayoutError, match="buckets must be 1 to"):
        announce(store.ask, "test", buckets)


def test_a_node_that_connects_in_the_middle_of_a_change_knows_both_epochs(store):
    old, rows = Node(store, buckets=8), sessions(10)
    old.ask(rows, WRITE_FIRST)
    layout = begin(store, 64)
    store.ask((b"SET", meta_key("test"), str(Layout(layout.current, layout.former, 1, 2**39)).encode()))
    new = Node(store, buckets=999)
    assert (new.protocol.buckets, new.protocol.places) == (64, 2)
    assert new.outcome(rows, LOOKUP) == [FOUND] * 10


# Versions ---------------------------------------------------------------------------------------------------


def test_a_layout_of_another_version_is_refused_by_name_and_left_alone(store):
    text = b"v2 epoch 7 buckets 64 and something new"
    store.ask((b"SET", meta_key("test"), text))
    with pytest.raises(ProtocolError, match="layout of version 2, and this release knows version 1"):
        Node(store)
    with pytest.raises(LayoutError, match="version 2"):
        announce(store.ask, "test", 64)
    assert store.ask((b"GET", meta_key("test"))) == text


def test_a_layout_of_another_version_that_appears_under_a_running_node_is_refused_as_well(store):
    node = Node(store)
    with pytest.raises(ProtocolError, match="version 3"):
        node.protocol.hear(b"v3 whatever")
    assert node.protocol.buckets == 64


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"many",
        b"0",
        b"-5",
        b"16777217",
        b"v1 epoch 1",
        b"v1 epoch 1 buckets 0",
        b"v1 epoch 3 buckets 8 from 5; epoch 3 buckets 4 until 9",
        b"v1 epoch 1 buckets 8 from 5; epoch 0 buckets 0 until 9",
        b"\xff" * 1000,
    ],
)
def test_what_is_no_layout_is_said_so(text):
    store = Memory()
    store.ask((b"SET", meta_key("test"), text))
    with pytest.raises(ProtocolError, match="holds"):
        Node(store)


def test_a_layout_reads_as_it_was_written():
    for layout in (
        Layout(Epoch(0, 1)),
        Layout(Epoch(3, 1 << 24)),
        Layout(Epoch(0, 9)).changed(8, NOW),
        Layout(Epoch(77, 9)).changed(8, NOW),
    ):
        node = Node(Memory())
        node.protocol.hear(str(layout).encode())
        assert node.protocol.layout == layout


# The secret -------------------------------------------------------------------------------------------------


def test_what_was_written_with_the_former_secret_is_found_adopted_and_written_with_the_new_one(store):
    old, new, rows = Node(store, OLD_ONLY), Node(store, NEW_FIRST), sessions(30)
    old.ask(rows, WRITE_FIRST)
    assert Node(store, NEW_ONLY).outcome(rows, LOOKUP) == [MISSING] * 30
    assert new.outcome(rows, LOOKUP) == [FOUND] * 30
    taken = rows.copy()
    taken[:, image.OWNER], taken[:, image.GENERATION] = 2, 1
    assert new.outcome(taken, WRITE) == [WRITTEN] * 30
    assert old.outcome(rows, LOOKUP) == [MISSING] * 30
    assert fields_in(store, Epoch(0, 64)) == 30, "the old fields are gone"
    assert Node(store, NEW_ONLY).outcome(rows, LOOKUP) == [FOUND] * 30


def test_in_no_step_of_a_rotation_there_is_a_session_that_a_node_cannot_restore(store):
    """All accept both; all write with the new one; the old one is dropped. Nodes take each step one after another."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    steps = [OLD_ONLY, OLD_FIRST, NEW_FIRST, NEW_ONLY]
    nodes = [Node(store, steps[0]) for _ in range(3)]
    rows = sessions(60, seed)
    rows[:, image.OWNER] = dice.choices(range(3), k=len(rows))
    for owner, node in enumerate(nodes):
        node.ask(rows[rows[:, image.OWNER] == owner], WRITE_FIRST)
    for step in steps[1:]:
        for node in dice.sample(nodes, len(nodes)):
            node.protocol.move(NOW, step)
            for owner, each in enumerate(nodes):
                assert each.outcome(rows, LOOKUP) == [FOUND] * len(rows)
                mine = np.flatnonzero(rows[:, image.OWNER] == owner)
                some = dice.sample(mine.tolist(), len(mine) // 2)
                rows[some, image.PACKETS] += 1
                assert each.outcome(rows[some], WRITE) == [WRITTEN] * len(some)
            takers = dice.sample(range(len(rows)), 10)
            rows[takers, image.GENERATION] += 1
            rows[takers, image.OWNER] = owner = dice.randrange(3)
            assert nodes[owner].outcome(rows[takers], WRITE) == [WRITTEN] * 10
        for owner, node in enumerate(nodes):  # each resync of a step ends before the next step begins
            node.ask(rows[rows[:, image.OWNER] == owner], WRITE)
    found = nodes[0].ask(rows, LOOKUP)
    assert (found[:, [image.OWNER, image.PACKETS]] == rows[:, [image.OWNER, image.PACKETS]]).all()
    assert fields_in(store, Epoch(0, 64)) == len(rows)


def test_a_former_owner_with_the_other_secret_still_loses_to_whoever_took_over(store):
    old, new, rows = Node(store, OLD_FIRST), Node(store, NEW_FIRST), sessions(4, OWNER=1)
    old.ask(rows, WRITE_FIRST)
    taken = sessions(4, OWNER=2, GENERATION=1)
    new.ask(taken, WRITE)
    assert old.outcome(rows, WRITE) == [LOST] * 4
    assert old.outcome(rows, DELETE) == [LOST] * 4
    assert new.ask(rows, LOOKUP)[:, image.OWNER].tolist() == [2] * 4
    assert new.outcome(taken, WRITE) == [WRITTEN] * 4, "it owns it, and clears away what the loser left"
    assert fields_in(store, Epoch(0, 64)) == 4


def test_both_at_once_epoch_and_secret_change_and_every_record_is_found_and_moves(store):
    node, rows = Node(store, OLD_ONLY, buckets=8), sessions(40)
    node.ask(rows, WRITE_FIRST)
    layout = begin(store, 64)
    assert learn(node, layout.from_s, NEW_FIRST)
    assert node.protocol.places == 4
    assert node.outcome(rows, LOOKUP) == [FOUND] * 40
    assert node.outcome(rows, WRITE) == [WRITTEN] * 40
    assert (fields_in(store, layout.current), fields_in(store, layout.former)) == (40, 0)
    other = Node(store, NEW_ONLY)
    other.protocol.hear(str(layout.settled()).encode())
    other.protocol.move(layout.from_s)
    assert other.outcome(rows, LOOKUP) == [FOUND] * 40


def test_lost_scripts_are_loaded_again_for_what_clears(store):
    node, rows = Node(store, NEW_FIRST), sessions(5)
    Node(store, OLD_ONLY).ask(rows, WRITE_FIRST)
    node.ask(rows, WRITE)
    store.ask((b"SCRIPT", b"FLUSH"))
    store.ask((b"SCRIPT", b"LOAD", WRITE_SCRIPT))
    assert node.outcome(rows, WRITE) == [WRITTEN] * 5
    assert {error.code for error in node.errors} == {"NOSCRIPT"}


def test_a_cluster_has_one_secret_or_two():
    with pytest.raises(ValueError, match="one secret, or two"):
        derive_keys(SECRET, NEXT, SECRET)
    assert (derive_keys(SECRET) == KEYS).all()
