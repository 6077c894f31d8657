"""A campaign of records that somebody put into the store who has not the secret: no session is restored from one.

5,000 of them, with ``EVERWALL_DEEP=1`` 100,000: altered, moved to another flow or endpoint, cut or made longer, sealed
with another secret, of another version, spliced, replayed after their time. Each is asked for by a packet of its flow
that comes to a node; beside every batch of them lies one genuine record, which has to be restored. Then each
stands against a write of the session's living owner, which it may not stop.
"""

from __future__ import annotations

import os
import random
import struct

import numpy as np
import pytest

from everwall.kernels import JIT
from everwall.session import image, record, tcp
from everwall.session.image import LOOKUP, WRITE, WRITTEN
from everwall.store.layout import Epoch, bucket_key, bucket_of
from everwall.verdict import Verdict
from tests.cluster import SECRET, START_S, Cluster
from tests.conversations import Connection
from tests.naive import record as naive
from tests.naive.siphash import siphash24
from tests.store.stores import Memory, Node, asking

pytestmark = pytest.mark.kernel

DEEP = os.environ.get("EVERWALL_DEEP") == "1"
RECORDS = (100_000 if DEEP else 5_000) if JIT else 200
BATCH = 50
KEYS = record.derive_keys(SECRET)
FOREIGN_SECRET = b"the secret of another cluster..."


def as_established(rows):
    """What the owner of the sessions that are looked up would have written."""
    rows = rows.copy()
    rows[:, image.OP] = image.WRITE_FIRST
    rows[:, image.STATE] = tcp.TCP_ESTABLISHED
    rows[:, image.FLAGS] = image.REPLIED
    rows[:, image.OWNER] = 77
    rows[:, image.START] = START_S * 1000
    rows[:, image.EXPIRY] = START_S + 3720
    rows[:, image.PACKETS], rows[:, image.BYTES] = 5, 500
    return rows


def resealed(row, body: bytes, secret: bytes = SECRET) -> bytes:
    """Any 44 bytes under a seal that is right for a flow."""
    tag = siphash24(naive.keys(secret)[1], naive.flow(row) + body)
    return body + struct.pack(">Q", tag)


def flip(dice: random.Random, row, other, value: bytes, theirs: bytes) -> bytes:
    at = dice.randrange(52)
    return value[:at] + bytes([value[at] ^ 1 << dice.randrange(8)]) + value[at + 1 :]


def overwrite(dice: random.Random, row, other, value: bytes, theirs: bytes) -> bytes:
    changed = bytearray(value)
    for _ in range(dice.randrange(1, 9)):
        at = dice.randrange(52)
        changed[at] = (changed[at] + dice.randrange(1, 256)) % 256
    return bytes(changed) if bytes(changed) != value else flip(dice, row, other, value, theirs)


def cut(dice: random.Random, row, other, value: bytes, theirs: bytes) -> bytes:
    return value[: dice.randrange(52)]


def stretch(dice: random.Random, row, other, value: bytes, theirs: bytes) -> bytes:
    return value + dice.randbytes(dice.randrange(1, 200))


def move_to_another_flow(dice: random.Random, row, other, value: bytes, theirs: bytes) -> bytes:
    return theirs


def move_to_another_endpoint(dice: random.Random, row, other, value: bytes, theirs: bytes) -> bytes:
    there = row.copy()
    there[image.ENDPOINT] ^= 1 << dice.randrange(63)
    return naive.seal(there, SECRET)


def turn_the_flow_round(dice: random.Random, row, other, value: bytes, theirs: bytes) -> bytes:
    there = row.copy()
    there[[image.LOWER_LOW, image.UPPER_LOW]] = row[[image.UPPER_LOW, image.LOWER_LOW]]
    return naive.seal(there, SECRET)


def seal_with_another_secret(dice: random.Random, row, other, value: bytes, theirs: bytes) -> bytes:
    return naive.seal(row, FOREIGN_SECRET)


def claim_another_version(dice: random.Random, row, other, value: bytes, theirs: bytes) -> bytes:
    return bytes([dice.choice([0, *range(2, 16)]) << 4 | value[0] & 0xF]) + value[1:]


def splice(dice: random.Random, row, other, value: bytes, theirs: bytes) -> bytes:
    """Two genuine records of the same session, of different times."""
    later = row.copy()
    later[image.GENERATION], later[image.PACKETS] = 9, 99
    middle = naive.seal(later, SECRET)
    first, last = sorted(dice.sample(range(27, 53), 2))
    spliced = value[:first] + middle[first:last] + value[last:]
    return spliced if spliced not in (value, middle) else cut(dice, row, other, value, theirs)


def guess_the_tag(dice: random.Random, row, other, value: bytes, theirs: bytes) -> bytes:
    return value[:18] + dice.randbytes(26) + dice.randbytes(8)


def raise_the_order(dice: random.Random, row, other, value: bytes, theirs: bytes) -> bytes:
    return value[:21] + b"\xff" * 8 + value[29:]


FORGERIES = [
    flip,
    overwrite,
    cut,
    stretch,
    move_to_another_flow,
    move_to_another_endpoint,
    turn_the_flow_round,
    seal_with_another_secret,
    claim_another_version,
    splice,
    guess_the_tag,
    raise_the_order,
]


def test_no_record_that_was_tampered_with_restores_a_session():
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    refused = 0
    for number in range(RECORDS // BATCH):
        if number % 40 == 0:
            cluster = Cluster()
            node = cluster.node(max_sessions=256)
            bucket = Epoch(0, node.protocol.buckets)
        genuine = dice.randrange(BATCH + 1)
        cluster.store.keys.clear()
        connections = [
            Connection(client=f"10.{number % 200}.0.{k}", sport=1024 + number) for k in range(BATCH + 1)
        ]
        assert set(node.receive(*(one.ack() for one in connections))) == {Verdict.PARK}
        asked = node.engine.outbox()
        rows = as_established(asked)
        values = [naive.seal(row, SECRET) for row in rows]
        kinds = {}
        for k, row in enumerate(rows):
            value, other = values[k], (k + 1) % len(rows)
            if k != genuine:
                kinds[k] = dice.choice(FORGERIES)
                value = kinds[k](dice, row, rows[other], value, values[other])
                assert value != values[k], kinds[k].__name__
            field = naive.field(row, SECRET)
            cluster.store.keys.setdefault(bucket_key("everwall", bucket, bucket_of(field, bucket)), {})[
                field
            ] = value
        before = node.engine.counters["records-refused"]
        node.answer(asked)
        refused += node.engine.counters["records-refused"] - before
        (restored,) = node.sessions()
        assert restored["src"].endswith(f".{genuine}") or restored["dst"].endswith(f".{genuine}"), kinds
        node.forget_everything()
    assert refused == RECORDS // BATCH * BATCH, "each was refused by that name, and none taken for a miss"


def test_a_genuine_record_of_another_version_is_not_restored_and_not_overwritten():
    """Who cannot read it gives way to it; a newer session of the same ports does not."""
    cluster, newer = Cluster(), Memory()
    node = cluster.node()
    one = Connection()
    node.receive(one.ack())
    asked = node.engine.outbox()
    (row,) = as_established(asked)
    body = naive.seal(row, SECRET)[:44]
    value = resealed(row, bytes([0x20 | body[0] & 0xF]) + body[1:])
    field = naive.field(row, SECRET)
    bucket = Epoch(0, 16)
    key = bucket_key("everwall", bucket, bucket_of(field, bucket))
    cluster.store.keys[key] = {field: value}
    node.answer(asked)
    assert node.sessions() == []
    assert node.engine.counters["records-refused"] == 1

    writer = Node(newer, KEYS, 16, "everwall")
    newer.store.keys[key] = {field: value}
    mine = row.reshape(1, -1).copy()
    mine[:, image.OWNER] = 5
    assert writer.outcome(mine, WRITE, START_S) == [image.LOST]
    assert newer.store.keys[key][field] == value
    mine[:, image.START] += 1
    assert writer.outcome(mine, WRITE, START_S) == [WRITTEN], "it is another session by now"

    forged = value[:21] + b"\x7f" + value[22:]
    newer.store.keys[key] = {field: forged}
    assert writer.outcome(mine, WRITE, START_S) == [WRITTEN], "of another version, but not genuine"
    newer.store.keys[key] = {field: value}
    mine[:, image.START] -= 1
    assert writer.outcome(mine, WRITE, START_S + 3721) == [WRITTEN], "its time is over"


def test_no_record_that_was_tampered_with_takes_a_live_session_from_its_owner():
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    store = Memory()
    node = Node(store, KEYS, 16, "everwall")
    cases = RECORDS // 5
    rows = as_established(np.zeros((cases, image.COLUMNS), np.int64))
    rows[:, image.TAG] = np.arange(cases)
    rows[:, image.ENDPOINT] = 7
    rows[:, image.LOWER_LOW], rows[:, image.UPPER_LOW] = np.arange(cases), 1 << 24
    rows[:, image.KEY2] = 40_000 | 80 << 16 | 6 << 32 | 4 << 40
    node.ask(rows, image.WRITE_FIRST, START_S)
    stored = rows.copy()
    stored[:, image.GENERATION], stored[:, image.OWNER] = 3, 99  # of a node that never was
    bucket = Epoch(0, 16)
    for k, row in enumerate(stored):
        theirs = naive.seal(stored[k - 1], SECRET)
        value = dice.choice(FORGERIES)(dice, row, stored[k - 1], naive.seal(row, SECRET), theirs)
        field = naive.field(row, SECRET)
        store.store.keys[bucket_key("everwall", bucket, bucket_of(field, bucket))][field] = value
    assert node.outcome(rows, WRITE, START_S) == [WRITTEN] * cases
    assert node.outcome(asking(rows, LOOKUP), LOOKUP, START_S) == [image.FOUND] * cases
