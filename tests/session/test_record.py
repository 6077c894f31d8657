"""The stored record: what is sealed opens again, and nothing else does."""

import os
import random

import numpy as np
import pytest

from everwall.kernels import JIT
from everwall.session import image, record
from tests.naive import record as naive
from tests.naive.siphash import siphash24

pytestmark = pytest.mark.kernel

SECRET = bytes(range(32))
KEYS = record.derive_keys(SECRET)

# The reference implementation's vectors: key 00 01 .. 0f, message 00 01 .. of 0 to 15 bytes.
REFERENCE = [
    "310e0edd47db6f72",
    "fd67dc93c539f874",
    "5a4fa9d909806c0d",
    "2d7efbd796666785",
    "b7877127e09427cf",
    "8da699cd64557618",
    "cee3fe586e46c9cb",
    "37d1018bf50002ab",
    "6224939a79f5f593",
    "b0e4a90bdf82009e",
    "f3b9dd94c5bb5d7a",
    "a7ad6b22462fb3f4",
    "fbe50e86bc8f1e75",
    "903d84c02756ea14",
    "eef27a8e90ca23f7",
    "e545be4961ca29a1",
]

# Each column of a record, its width in bits, and whether it stops at its greatest value.
WIDTHS = {
    image.STATE: (4, False),
    image.FLAGS: (8, False),
    image.SCALES: (8, False),
    image.FROM_ZONE: (16, False),
    image.TO_ZONE: (16, False),
    image.APPLICATION: (16, False),
    image.RULE: (32, False),
    image.HOST: (32, False),
    image.OWNER: (32, False),
    image.START: (48, True),
    image.GENERATION: (16, True),
    image.EXPIRY: (32, True),
    image.PACKETS: (40, True),
    image.BYTES: (48, True),
}
FLOW = (image.ENDPOINT, image.LOWER_HIGH, image.LOWER_LOW, image.UPPER_HIGH, image.UPPER_LOW, image.KEY2)


def random_rows(dice: random.Random, count: int):
    """Sessions whose every number is anything that fits, the extremes more often than chance has it."""
    rows = np.zeros((count, image.COLUMNS), np.int64)
    for row in rows:
        for column in FLOW:
            row[column] = dice.choice([0, -1, dice.randrange(-(2**63), 2**63), dice.randrange(2**32)])
        for column, (bits, _) in WIDTHS.items():
            row[column] = dice.choice([0, 2**bits - 1, dice.randrange(2**bits)])
        row[image.TAG] = dice.randrange(2**40)
    return rows


def sealed(rows, keys=KEYS):
    fields, values = np.zeros((len(rows), 8), np.uint8), np.zeros((len(rows), 52), np.uint8)
    for i in range(len(rows)):
        fields[i] = list((int(record.field_of(rows, i, keys, 0)) % 2**64).to_bytes(8, "big"))
        record.seal(rows, i, keys, values.reshape(-1), i * 52)
    return fields, values


def opened(rows, values, keys=KEYS):
    """The rows as a reader has them: flow and tag known, everything else from the record."""
    found = np.zeros_like(rows)
    for column in (*FLOW, image.TAG):
        found[:, column] = rows[:, column]
    for i in range(len(found)):
        record.open_record(found, i, keys, 0, values.reshape(-1), i * 52)
    return found


@pytest.mark.parametrize("size", range(16))
def test_siphash_gives_the_published_vectors(size):
    key, message = np.arange(16, dtype=np.uint8), np.arange(size, dtype=np.uint8)
    words = key.view("<i8").astype(np.int64)
    kernel = int(record.siphash24(words[0], words[1], message, size)) % 2**64
    assert kernel.to_bytes(8, "little").hex() == REFERENCE[size]
    assert siphash24(key.tobytes(), message.tobytes()) == kernel


def test_records_are_byte_for_byte_what_the_plain_twin_builds():
    dice = random.Random(2012)
    rows = random_rows(dice, 300 if JIT else 60)
    fields, values = sealed(rows)
    for i, row in enumerate(rows):
        assert fields[i].tobytes() == naive.field(row, SECRET)
        assert values[i].tobytes() == naive.seal(row, SECRET)
        assert naive.unseal(row, values[i].tobytes(), SECRET) == {column: row[column] for column in WIDTHS}


def test_what_is_sealed_opens_with_every_number_as_it_was():
    rows = random_rows(random.Random(1), 100)
    found = opened(rows, sealed(rows)[1])
    assert (found[:, image.OP] == image.FOUND).all()
    rows[:, image.OP] = image.FOUND
    assert (found == rows).all()


@pytest.mark.parametrize("column", WIDTHS)
def test_no_number_spills_into_its_neighbours(column):
    bits, saturates = WIDTHS[column]
    rows = np.zeros((3, image.COLUMNS), np.int64)
    rows[:, column] = (2**bits, 2**62, -1)
    found = opened(rows, sealed(rows)[1])
    most = 2**bits - 1
    assert found[:, column].tolist() == ([most, most, 0] if saturates else [0, 0, most])
    others = [other for other in WIDTHS if other != column]
    assert not found[:, others].any()


def test_order_and_owner_lie_where_the_scripts_read_them():
    rows = random_rows(random.Random(3), 1)
    value = sealed(rows)[1][0].tobytes()
    start, generation = int(rows[0, image.START]), int(rows[0, image.GENERATION])
    order = value[record.ORDER_OFFSET : record.ORDER_OFFSET + record.ORDER_BYTES]
    assert int.from_bytes(order, "big") == start << 16 | generation
    owner = value[record.OWNER_OFFSET : record.OWNER_OFFSET + 4]
    assert int.from_bytes(owner, "big") == rows[0, image.OWNER]


def test_a_genuine_record_of_another_version_is_told_from_a_forged_one_and_not_read():
    rows = random_rows(random.Random(4), 1)
    body = bytearray(naive.seal(rows[0], SECRET)[:44])
    body[0] = 0x20 | body[0] & 0xF
    tag = siphash24(naive.keys(SECRET)[1], naive.flow(rows[0]) + bytes(body))
    value = bytes(body) + tag.to_bytes(8, "big")
    assert naive.unseal(rows[0], value, SECRET) is None
    found = opened(rows, np.frombuffer(value, np.uint8).reshape(1, 52))
    assert found[0, image.OP] == image.FOREIGN
    assert not found[0, list(WIDTHS)].any()
    forged = value[:-1] + bytes([value[-1] ^ 1])
    assert opened(rows, np.frombuffer(forged, np.uint8).reshape(1, 52))[0, image.OP] == image.REFUSED


@pytest.mark.parametrize("column", FLOW)
def test_a_record_moved_to_another_flow_is_refused(column):
    rows = random_rows(random.Random(5), 1)
    _, values = sealed(rows)
    rows[0, column] ^= 1
    assert opened(rows, values)[0, image.OP] == image.REFUSED


def test_a_record_of_another_cluster_is_refused():
    rows = random_rows(random.Random(6), 1)
    _, values = sealed(rows, record.derive_keys(SECRET + b"!"))
    assert opened(rows, values)[0, image.OP] == image.REFUSED


def test_fields_of_another_cluster_are_others():
    rows = random_rows(random.Random(7), 1)
    assert sealed(rows)[0].tobytes() != sealed(rows, record.derive_keys(SECRET + b"!"))[0].tobytes()


def test_a_short_secret_is_no_secret():
    with pytest.raises(ValueError, match="at least 32 bytes, got 31"):
        record.derive_keys(bytes(31))


def test_no_altered_record_opens():
    """Bits flipped, bytes replaced, ranges swapped with a second valid record, tags guessed."""
    deep = os.environ.get("EVERWALL_DEEP") == "1"
    seed, cases = 20121, 20_000 if deep else 2_000
    print(f"seed {seed}")
    dice = random.Random(seed)
    rows = random_rows(dice, cases)
    _, values = sealed(rows)
    good = values.copy()
    for i in range(cases):
        mutation = dice.randrange(4)
        if mutation == 0:
            values[i, dice.randrange(52)] ^= 1 << dice.randrange(8)
        elif mutation == 1:
            for _ in range(dice.randrange(1, 8)):
                values[i, dice.randrange(52)] = dice.randrange(256)
        elif mutation == 2:
            start = dice.randrange(52)
            end = dice.randrange(start + 1, 53)
            values[i, start:end] = good[dice.randrange(cases), start:end]
        else:
            values[i, 44:] = np.frombuffer(dice.randbytes(8), np.uint8)
    altered = (values != good).any(axis=1)
    assert altered.sum() > cases * 0.9
    found = opened(rows, values)
    assert (found[altered, image.OP] == image.REFUSED).all()
    assert (found[~altered, image.OP] == image.FOUND).all()
    assert not found[altered][:, list(WIDTHS)].any(), "a refused record leaves nothing behind"
