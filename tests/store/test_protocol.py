"""The conversation with the store, against the twin in memory and against a real server alike."""

import pytest

from everwall.limits import BUCKET_TTL_S
from everwall.session import image
from everwall.session.image import (
    DELETE,
    FAILED,
    FOUND,
    LOOKUP,
    LOST,
    MISSING,
    REFUSED,
    WRITE,
    WRITE_FIRST,
    WRITTEN,
)
from everwall.session.record import derive_keys
from everwall.store.protocol import (
    DELETE_SCRIPT,
    WRITE_SCRIPT,
    ErrorReply,
    Protocol,
    ProtocolError,
    buckets_for,
    reply_bytes,
)
from tests.store.stores import KEYS, NOW, Node, asking, sessions

pytestmark = pytest.mark.kernel


def bucket_and_field(node, row):
    """Where a record lies."""
    command = node.protocol.encoded(asking(row.reshape(1, -1), LOOKUP), NOW).commands[-1]
    return command[1], command[2]


def test_a_session_written_by_one_node_is_found_by_another(store):
    one, other = Node(store), Node(store)
    rows = sessions(20)
    assert one.outcome(rows, WRITE_FIRST) == [WRITTEN] * 20
    found = other.ask(rows, LOOKUP)
    assert (found[:, image.OP] == FOUND).all()
    rows[:, image.OP] = FOUND
    assert (found == rows).all(), "every number is as it was written, and TAG is the asker's own"


def test_a_session_nobody_wrote_is_missing(store):
    assert Node(store).outcome(sessions(3), LOOKUP) == [MISSING] * 3


def test_a_batch_of_a_thousand_lookups_answers_each(store):
    node = Node(store)
    rows = sessions(1000)
    node.ask(rows[::2], WRITE_FIRST)
    assert node.outcome(rows, LOOKUP) == [FOUND, MISSING] * 500
    assert len(node.commands) == 1000
    assert {command[0] for command in node.commands} == {b"HGET"}


def test_a_takeover_wins_and_the_former_owner_loses(store):
    old, new = Node(store), Node(store)
    mine, taken = sessions(1, OWNER=1, GENERATION=0), sessions(1, OWNER=2, GENERATION=1)
    old.ask(mine, WRITE_FIRST)
    assert new.outcome(taken, WRITE) == [WRITTEN]
    lost = old.ask(mine, WRITE)[0]
    assert lost[image.OP] == LOST
    assert (lost[image.OWNER], lost[image.GENERATION]) == (1, 0), "its own row, to know which session it was"
    assert old.ask(mine, LOOKUP)[0, image.OWNER] == 2


def test_the_owner_refreshes_with_the_same_order(store):
    node = Node(store)
    rows = sessions(1)
    node.ask(rows, WRITE_FIRST)
    rows[:, image.PACKETS] = 99
    assert node.outcome(rows, WRITE) == [WRITTEN]
    assert node.ask(rows, LOOKUP)[0, image.PACKETS] == 99


def test_of_two_nodes_that_take_over_at_once_the_second_loses(store):
    one, other = Node(store), Node(store)
    one.ask(sessions(1, OWNER=1), WRITE_FIRST)
    assert one.outcome(sessions(1, OWNER=2, GENERATION=1), WRITE) == [WRITTEN]
    assert other.outcome(sessions(1, OWNER=3, GENERATION=1), WRITE) == [LOST]


@pytest.mark.parametrize(
    ("meaning", "stored", "written", "outcome"),
    [
        ("a newer start wins over any generation", (1000, 65535), (1001, 0), WRITTEN),
        ("an older start loses with any generation", (1001, 0), (1000, 65535), LOST),
        ("a higher generation wins", (1000, 1), (1000, 2), WRITTEN),
        ("a lower generation loses", (1000, 2), (1000, 1), LOST),
        ("bytes over 127 are not negative", (0x7F7F, 0), (0x8080, 0), WRITTEN),
        ("the upper half decides", (0xFFFF, 9), (0x10000, 0), WRITTEN),
        ("a difference beyond 53 bits counts", (2**47, 1), (2**47, 2), WRITTEN),
        ("and the other way round", (2**47, 2), (2**47, 1), LOST),
    ],
)
def test_the_higher_order_stays(store, meaning, stored, written, outcome):
    node = Node(store)
    node.ask(sessions(1, OWNER=1, START=stored[0], GENERATION=stored[1]), WRITE_FIRST)
    assert node.outcome(sessions(1, OWNER=2, START=written[0], GENERATION=written[1]), WRITE) == [outcome]


def test_a_first_write_does_not_compare(store):
    node = Node(store)
    node.ask(sessions(1, GENERATION=5), WRITE_FIRST)
    assert node.outcome(sessions(1, GENERATION=0), WRITE_FIRST) == [WRITTEN]
    assert node.ask(sessions(1), LOOKUP)[0, image.GENERATION] == 0


def test_a_closed_session_is_gone(store):
    node = Node(store)
    rows = sessions(3)
    node.ask(rows, WRITE_FIRST)
    assert node.outcome(rows[1:2], DELETE) == [WRITTEN]
    assert node.outcome(rows, LOOKUP) == [FOUND, MISSING, FOUND]


def test_deleting_what_is_not_there_is_no_loss(store):
    assert Node(store).outcome(sessions(1), DELETE) == [WRITTEN]


def test_a_late_delete_does_no_harm_to_the_new_owner(store):
    old, new = Node(store), Node(store)
    mine, taken = sessions(1, OWNER=1), sessions(1, OWNER=2, GENERATION=1)
    old.ask(mine, WRITE_FIRST)
    new.ask(taken, WRITE)
    assert old.outcome(mine, DELETE) == [LOST]
    assert new.outcome(taken, LOOKUP) == [FOUND]


def test_a_late_delete_does_no_harm_to_the_next_session_of_the_same_ports(store):
    node = Node(store)
    first, second = sessions(1), sessions(1, START=NOW * 1000 + 1)
    node.ask(first, WRITE_FIRST)
    rows = asking(first, DELETE).repeat(2, axis=0)
    rows[1] = asking(second, WRITE_FIRST)[0]
    node.ask(rows)
    assert node.ask(first, LOOKUP)[0, image.START] == NOW * 1000 + 1


def test_a_session_deleted_in_the_same_breath_is_not_found_again(store):
    node = Node(store)
    row = sessions(1)
    node.ask(row, WRITE_FIRST)
    both = asking(row, LOOKUP).repeat(2, axis=0)
    both[1] = asking(row, DELETE)[0]
    replies = node.ask(both)
    assert sorted(replies[:, image.OP].tolist()) == [MISSING, WRITTEN]


def test_an_expired_record_is_missing_and_in_nobodys_way(store):
    node = Node(store)
    row = sessions(1, OWNER=1, GENERATION=9)
    node.ask(row, WRITE_FIRST)
    expiry = int(row[0, image.EXPIRY])
    assert node.outcome(row, LOOKUP, expiry) == [FOUND]
    assert node.outcome(row, LOOKUP, expiry + 1) == [MISSING]
    later = sessions(1, OWNER=2, EXPIRY=expiry + 4000)
    assert node.outcome(later, WRITE, expiry + 1) == [WRITTEN]
    assert node.ask(row, LOOKUP, expiry + 1)[0, image.OWNER] == 2


def test_what_was_in_the_way_is_written_over_but_not_what_came_there_since(store):
    """Its owner may have written it again in the meantime, with another expiry: after the store's clock was set."""
    one, other = Node(store), Node(store)
    row = sessions(1, OWNER=2, START=NOW * 1000 + 5)
    other.ask(row, WRITE_FIRST)
    expiry = int(row[0, image.EXPIRY])
    older = asking(sessions(1, OWNER=1, GENERATION=1, EXPIRY=expiry + 9000), WRITE)
    one.ask(older, WRITE)  # loads the scripts, and is lost
    batch = one.protocol.encoded(older, expiry + 1)
    replies = b"".join(map(reply_bytes, store.send(batch.commands)))
    again = one.protocol.decode(batch, replies, expiry + 1).again
    assert again[0, image.OP] == WRITE
    row[:, image.EXPIRY] = expiry + 4000
    assert other.outcome(row, WRITE) == [WRITTEN]
    assert one.outcome(again, now_s=expiry + 1) == [LOST]
    assert other.ask(row, LOOKUP)[0, image.OWNER] == 2


def test_what_a_writer_to_the_store_puts_there_is_refused(store):
    """Altered, moved, of another cluster, of an impossible length: refused, not mistaken for a miss."""
    node = Node(store)
    rows = sessions(5)
    node.ask(rows, WRITE_FIRST)
    places = [bucket_and_field(node, row) for row in rows]
    values = store.send([(b"HGET", *place) for place in places])
    altered = bytearray(values[0])
    altered[0] ^= 1
    foreign = Node(store, derive_keys(bytes(32)), prefix="other")
    stranger = foreign.protocol.encoded(asking(rows[2:3], WRITE_FIRST), NOW).commands[0][3]
    puts = [bytes(altered), values[0], stranger, b"", bytes(5000)]
    store.send([(b"HSET", *place, put) for place, put in zip(places, puts, strict=True)])
    assert node.outcome(rows, LOOKUP) == [REFUSED] * 5


def test_a_forged_record_does_not_keep_the_owner_from_writing(store):
    """It would otherwise demote a live session: a writer to the store may not even do that."""
    node = Node(store)
    rows = sessions(3)
    node.ask(rows, WRITE_FIRST)
    for row in rows:
        store.send([(b"HSET", *bucket_and_field(node, row), b"\x10" + b"\xff" * 51)])
    assert node.outcome(rows, WRITE) == [WRITTEN] * 3
    assert node.outcome(rows, LOOKUP) == [FOUND] * 3


def test_lost_scripts_are_loaded_again(store):
    node = Node(store)
    rows = sessions(40)
    node.ask(rows, WRITE_FIRST)
    node.ask(rows, WRITE)
    store.send([(b"SCRIPT", b"FLUSH")])
    assert node.outcome(rows, WRITE) == [WRITTEN] * 40
    assert node.errors
    assert {error.code for error in node.errors} == {"NOSCRIPT"}
    store.send([(b"SCRIPT", b"FLUSH")])
    assert node.outcome(rows, DELETE) == [WRITTEN] * 40


def test_scripts_are_sent_once(store):
    node = Node(store)
    rows = sessions(2)
    node.ask(rows, WRITE)
    assert [command[0] for command in node.commands].count(b"SCRIPT") == 2
    node.ask(rows, WRITE)
    assert {command[0] for command in node.commands} == {b"EVALSHA"}


def test_a_bucket_outlives_its_records_and_is_renewed_only_when_needed(store):
    node = Node(store, buckets=1)
    rows = sessions(10)
    node.ask(rows, WRITE_FIRST)
    expires = [command for command in node.commands if command[0] == b"EXPIRE"]
    assert expires == [(b"EXPIRE", b"{test:0:0}", b"%d" % BUCKET_TTL_S, c) for c in (b"NX", b"GT")]
    node.ask(rows, WRITE_FIRST)
    assert b"EXPIRE" not in {command[0] for command in node.commands}

    # An idle time-out of a day stretches the bucket; a node with shorter ones does not shorten it again.
    node.ask(sessions(1, seed=2, EXPIRY=NOW + 86_400), WRITE_FIRST)
    Node(store, buckets=1).ask(sessions(1, seed=3), WRITE_FIRST)
    (left,) = store.send([(b"EXPIRE", b"{test:0:0}", b"%d" % (2 * 86_400 - 60), b"GT")])
    assert left == 0, "the bucket lives two days"


def test_whoever_comes_first_says_how_many_buckets_there_are(store):
    first, second = Node(store, buckets=8), Node(store, buckets=512)
    assert first.greeting.buckets == second.greeting.buckets == 8
    rows = sessions(50)
    first.ask(rows, WRITE_FIRST)
    assert second.outcome(rows, LOOKUP) == [FOUND] * 50


def test_clusters_with_other_prefixes_do_not_meet(store):
    rows = sessions(5)
    Node(store, prefix="red").ask(rows, WRITE_FIRST)
    assert Node(store, prefix="blue").outcome(rows, LOOKUP) == [MISSING] * 5


def test_a_bucket_of_the_wrong_type_fails_its_sessions_only(store):
    node = Node(store)
    rows = sessions(2)
    (spoiled, _), (other, _) = (bucket_and_field(node, row) for row in rows)
    assert spoiled != other
    store.send([(b"SET", spoiled, b"x")])
    assert node.outcome(rows, WRITE_FIRST) == [WRITTEN], "of a write that was refused there is no answer"
    assert node.unwritten == 1
    assert node.outcome(rows, LOOKUP) == [FAILED, FOUND]
    assert {error.code for error in node.errors} == {"WRONGTYPE"}


def test_a_meta_key_that_is_no_number_is_said_so(store):
    store.send([(b"SET", b"{test}:buckets", b"many")])
    with pytest.raises(ProtocolError, match="holds no bucket count"):
        Node(store)


def test_the_greeting_tells_time_and_server(request, store):
    greeting = Node(store).greeting
    assert greeting.server.startswith("valkey " if "[valkey]" in request.node.name else "redis ")
    assert greeting.time_ns > 1_700_000_000 * 10**9


def test_a_full_server_takes_no_proposal_and_is_spoken_to_all_the_same():
    protocol, full = Protocol(KEYS), ErrorReply("OOM command not allowed when used memory > 'maxmemory'.")
    assert protocol.greet([full, b"64", b"", [b"5", b"0"], b"sha", [b"5", b"0"]]).buckets == 64
    with pytest.raises(ErrorReply, match="OOM"):
        Protocol(KEYS).greet([full, None, b"", [b"5", b"0"], b"sha", [b"5", b"0"]])


# Without a store ---------------------------------------------------------------------------------


def test_a_server_that_never_keeps_scripts_fails_the_write_instead_of_looping():
    protocol = Protocol(KEYS)
    rows = asking(sessions(2), WRITE)
    batch = protocol.encoded(rows, NOW)
    refused = ErrorReply("NOPERM this user has no permissions to run the 'script|load' command")
    replies = [refused, refused, ErrorReply("NOSCRIPT No matching script.")]
    replies += [1] * (len(batch.commands) - len(replies))
    decoded = protocol.decode(batch, b"".join(map(reply_bytes, replies)), NOW)
    assert (len(decoded.rows), len(decoded.again), len(decoded.unwritten)) == (0, 0, 2)


@pytest.mark.parametrize("prefix", ["", "a b", "a{b", "a}b", "a:b", "a\n"])
def test_a_prefix_that_would_break_keys_is_refused(prefix):
    with pytest.raises(ValueError, match="prefix"):
        Protocol(KEYS, prefix)


def test_scripts_are_the_ones_the_package_carries():
    assert b"struct.unpack('>I4I4'" in WRITE_SCRIPT
    assert b"HDEL" in DELETE_SCRIPT
    assert b"HDEL" not in WRITE_SCRIPT


@pytest.mark.parametrize(
    ("sessions_max", "buckets"), [(0, 1), (64, 1), (65, 2), (300_000, 4688), (10**12, 1 << 24)]
)
def test_buckets_hold_about_64_sessions(sessions_max, buckets):
    assert buckets_for(sessions_max) == buckets
