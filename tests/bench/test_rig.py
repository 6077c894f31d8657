"""The benchmark's own machinery: what it sends is right, what it counts came through, and nothing stays behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from bench.rig import frames, measures
from bench.rig.contenders import Order, Rig
from bench.rig.frames import Kind
from bench.rig.generator import Mode, Traffic
from bench.rig.network import PRIORITY, wait_for
from everwall.warm import FIREWALL, warm
from tests import needs

pytestmark = pytest.mark.lab

FLOWS = 500
LENGTH_S = 0.2
PATIENCE_S = 30.0
"""For what has to come to pass, on whatever machine."""
NODES = {"raw": "raw", "udp": "udp", "engine": "xdp", "cut": "xdp"}
CONTENDERS = ("bounce", "kernel", *NODES)


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    """Everything that the benchmark compares, with ``FLOWS`` sessions each."""
    needs.xdp()
    for name in ("clang", "nft", "ethtool", "redis-server"):
        needs.binary(name)
    needs.need(len(os.sched_getaffinity(0)) > 1, "two processors")
    warm(print, modules=FIREWALL)
    with Rig() as built:
        built.add_bounce()
        built.add_forwarding()
        for name, port in NODES.items():
            node = built.add_node(
                name, port, 4 * FLOWS, cut_through=name == "cut", with_store=name in ("engine", "cut")
            )
            assert node is not None, built.missing
        yield built


@pytest.mark.parametrize("size", [64, 512, 1400])
@pytest.mark.parametrize("kind", [k for k in Kind if k < Kind.STRAY])
def test_the_program_completes_a_template_to_the_packet_that_plain_python_builds(
    rig: Rig, kind: Kind, size: int
) -> None:
    """With right checksums: conntrack looks at them, and a packet it refuses would measure nothing."""
    route = rig.contenders["bounce"].route
    opening = kind in (Kind.SYN, Kind.SYN_ACK, Kind.ACK)
    traffic = Traffic(Mode.OPEN, opened=9_000_000, open=10, delay=0, size=size)
    if not opening:
        traffic = Traffic(flows=10, first=9_000_000, size=size)
    packet = rig.generator.prepare(route, traffic)
    # Without delay the three packets of a connection follow each other; data changes its direction each time.
    for _ in range(1 + (kind - Kind.SYN if opening else int(kind))):
        made = rig.kernel.frame("generate_geneve", packet)
    flow = 9_000_000 + (kind == Kind.SERVER_DATA)
    ends = frames.client(flow), frames.server(flow)
    if kind in (Kind.SERVER_DATA, Kind.SYN_ACK):
        ends = ends[::-1]
    wanted = frames.inner(kind, size, *ends, frames.client_port(flow))
    # Past its first 64 bytes a frame holds what it was made with, which is the same for all.
    assert made[frames.OUTER_BYTES :][:64] == wanted[:64]
    assert len(made) == frames.OUTER_BYTES + size


@pytest.mark.parametrize("name", CONTENDERS)
def test_packets_of_sessions_come_back(rig: Rig, name: str) -> None:
    contender = rig.contenders[name]
    if name != "bounce":
        assert measures.set_up(rig, contender, FLOWS) == FLOWS, "every connection can be opened"
    back = rig.generator.returned

    def enough() -> bool:
        return min(back(Kind.CLIENT_DATA), back(Kind.SERVER_DATA)) > 1000

    traffic = Traffic(flows=FLOWS)
    found = measures.watched(
        contender,
        lambda: rig.generator.circle(contender.route, traffic, PATIENCE_S, enough),
        lambda count: count.rate,
    )
    returned = found.count.returned
    assert returned[Kind.CLIENT_DATA] > 1000
    assert returned[Kind.SERVER_DATA] > 1000
    assert found.count.others < 100, (
        "what comes back has its outer addresses swapped and its source port kept"
    )
    assert found.cpu_ns > 0


@pytest.mark.parametrize("name", [name for name in CONTENDERS if name != "bounce"])
def test_what_has_no_session_does_not_come_back(rig: Rig, name: str) -> None:
    """So an ACK that is counted stands for a session: this is how new connections are counted."""
    contender = rig.contenders[name]
    strange = Traffic(flows=FLOWS, first=8_000_000, rate=20_000)
    found = rig.generator.run(contender.route, strange, LENGTH_S)
    assert found.sent.sum() > 100
    assert found.returned.sum() == 0


def test_sessions_that_the_store_acknowledged_are_as_many_as_were_opened(rig: Rig) -> None:
    contender, openings = rig.contenders["engine"], measures.Openings(5_000_000)
    contender.ask("resiliency", on=1)
    before = contender.ask("store")["written"]
    traffic = Traffic(Mode.OPEN, opened=openings.next, open=FLOWS, delay=64)
    opened = rig.generator.circle(
        contender.route, traffic, PATIENCE_S, lambda: rig.generator.returned(Kind.ACK) >= FLOWS
    )
    assert opened.returned[Kind.ACK] == FLOWS
    wait_for("all are written", lambda: contender.ask("store")["written"] - before >= FLOWS, PATIENCE_S)


def test_a_rate_is_kept_and_time_is_measured(rig: Rig) -> None:
    found = measures.latency(rig, rig.contenders["bounce"], LENGTH_S)
    assert found.count.offered == pytest.approx(measures.LATENCY_RATE, rel=0.5), "the machine may be busy"
    assert 0 < found.amount < 100_000


def test_a_flood_passes_nowhere_and_its_strays_are_asked_of_the_store(rig: Rig) -> None:
    contender = rig.contenders["cut"]
    contender.ask("resiliency", on=1)
    before = contender.ask("counters")["counters"]["lookups"]
    found = measures.flooded(rig, contender, 20_000, 20_000, LENGTH_S).count
    contender.ask("resiliency", on=0)
    assert found.sent[list(measures.FLOOD)].min() > 100, "of both kinds"
    assert found.returned[list(measures.FLOOD)].sum() == 0
    assert found.returned[list(measures.ESTABLISHED)].sum() > 100
    assert found.sent_rate(*measures.FLOOD) == pytest.approx(found.sent_rate(*measures.ESTABLISHED), rel=0.1)
    assert contender.ask("counters")["counters"]["lookups"] > before


def test_only_who_is_measured_takes_turns_with_napi(rig: Rig) -> None:
    """Nodes that stand beside it look after themselves meanwhile, and must not be in its way."""
    contender = rig.contenders["cut"]

    def with_priority(priority: int) -> set[int]:
        return {thread for thread in everything if os.sched_getparam(thread).sched_priority == priority}

    everything, napi = set(contender.threads()), set(contender.kernel_threads)
    with contender.measured():
        assert with_priority(PRIORITY) == everything
    with contender.measured(Order.ALONE):
        assert with_priority(PRIORITY + 1) == everything
    with contender.measured(Order.NAPI):
        assert with_priority(PRIORITY + 1) == napi
        assert with_priority(0) == everything - napi
    assert with_priority(PRIORITY) == napi | {contender.ask("worker")["thread"]}


def test_nothing_stays_behind() -> None:
    needs.xdp()
    before = socket.if_nameindex()
    with Rig() as built:
        built.add_bounce()
        namespace = built.network.device.path()
        assert os.path.exists(namespace)
    assert not os.path.exists(namespace)
    assert socket.if_nameindex() == before, "all devices were in namespaces"
