"""The session table against a dict: what is in it is found, by its own key only, and nothing ever moves."""

from __future__ import annotations

import mmap
import random
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everwall.flow import make_key
from everwall.kernels import JIT, kernel
from everwall.limits import BUCKET_SLOTS, SET_CHOICES, TABLE_LOAD_MAX
from everwall.session import table as t
from everwall.wire import meta as m

pytestmark = pytest.mark.kernel

SEED = 20_240_229


@dataclass(frozen=True)
class Flow:
    """One direction of a flow."""

    source: int
    destination: int
    sport: int = 1000
    dport: int = 80
    protocol: int = 6
    family: int = 4
    endpoint: int = 0

    def back(self) -> Flow:
        return Flow(
            self.destination, self.source, self.dport, self.sport, self.protocol, self.family, self.endpoint
        )


def described(*flows: Flow) -> np.ndarray:
    """Descriptors with their keys made, as the parsers leave them."""
    meta = np.zeros((len(flows), m.COLUMNS), np.int64)
    for i, flow in enumerate(flows):
        meta[i, m.ENDPOINT] = flow.endpoint
        meta[i, m.FAMILY] = flow.family
        meta[i, m.PROTOCOL] = flow.protocol
        if flow.family == 6:
            meta[i, m.SOURCE_HIGH] = meta[i, m.DESTINATION_HIGH] = 0x20010DB8 << 32
        meta[i, m.SOURCE_LOW], meta[i, m.DESTINATION_LOW] = flow.source, flow.destination
        meta[i, m.SOURCE_PORT], meta[i, m.DESTINATION_PORT] = flow.sport, flow.dport
        make_key(meta, i, SEED)
    return meta


def random_flow(dice: random.Random) -> Flow:
    """From so few that flows meet again, and differ in one part only."""
    return Flow(
        *(dice.randrange(1, 5) for _ in range(2)),
        *(dice.choice([53, 80]) for _ in range(2)),
        dice.choice([6, 17]),
        dice.choice([4, 6]),
        dice.randrange(2),
    )


def test_a_session_is_found_from_both_directions() -> None:
    table = t.make_table(64)
    there, back = described(Flow(1, 2), Flow(2, 1, 80, 1000))
    slot = t.add_session(table, there.reshape(1, -1), 0)
    assert t.find_session(table, there.reshape(1, -1), 0) == slot
    assert t.find_session(table, back.reshape(1, -1), 0) == slot


@pytest.mark.parametrize(
    "part", ["source", "destination", "sport", "dport", "protocol", "family", "endpoint"]
)
def test_every_part_of_the_key_counts(part: str) -> None:
    flow = Flow(1, 2)
    other = Flow(**{**vars(flow), part: {"protocol": 17, "family": 6}.get(part, 77)})
    table = t.make_table(64)
    t.add_session(table, described(flow), 0)
    assert t.find_session(table, described(other), 0) == -1


def test_equal_signatures_of_ipv6_addresses_are_told_apart() -> None:
    # Signatures can collide. Here they do: the second flow is given the first one's key and hash.
    meta = described(Flow(1, 2, family=6), Flow(3, 4, family=6))
    meta[1, [m.KEY1, m.HASH]] = meta[0, [m.KEY1, m.HASH]]
    table = t.make_table(64)
    first, second = t.add_session(table, meta, 0), t.add_session(table, meta, 1)
    assert (t.find_session(table, meta, 0), t.find_session(table, meta, 1)) == (first, second)


def test_a_slot_comes_back_empty() -> None:
    table = t.make_table(64)
    meta = described(Flow(1, 2))
    slot = t.add_session(table, meta, 0)
    table.cold[slot] = 99
    t.remove_session(table, slot)
    assert t.find_session(table, meta, 0) == -1
    assert not table.tags.any()
    again = t.add_session(table, meta, 0)
    assert again == slot
    assert not table.cold[again].any()


@pytest.mark.parametrize("seed", range(4))
def test_it_agrees_with_a_dict_and_nothing_moves(seed: int) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    table = t.make_table(1000)
    twin: dict[tuple, int] = {}
    for _ in range(1500):
        flow = random_flow(dice)
        name = min(astuple(flow), astuple(flow.back()))
        meta = described(flow if dice.random() < 0.5 else flow.back())
        assert t.find_session(table, meta, 0) == twin.get(name, -1)
        if name in twin and dice.random() < 0.6:
            t.remove_session(table, twin.pop(name))
        elif name not in twin:
            slot = t.add_session(table, meta, 0)
            assert slot >= 0
            assert slot not in twin.values()
            twin[name] = slot
    assert sorted(twin.values()) == np.flatnonzero(table.hot[:, t.KEY2]).tolist()


def meeting(flows: int) -> np.ndarray:
    """Descriptors of flows that all meet in sets 0, 2, 4 and 6 of a table of 16 sets."""
    meta = described(*(Flow(1, 2, sport) for sport in range(1, flows + 1)))
    meta[:, m.HASH] = (1 << 61) | (7 << 32)
    return meta


def test_four_full_sets_refuse_and_one_free_place_is_found() -> None:
    table = t.make_table(int(16 * BUCKET_SLOTS * TABLE_LOAD_MAX))
    room = SET_CHOICES * BUCKET_SLOTS
    flows = meeting(room + 1)
    slots = [t.add_session(table, flows, i) for i in range(room)]
    assert sorted(slots) == [first * BUCKET_SLOTS + k for first in (0, 2, 4, 6) for k in range(BUCKET_SLOTS)]
    assert t.add_session(table, flows, room) == -1
    t.remove_session(table, slots[19])
    assert t.add_session(table, flows, room) == slots[19]
    assert [t.find_session(table, flows, i) for i in range(room)] == slots[:19] + [-1] + slots[20:]


def test_a_new_session_goes_to_the_emptiest_set() -> None:
    table = t.make_table(int(16 * BUCKET_SLOTS * TABLE_LOAD_MAX))
    flows = meeting(9)
    slots = [t.add_session(table, flows, i) for i in range(8)]
    assert [slot // BUCKET_SLOTS for slot in slots] == [0, 2, 4, 6, 0, 2, 4, 6]
    t.remove_session(table, slots[6])
    assert t.add_session(table, flows, 8) == slots[6]


@given(hashed=st.integers(-(2**63), 2**63 - 1), sets=st.integers(1, 2**22))
def test_sets_and_tag_are_what_the_program_computes(hashed: int, sets: int) -> None:
    # The cut-through program does the same with unsigned numbers.
    low, high = hashed & 0xFFFFFFFF, hashed >> 32 & 0xFFFFFFFF
    expected = [(((low + k * (high | 1)) % 2**32) * sets >> 32) * BUCKET_SLOTS for k in range(SET_CHOICES)]
    word = np.int64(hashed)
    assert [int(t.set_start(word, k, sets)) for k in range(SET_CHOICES)] == expected
    assert int(t.tag_of(word)) == (high % 256 or 1)


@pytest.mark.parametrize("sessions", [1, 64, 100, 6553, 100_000])
def test_a_table_is_sized_for_its_sessions(sessions: int) -> None:
    slots = t.slots_for(sessions)
    assert slots % BUCKET_SLOTS == 0
    assert slots * TABLE_LOAD_MAX >= sessions
    assert (slots - BUCKET_SLOTS) * TABLE_LOAD_MAX < sessions


def test_a_session_takes_fewer_than_250_bytes_of_table() -> None:
    table = t.make_table(100_000)
    own = [table.hot, table.tags, table.addresses, table.cold]
    assert sum(array.nbytes for array in own) == len(table.tags) * t.SLOT_BYTES
    assert len(table.tags) * t.SLOT_BYTES / 100_000 < 250


def test_the_views_show_the_same_bytes_and_a_line_is_a_line() -> None:
    table = t.make_table(100)
    assert table.hot.ctypes.data % 64 == 0
    table.hot32[3, t.CONTROL] = 7
    assert table.hot[3].view(np.uint8)[24] == 7, "where the program reads it"
    columns = {"cold": [t.LAST_SEEN, t.PACKETS, t.BYTES, t.ID, t.START, t.WRITTEN]}
    columns["small"] = [t.SEQUENCE_END, t.SEQUENCE_MAX, t.WINDOW_MAX, t.PACKETS_BASE]
    columns["small"] = [end for start in columns["small"] for end in (start, start + 1)]
    columns["small"] += [t.RULE, t.HOST, t.SYN_NEXT]
    columns["short"] = [t.STATE, t.FLAGS, t.SCALES, t.LOCAL, t.END_REASON, t.FROM_ZONE, t.TO_ZONE]
    columns["short"] += [t.APPLICATION, t.GENERATION]
    for view, wanted in columns.items():
        for column in wanted:
            array = getattr(table, view)
            assert array[5, column] == 0, f"{view} {column} lies over another column"
            array[5, column] = 2 ** (8 * array.itemsize - 1) - 1
    assert not table.cold[4].any()
    assert not table.cold[6].any()


def test_a_table_gets_all_its_memory_before_packets_come() -> None:
    table = t.make_table(100_000)
    before = _resident()
    t.fault_in(table)
    assert _resident() - before > 0.9 * sum(
        array.nbytes for array in (table.hot, table.addresses, table.cold)
    )
    assert not table.hot.any()
    t.fault_in(table)  # again, when there is nothing to do


def _resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@kernel
def _read_ends(table, slot, out):
    out[0], out[1], out[2], out[3] = t.ends_of(table, slot)


@pytest.mark.parametrize("family", [4, 6])
def test_a_session_knows_the_addresses_of_its_ends(family: int) -> None:
    table, high = t.make_table(64), 0x20010DB8 << 32 if family == 6 else 0
    table.addresses[:] = -1  # of sessions that had these slots before
    for source, destination in ((1, 0xFFFF_FFFF), (0x8000_0000, 0x7FFF_FFFF), (5, 5)):
        slot = t.add_session(table, described(Flow(source, destination, family=family)), 0)
        out = np.zeros(4, np.int64)
        _read_ends(table, slot, out)
        assert out.tolist() == [high, min(source, destination), high, max(source, destination)]
        assert t.ends(table, np.array([slot])).tolist() == [out.tolist()], "readers see the same"


def test_a_table_can_stand_on_arrays_from_outside() -> None:
    slots = t.slots_for(64)
    shared = t.SharedTable(
        np.zeros((slots, t.HOT_COLUMNS), np.int64),
        np.zeros(slots, np.uint8),
        np.zeros((slots, t.ADDRESS_COLUMNS), np.int64),
    )
    table = t.make_table(64, shared)
    slot = t.add_session(table, described(Flow(1, 2, family=6)), 0)
    assert shared.tags[slot] != 0
    assert shared.hot[slot, t.KEY2] != 0
    assert shared.addresses[slot].tolist() == [0x20010DB8 << 32, 1, 0x20010DB8 << 32, 2]
    with pytest.raises(ValueError, match="slots"):
        t.make_table(1000, shared)


def test_a_slot_counts_from_where_the_program_stands() -> None:
    table = t.make_table(64)
    meta = described(Flow(1, 2))
    slot = t.add_session(table, meta, 0)
    t.remove_session(table, slot)
    table.hot32[slot, t.PACKETS_LOWER : t.PACKETS_UPPER + 1] = 5, 4_294_967_295
    table.hot[slot, t.BYTES_LOWER :] = 500, 700
    assert t.add_session(table, meta, 0) == slot
    assert table.small[slot, t.PACKETS_BASE : t.PACKETS_BASE + 2].tolist() == [5, 4_294_967_295]
    assert table.cold[slot, t.BYTES] == -1200


@kernel
def churn(table, meta, slots, victims, count):
    """Fill the table, then replace sessions one by one; returns how many found no place."""
    for i in range(slots.shape[0]):
        slots[i] = t.add_session(table, meta, i)
    overflow = 0
    for k in range(count):
        victim = victims[k]
        if slots[victim] >= 0:
            t.remove_session(table, slots[victim])
        meta[victim, m.HASH] = meta[slots.shape[0] + k, m.HASH]
        slots[victim] = t.add_session(table, meta, victim)
        if slots[victim] < 0:
            overflow += 1
    return overflow


@pytest.mark.parametrize("round_", range(3))
def test_a_full_table_in_which_sessions_come_and_go_has_room(round_: int) -> None:
    # What counts is not the first filling but the table after every session was replaced many times.
    seed = SEED + round_
    print(f"seed {seed}")
    dice = np.random.default_rng(seed)
    sessions, turnover = (21_504, 20) if JIT else (5_376, 5)
    count = sessions * turnover
    meta = np.zeros((sessions + count, m.COLUMNS), np.int64)
    meta[:, m.HASH] = dice.integers(-(2**63), 2**63, sessions + count)
    meta[:, m.KEY2] = 1
    table = t.make_table(sessions)
    assert sessions / len(table.tags) > TABLE_LOAD_MAX - 0.005
    slots = np.zeros(sessions, np.int64)
    overflow = churn(table, meta, slots, dice.integers(0, sessions, count), count)
    print(f"{overflow} of {count}")
    assert overflow <= count / 1000
    kept = slots[slots >= 0]
    assert sorted(kept) == np.flatnonzero(table.tags).tolist()
