"""Random requests of several nodes: Lua on a real server, the twin in memory and a plain reading of the rules agree."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest

from everwall.session import image, record
from everwall.session.image import DELETE, FOUND, LOOKUP, WRITE, WRITE_FIRST
from everwall.store.protocol import Command
from tests.naive import ownership
from tests.store.stores import NOW, Node, asking, sessions

pytestmark = pytest.mark.kernel

FLOWS = 6
COLUMNS = [image.START, image.GENERATION, image.OWNER, image.EXPIRY]
SECRETS = (b"a cluster secret of 32 bytes ...", b"the one after it, of 32 bytes ..")
ROUNDS = 2_000 if os.environ.get("EVERWALL_DEEP") else 250


class Requests:
    """What nodes ask, drawn from a seed: few flows, orders close to each other, clocks that are off."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._flows = sessions(FLOWS, seed=seed)

    def batch(self, *, calm: bool = False):
        """(request rows of one pipeline, what the plain rules are to be asked, store time as the asker believes it).

        ``calm``: nothing is expired.
        """
        dice = self._dice
        count = dice.randint(1, 8)
        now = NOW + (0 if calm else dice.choice((0, 0, 0, 1, 40, 3_000)))
        rows, asked = [], []
        for tag in range(count):
            flow, operation = dice.randrange(FLOWS), dice.choice((LOOKUP, WRITE, WRITE, DELETE, WRITE_FIRST))
            one = ownership.Record(
                start=dice.choice((NOW * 1000, NOW * 1000 + 1, NOW * 1000 + dice.randint(-5_000, 5_000))),
                generation=dice.choice((0, 1, 2, 0xFFFF)),
                owner=dice.choice((1, 2, 0xFFFFFFFF)),
                expiry=NOW + (3_600 if calm else dice.choice((-1, 0, 30, 3_600))),
            )
            row = self._flows[flow : flow + 1].copy()
            row[0, COLUMNS] = one
            row = asking(row, operation)
            row[0, image.TAG] = tag
            rows.append(row)
            asked.append((operation, flow, one))
        return rows, asked, now

    @property
    def spoilt(self) -> int | None:
        """A flow whose record somebody without the secret puts something in place of, now and then."""
        return self._dice.randrange(FLOWS) if self._dice.random() < 0.1 else None

    def place(self, node: Node, flow: int) -> Command:
        return node.protocol.encoded(asking(self._flows[flow : flow + 1], LOOKUP), NOW).commands[0][1:]


@pytest.mark.parametrize("attempt", range(3))
def test_scripts_twin_and_rules_agree_on_who_owns_a_session(store, attempt: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    requests, node, rules = Requests(seed), Node(store), ownership.Store()
    for _ in range(ROUNDS):
        spoilt = requests.spoilt
        if spoilt is not None:
            store.send([(b"HSET", *requests.place(node, spoilt), b"\x10" + b"\xff" * 51)])
            rules.spoil(spoilt)
        rows, asked, now = requests.batch()
        # One at a time: within a pipeline writes go before deletes and look-ups, which is another test's.
        for row, (operation, flow, one) in zip(rows, asked, strict=True):
            outcome = node.outcome(row, now_s=now)
            expected = rules.ask(operation, flow, one, now)
            assert outcome == [expected], f"seed {seed}: {operation} {flow} {one} at {now - NOW}"


@pytest.mark.parametrize("attempt", range(3))
def test_it_is_the_same_while_records_may_lie_in_several_places(store, attempt: int) -> None:
    """Two nodes in the middle of a rotation, of which each writes with another of the two secrets.

    A first write is none of the requests: it is compared with nothing, and clears nothing elsewhere.
    """
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice, flows, rules = random.Random(seed), sessions(FLOWS, seed=seed), ownership.Store()
    nodes = [Node(store, keys) for keys in (record.derive_keys(*SECRETS), record.derive_keys(*SECRETS[::-1]))]
    for _ in range(ROUNDS):
        flow, operation = dice.randrange(FLOWS), dice.choice((LOOKUP, WRITE, WRITE, DELETE))
        # Who has taken a session over has raised its generation: no two owners have the same.
        generation = dice.randrange(6)
        one = ownership.Record(NOW * 1000 + dice.randrange(2), generation, 1 + generation % 2, NOW + 3_600)
        row = asking(flows[flow : flow + 1], operation)
        if operation != LOOKUP:
            row[0, COLUMNS] = one
        (answer,) = dice.choice(nodes).ask(row)
        expected = rules.ask(operation, flow, one, NOW)
        assert answer[image.OP] == expected, f"seed {seed}: {operation} {flow} {one}"
        if expected == FOUND:
            assert tuple(answer[COLUMNS].tolist()) == rules.records[flow], f"seed {seed}"


@pytest.mark.parametrize("attempt", range(3))
def test_a_pipeline_does_its_writes_then_its_deletes_then_its_lookups(store, attempt: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    requests, node, rules = Requests(seed), Node(store), ownership.Store()
    order = (WRITE_FIRST, WRITE, DELETE, LOOKUP)
    for _ in range(ROUNDS):
        rows, asked, now = requests.batch(calm=True)
        expected = [0] * len(asked)
        for operation in order:
            for k, one in enumerate(asked):
                if one[0] == operation:
                    expected[k] = rules.ask(*one, now)
        assert node.outcome(np.concatenate(rows), now_s=now) == expected, f"seed {seed}"
