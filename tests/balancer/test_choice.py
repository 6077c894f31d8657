"""The choice of targets and the flow table against their plain twin, over random histories."""

from __future__ import annotations

import random
from ipaddress import IPv4Address

import numpy as np
import pytest

from everwall.balancer.choice import (
    ADDRESS,
    CHOICE,
    COLUMNS,
    FAIL_OPEN,
    HEALTHY,
    NEVER,
    choose,
    flow_hash,
)
from everwall.balancer.targets import State
from everwall.flow import make_key
from everwall.wire.meta import INNER, START
from everwall.wire.packet import parse
from tests.balancer.gateways import ENDPOINT, Story, address
from tests.naive.balancing import NaiveBalancer
from tests.packets import batch_of, tcp, udp

pytestmark = pytest.mark.kernel


def hash_of_packet(packet: bytes, seed: int = 1) -> int:
    batch = batch_of([packet], bare=True, endpoint=ENDPOINT)
    batch.meta[0, INNER] = batch.meta[0, START]
    assert parse(batch.data, batch.meta, 0) == 0
    make_key(batch.meta, 0, seed)
    return int(flow_hash(batch.meta, 0))


def test_choice_is_the_same_for_both_directions_and_any_seed():
    there = tcp("2001:db8::1", "2001:db8::2", 5, 6)
    back = tcp("2001:db8::2", "2001:db8::1", 6, 5)
    assert hash_of_packet(there, 1) == hash_of_packet(back, 2)


def test_choice_does_not_depend_on_the_order_of_targets():
    addresses = [int(IPv4Address(address(f"fw{n}"))) for n in range(1, 8)]
    shuffler = random.Random(5)
    for flow in range(200):
        chosen = set()
        for _ in range(3):
            shuffler.shuffle(addresses)
            rows = np.zeros((len(addresses), COLUMNS), np.int64)
            rows[:, ADDRESS], rows[:, CHOICE] = addresses, HEALTHY
            chosen.add(addresses[choose(rows, flow, 0)])
        assert len(chosen) == 1


def test_choice_takes_the_healthy_then_the_registered_then_nobody():
    rows = np.zeros((3, COLUMNS), np.int64)
    rows[:, ADDRESS] = 1, 2, 3
    rows[:, CHOICE] = NEVER, FAIL_OPEN, HEALTHY
    assert {choose(rows, flow, 1) for flow in range(50)} == {2}
    rows[2, CHOICE] = NEVER
    assert {choose(rows, flow, 1) for flow in range(50)} == {1}
    assert {choose(rows, flow, 0) for flow in range(50)} == {-1}


def pairwise_weights(flows: list[bytes], names: list[str]) -> dict[tuple[int, str], int]:
    """For each flow the rank of each target, learnt by letting two of them compete at a time."""
    ranks = {}
    for number, packet in enumerate(flows):
        value = hash_of_packet(packet)
        for name in names:
            wins = 0
            for other in names:
                rows = np.zeros((2, COLUMNS), np.int64)
                rows[:, ADDRESS] = int(IPv4Address(address(name))), int(IPv4Address(address(other)))
                rows[:, CHOICE] = HEALTHY
                wins += name != other and choose(rows, value, 0) == 0
            ranks[number, name] = wins
    return ranks


@pytest.mark.parametrize("seed", range(4))
def test_random_histories_agree_with_the_plain_twin(seed):
    print(f"seed {seed}")
    chance = random.Random(seed)
    rebalance = seed % 2 == 0
    story = Story(targets=5, rebalance=rebalance, deregistration_delay=3 * 10**9, seed=seed)
    story.wait(351)
    protocols = {number: "tcp" if number % 2 else "udp" for number in range(24)}

    def packet(number: int, syn: bool) -> bytes:
        ends = ["10.1.0.1", "10.2.0.2"], [1000 + number, 80]
        turn = 1 if chance.random() < 0.5 and not syn else 0
        (src, dst), (sport, dport) = (part[::-1] if turn else part for part in ends)
        if protocols[number] == "tcp":
            return tcp(src, dst, sport, dport, "S" if syn else "A")
        return udp(src, dst, sport, dport)

    ranks = pairwise_weights([packet(number, True) for number in range(24)], story.names)
    naive = NaiveBalancer(
        lambda flow, name: ranks[flow, name],
        rebalance,
        {"tcp": 350, "udp": 120},
        dict.fromkeys(story.names, "healthy"),
    )
    drained: dict[str, float] = {}
    for _ in range(600):
        story.wait(chance.choice([0.01, 0.5, 2, 60]))
        story.gateway.handle_timer(story.now)
        for name in [name for name, until in drained.items() if until <= story.now]:
            del drained[name]
            naive.states[name] = "unused"
        name = chance.choice(story.names)
        event = chance.random()
        if naive.states[name] in ("healthy", "unhealthy") and event < 0.3:
            state = chance.choice([State.HEALTHY, State.UNHEALTHY])
            story.mark(name, state)
            naive.states[name] = str(state)
        elif naive.states[name] == "healthy" and event < 0.32:
            story.targets.deregister(name, story.now)
            naive.states[name], drained[name] = "draining", story.now + 3 * 10**9
        for _ in range(4):
            number, syn = chance.randrange(24), chance.random() < 0.5
            expected = naive.packet(number, protocols[number], syn, story.now / 10**9)
            ((verdict, got, _),) = story.send(packet(number, syn))
            assert (got or None) == expected, (verdict, number)
    counts = {name: story.flows_on(name) for name in story.names}
    assert sum(counts.values()) == story.gateway.metrics["ActiveFlowCount"]
