"""The endpoint's id is 64 bits, and none of them is special: in the engine, the log, the store and at the gateway."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from everwall.engine import describe_event
from everwall.policy.compile import load_policy
from everwall.session import state
from tests.balancer.gateways import Story
from tests.balancer.gateways import returned as returned_by
from tests.cluster import Cluster
from tests.conversations import Connection
from tests.packets import geneve, tcp, udp
from tests.regressions.appliance import Appliance, sent

pytestmark = pytest.mark.kernel

CLIENT, SERVER = "10.1.0.5", "10.2.0.9"
IDS = [
    0x0A1B2C3D_00000000,
    0x80000000_00000000,
    0xFFFFFFFF_FFFFFFFF,
    0x00000000_0A1B2C3D,
    0x00000001_00000000,
]
"""The low word 0, only the highest bit, all bits, the high word 0, one bit above the low word."""

endpoint_ids = pytest.mark.parametrize("endpoint", IDS, ids=lambda value: f"{value:016x}")


@endpoint_ids
def test_packets_of_any_endpoint_pass_and_are_shown_under_it(firewall: Appliance, endpoint: int) -> None:
    """An id whose low word is 0 was taken for no id at all, and its sessions had no endpoint in the logs."""
    assert firewall.passes(sent(geneve(tcp(CLIENT, SERVER, 40_000, 80), endpoint=endpoint)))
    (session,) = firewall.engine.sessions()
    assert session["endpoint"] == endpoint


@endpoint_ids
def test_the_log_line_of_a_session_names_its_endpoint(firewall: Appliance, endpoint: int) -> None:
    """The line is written at the end, from what was kept of the beginning."""
    for inner in Connection(CLIENT, SERVER).whole_life():
        assert firewall.passes(sent(geneve(inner, endpoint=endpoint)))
    assert firewall.cut_through_was_tried
    firewall.now += 60_000_000_000
    for _ in range(130):
        firewall.now += 20_000_000
        firewall.engine.handle_timer(firewall.now)
    ended = [row for row in firewall.engine.events() if row[state.EVENT_KIND] == state.EVENT_ENDED]
    assert [describe_event(row)["endpoint"] for row in ended] == [endpoint]


def test_endpoints_that_differ_in_one_word_only_are_two(firewall: Appliance) -> None:
    """Half an id compared is another customer's session found."""
    for endpoint in IDS:
        there, back = udp(CLIENT, SERVER, 4000, 53), udp(SERVER, CLIENT, 53, 4000)
        firewall.talks(geneve(there, endpoint=endpoint), geneve(back, endpoint=endpoint))
    for endpoint in IDS:
        assert firewall.passes(sent(geneve(udp(CLIENT, SERVER, 4000, 53), endpoint=endpoint)))
    assert firewall.cut_through_was_tried
    assert {session["endpoint"] for session in firewall.engine.sessions()} == set(IDS)


@endpoint_ids
def test_a_session_of_any_endpoint_is_found_in_the_store_by_another_node(endpoint: int) -> None:
    """The record's field is made of endpoint and tuple: the same on both nodes, another for another endpoint."""
    signed = endpoint - (1 << 64) if endpoint >> 63 else endpoint
    cluster = Cluster()
    first, second, third = cluster.node(), cluster.node(), cluster.node()
    talk = Connection(CLIENT, SERVER)
    assert {verdict.label for verdict in first.judge(*talk.handshake(), endpoint=signed)} == {"forward"}
    first.serve()
    (other,) = [each for each in IDS if each >> 32 == 0]
    assert [verdict.label for verdict in third.judge(talk.data(), endpoint=other ^ 1)] == ["non-syn-tcp"]
    assert [verdict.label for verdict in second.judge(talk.data(), endpoint=signed)] == ["forward"]
    (session,) = second.engine.sessions()
    assert (session["endpoint"], session["generation"]) == (endpoint, 1)


@endpoint_ids
def test_the_zone_of_any_endpoint_is_found(make: Callable[..., Appliance], endpoint: int, tmp_path) -> None:
    """A policy names endpoints; one whose id looks like nothing may not fall to another's rules."""
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        f"zones:\n  spoke: {{endpoints: [vpce-{endpoint:016x}]}}\n"
        "rules:\n  - {name: all, from: spoke, to: spoke, source: any, destination: any, service: any, action: allow}\n"
    )
    firewall = make(load_policy(policy).compiled, resiliency=False)
    assert firewall.passes(sent(geneve(udp(CLIENT, SERVER, 4000, 53), endpoint=endpoint)))
    assert not firewall.passes(sent(geneve(udp(CLIENT, SERVER, 4000, 53), endpoint=endpoint ^ (1 << 32))))
    assert firewall.engine.verdicts["endpoint-unmapped"] == 1


@endpoint_ids
def test_the_load_balancer_takes_returns_of_any_endpoint(endpoint: int) -> None:
    """Our load balancer's own check compares all 64 bits."""
    signed = endpoint - (1 << 64) if endpoint >> 63 else endpoint
    balancer = Story(endpoints=(signed,))
    inner = udp(CLIENT, SERVER, 4000, 53)
    name, outer = balancer.sent(inner, endpoint=signed)
    assert outer[12:20] == endpoint.to_bytes(8, "big")
    assert balancer.back(name, returned_by(inner, outer, endpoint))[1] == inner
    assert balancer.back(name, returned_by(inner, outer, endpoint ^ (1 << 32)))[1] == b""
    assert balancer.dropped() == {"invalid-gwlb-endpoint-id": 1}
