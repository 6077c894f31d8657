"""The session table against a dict: what is in it is found, by its own key only, and nothing ever moves."""

from __future__ import annotations

import random
from dataclasses import astuple, dataclass

import numpy as np
import pytest

from everwall.flow import make_key
from everwall.limits import BUCKET_SLOTS, TABLE_LOAD_MAX
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
    table.cold[slot, t.LAST_SEEN :] = 99
    table.small[slot, : t.SMALL_COLUMNS] = 99
    t.remove_session(table, slot)
    assert t.find_session(table, meta, 0) == -1
    again = t.add_session(table, meta, 0)
    assert not table.small[again, : t.SMALL_COLUMNS].any()
    assert not table.cold[again, t.LAST_SEEN :].any()


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


def test_two_full_sets_refuse_and_one_free_place_is_found() -> None:
    table = t.make_table(64)
    flows = described(*(Flow(1, 2, sport) for sport in range(1, 2 * BUCKET_SLOTS + 2)))
    flows[:, m.HASH] = 1 << 32  # every flow meets in set 0 and set 1
    slots = [t.add_session(table, flows, i) for i in range(2 * BUCKET_SLOTS)]
    assert sorted(slots) == list(range(2 * BUCKET_SLOTS))
    assert t.add_session(table, flows, 2 * BUCKET_SLOTS) == -1
    t.remove_session(table, slots[3])
    assert t.add_session(table, flows, 2 * BUCKET_SLOTS) == slots[3]


def test_a_new_session_goes_to_the_emptier_set() -> None:
    table = t.make_table(64)
    flows = described(*(Flow(1, 2, sport) for sport in range(1, 6)))
    flows[:, m.HASH] = 1 << 32
    sets = [t.add_session(table, flows, i) // BUCKET_SLOTS for i in range(4)]
    assert sets == [0, 1, 0, 1]


@pytest.mark.parametrize("sessions", [1, 64, 100, 6553, 100_000])
def test_a_table_is_sized_for_its_sessions(sessions: int) -> None:
    slots = t.slots_for(sessions)
    assert slots * TABLE_LOAD_MAX >= sessions
    assert (slots // BUCKET_SLOTS).bit_count() == 1


@pytest.mark.parametrize(("load", "overflow"), [(0.70, 0), (TABLE_LOAD_MAX, 0.001)])
def test_two_choices_fill_the_table_evenly(load: float, overflow: float) -> None:
    slots = 8192
    sessions = int(slots * load)
    table = t.make_table(int(slots * TABLE_LOAD_MAX))
    assert len(table.hot) == slots
    dice = random.Random(SEED)
    meta = described(
        *(Flow(dice.randrange(1 << 32), 0x0A000101, dice.randrange(1 << 16), 443) for _ in range(sessions))
    )
    placed = [t.add_session(table, meta, i) for i in range(sessions)]
    assert placed.count(-1) <= sessions * overflow
    kept = [slot for slot in placed if slot >= 0]
    assert len(set(kept)) == len(kept)
    assert all(t.find_session(table, meta, i) == placed[i] for i in range(0, sessions, 7))
