"""Stories of packets through the gateway, in the terms of a load balancer's documentation."""

from __future__ import annotations

import pytest

from everwall.balancer import flows
from everwall.balancer.targets import State
from everwall.limits import HEADROOM_BYTES
from everwall.verdict import Verdict
from everwall.wire import meta
from tests.balancer.gateways import ENDPOINT, Story, cookie_of, inner_of, returned
from tests.meanwhile import comes_and_goes
from tests.packets import batch_of, fragments, geneve, icmp_echo, icmp_error, ip, tcp, udp

pytestmark = pytest.mark.kernel

CLIENT, SERVER = "192.0.2.10", "198.51.100.20"
SYN = tcp(CLIENT, SERVER, 40_000, 443, "S")
SYN_ACK = tcp(SERVER, CLIENT, 443, 40_000, "SA")
DATA = tcp(CLIENT, SERVER, 40_000, 443, "PA", payload=b"hello")


def clients(count: int) -> list[bytes]:
    """First packets of ``count`` flows."""
    return [tcp(f"192.0.2.{n % 250}", SERVER, 10_000 + n, 443, "S") for n in range(count)]


def places(story: Story, packets: list[bytes]) -> list[str]:
    found: list[str] = []
    for at in range(0, len(packets), 64):
        found += [name for _, name, _ in story.send(*packets[at : at + 64])]
    return found


def test_packet_reaches_target_unchanged_inside_geneve():
    story = Story()
    _, outer = story.sent(DATA)
    assert inner_of(outer) == DATA
    assert outer[:8] == bytes.fromhex("0800080000000000")
    assert outer[8:20] == bytes.fromhex("01080102") + ENDPOINT.to_bytes(8, "big")
    assert outer[32:36] == bytes.fromhex("01080301")


def test_ipv6_inside_is_named_by_its_protocol_type():
    story = Story()
    _, outer = story.sent(tcp("2001:db8::1", "2001:db8::2", 1, 2, "S"))
    assert outer[2:4] == bytes.fromhex("86dd")


@pytest.mark.parametrize(
    ("there", "answer"),
    [
        (SYN, SYN_ACK),
        (udp(CLIENT, SERVER, 5000, 53), udp(SERVER, CLIENT, 53, 5000)),
        (icmp_echo(CLIENT, SERVER), icmp_echo(SERVER, CLIENT, reply=True)),
        (ip(CLIENT, SERVER, 47, b"gre"), ip(SERVER, CLIENT, 47, b"gre")),
        (tcp("2001:db8::1", "2001:db8::9", 9, 80, "S"), tcp("2001:db8::9", "2001:db8::1", 80, 9, "SA")),
        (icmp_echo("2001:db8::1", "2001:db8::9"), icmp_echo("2001:db8::9", "2001:db8::1", reply=True)),
    ],
    ids=["tcp", "udp", "icmp", "gre", "tcp6", "icmp6"],
)
def test_both_directions_meet_the_same_target_and_cookie(there, answer):
    story = Story(targets=8)
    name, outer = story.sent(there)
    other, back = story.sent(answer)
    assert (name, cookie_of(outer)) == (other, cookie_of(back))
    assert story.back(name, returned(there, outer)) == (Verdict.FORWARD, there)
    assert story.back(name, returned(answer, back)) == (Verdict.FORWARD, answer)
    assert story.dropped() == {}


def test_flow_is_told_apart_by_endpoint():
    story = Story(endpoints=(1, 2))
    _, first = story.sent(SYN, endpoint=1)
    _, second = story.sent(SYN, endpoint=2)
    assert cookie_of(first) != cookie_of(second)


def test_outer_source_port_stays_with_the_flow_and_spreads_over_flows():
    story = Story()
    ports = set()
    for number in range(50):
        pair = batch_of(
            [tcp(CLIENT, SERVER, number, 80, "S"), tcp(SERVER, CLIENT, 80, number, "SA")], True, ENDPOINT
        )
        story.gateway.from_endpoint(pair, 2, story.now)
        there, back = (int(pair.meta[i, meta.PEER_PORT]) for i in range(2))
        assert there == back >= 49_152
        ports.add(there)
    assert len(ports) > 40


def test_each_of_three_targets_gets_its_share_of_flows():
    story = Story(max_flows=10_000)
    found = places(story, clients(3000))
    for name in story.names:
        assert 0.25 <= found.count(name) / 3000 <= 0.42
        assert story.flows_on(name) == found.count(name)


# Target failover ----------------------------------------------------------------------------------


def test_rebalance_moves_only_flows_of_the_failed_target():
    story = Story(rebalance=True)
    packets = clients(300)
    before = places(story, packets)
    story.mark("fw2", State.UNHEALTHY)
    after = places(story, packets)
    assert "fw2" not in after
    assert all(now == then for then, now in zip(before, after, strict=True) if then != "fw2")
    assert story.gateway.moved == before.count("fw2") > 0
    assert {"fw1", "fw3"} == {now for then, now in zip(before, after, strict=True) if then == "fw2"}


def test_moved_flow_keeps_its_cookie_and_stays_when_the_target_recovers():
    story = Story(rebalance=True)
    first, outer = story.sent(SYN)
    story.mark(first, State.UNHEALTHY)
    second, moved = story.sent(DATA)
    assert second != first
    assert cookie_of(moved) == cookie_of(outer)
    story.mark(first, State.HEALTHY)
    assert story.sent(DATA)[0] == second


def test_return_from_the_old_target_is_refused_after_the_move():
    story = Story(rebalance=True)
    first, outer = story.sent(SYN)
    story.mark(first, State.UNHEALTHY)
    second, _ = story.sent(DATA)
    assert story.back(first, returned(DATA, outer))[0] is Verdict.INVALID_GENEVE_TUNNEL
    assert story.back(second, returned(DATA, outer))[0] is Verdict.FORWARD


def test_silent_flow_finds_its_recovered_target_again():
    story = Story(rebalance=True)
    name, _ = story.sent(SYN)
    story.mark(name, State.UNHEALTHY)
    story.mark(name, State.HEALTHY)
    assert story.sent(DATA)[0] == name


def test_no_rebalance_keeps_sending_to_the_failed_target():
    story = Story(rebalance=False)
    name, _ = story.sent(SYN)
    story.mark(name, State.UNHEALTHY)
    assert story.sent(DATA)[0] == name
    assert name not in places(story, clients(100))


def test_new_choice_is_the_same_after_a_restart():
    packets = clients(200)
    assert places(Story(seed=1), packets) == places(Story(seed=2), packets)


def test_fail_open_picks_a_target_and_keeps_it():
    story = Story(rebalance=True)
    for name in story.names:
        story.mark(name, State.UNHEALTHY)
    name, _ = story.sent(SYN)
    assert [story.sent(DATA)[0] for _ in range(3)] == [name] * 3


def test_flow_on_a_failed_target_moves_once_another_is_healthy():
    story = Story(targets=2, rebalance=True)
    name, _ = story.sent(SYN)
    other = "fw2" if name == "fw1" else "fw1"
    story.mark(other, State.UNHEALTHY)
    story.mark(name, State.UNHEALTHY)
    assert story.sent(DATA)[0] == name, "nowhere better to go"
    story.mark(other, State.HEALTHY)
    assert story.sent(DATA)[0] == other


def test_no_target_at_all_is_named():
    assert Story(targets=0).refused(SYN) is Verdict.NO_TARGET


# Deregistration -------------------------------------------------------------------------------------


def drained(rebalance: bool) -> tuple[Story, str]:
    story = Story(rebalance=rebalance, deregistration_delay=60 * 10**9)
    name, _ = story.sent(SYN)
    story.targets.deregister(name, story.now)
    return story, name


def test_draining_target_keeps_its_flows_and_gets_no_new_ones():
    story, name = drained(rebalance=True)
    assert name not in places(story, clients(100))
    story.wait(59)
    story.gateway.handle_timer(story.now)
    assert story.sent(DATA)[0] == name


def test_flows_move_at_the_end_of_the_deregistration_delay():
    story, name = drained(rebalance=True)
    assert story.gateway.next_timer() == story.now + 60 * 10**9
    story.wait(60)
    story.gateway.handle_timer(story.now)
    assert story.gateway.next_timer() is None
    assert story.sent(DATA)[0] != name


def test_no_rebalance_leaves_flows_on_a_deregistered_target():
    story, name = drained(rebalance=False)
    story.wait(60)
    story.gateway.handle_timer(story.now)
    assert story.targets[name].state is State.UNUSED
    assert story.sent(DATA)[0] == name


def test_draining_target_that_fails_loses_its_flows_at_once():
    story, name = drained(rebalance=True)
    story.mark(name, State.UNHEALTHY)
    assert story.targets[name].state is State.DRAINING
    assert story.sent(DATA)[0] != name


# Returns ----------------------------------------------------------------------------------------------


def test_return_from_another_target_is_an_invalid_tunnel():
    story = Story()
    name, outer = story.sent(SYN)
    stranger = next(other for other in story.names if other != name)
    assert story.back(stranger, returned(SYN, outer))[0] is Verdict.INVALID_GENEVE_TUNNEL
    assert story.gateway.metrics["PacketsDroppedCount_InvalidGeneveTunnel"] == 1


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"\x08\x00\x08\x00",
        geneve(SYN, endpoint=ENDPOINT, version=1),
        geneve(SYN[:19], endpoint=ENDPOINT),
        geneve(SYN, endpoint=ENDPOINT, control=True),
    ],
    ids=["empty", "cut", "version", "inner-cut", "control"],
)
def test_malformed_return_is_an_invalid_tunnel(broken):
    story = Story()
    name, _ = story.sent(SYN)
    assert story.back(name, broken)[0] is Verdict.INVALID_GENEVE_TUNNEL


def test_return_without_endpoint_option_is_an_invalid_endpoint():
    story = Story()
    name, _ = story.sent(SYN)
    assert story.back(name, geneve(SYN, options=[]))[0] is Verdict.INVALID_GWLB_ENDPOINT_ID
    assert story.gateway.metrics["PacketsDroppedCount_InvalidGwlbEndpointId"] == 1


@pytest.mark.parametrize("claimed", [2, 99], ids=["another of ours", "nobody's"])
def test_return_with_another_endpoint_is_an_invalid_endpoint(claimed):
    story = Story(endpoints=(1, 2))
    name, outer = story.sent(SYN, endpoint=1)
    assert story.back(name, returned(SYN, outer, claimed))[0] is Verdict.INVALID_GWLB_ENDPOINT_ID


def test_return_with_wrong_or_missing_cookie_is_an_invalid_cookie():
    story = Story()
    name, outer = story.sent(SYN)
    wrong = geneve(SYN, endpoint=ENDPOINT, cookie=cookie_of(outer) ^ 1)
    assert story.back(name, wrong)[0] is Verdict.INVALID_GWLB_FLOW_COOKIE
    missing = geneve(SYN, endpoint=ENDPOINT, cookie=None)
    assert story.back(name, missing)[0] is Verdict.INVALID_GWLB_FLOW_COOKIE
    assert story.gateway.metrics["PacketsDroppedCount_InvalidGwlbFlowCookie"] == 2


def test_return_with_another_inner_tuple_is_an_invalid_cookie():
    story = Story()
    name, outer = story.sent(SYN)
    translated = tcp("203.0.113.1", SERVER, 40_000, 443, "S")
    assert story.back(name, returned(translated, outer))[0] is Verdict.INVALID_GWLB_FLOW_COOKIE


# Life of a flow -----------------------------------------------------------------------------------------


def close(story: Story, name: str, outer: bytes) -> None:
    for segment in (tcp(CLIENT, SERVER, 40_000, 443, "FA"), tcp(SERVER, CLIENT, 443, 40_000, "FA")):
        story.sent(segment)
        assert story.back(name, returned(segment, outer))[0] is Verdict.FORWARD


def test_new_syn_after_the_end_gets_a_new_cookie():
    story = Story()
    name, outer = story.sent(SYN)
    close(story, name, outer)
    assert cookie_of(story.sent(DATA)[1]) == cookie_of(outer), "a late segment is still of the old one"
    _, again = story.sent(SYN)
    assert cookie_of(again) != cookie_of(outer)
    assert story.back(name, returned(SYN, outer))[0] is Verdict.INVALID_GWLB_FLOW_COOKIE


def test_repeated_syn_of_an_open_connection_keeps_the_cookie():
    story = Story()
    _, outer = story.sent(SYN)
    assert cookie_of(story.sent(SYN)[1]) == cookie_of(outer)


def test_reset_that_no_firewall_let_through_ends_nothing():
    story = Story()
    name, outer = story.sent(SYN)
    reset = tcp(SERVER, CLIENT, 443, 40_000, "RA")
    story.sent(reset)
    assert cookie_of(story.sent(SYN)[1]) == cookie_of(outer)
    assert story.back(name, returned(reset, outer))[0] is Verdict.FORWARD
    assert cookie_of(story.sent(SYN)[1]) != cookie_of(outer)


def test_tcp_data_after_the_idle_time_out_is_dropped_and_a_syn_begins_anew():
    story = Story()
    story.wait(400)
    _, outer = story.sent(SYN)
    story.wait(350)
    assert cookie_of(story.sent(DATA)[1]) == cookie_of(outer)
    story.wait(350.1)
    assert story.refused(DATA) is Verdict.FLOW_EXPIRED
    assert cookie_of(story.sent(SYN)[1]) != cookie_of(outer)


def test_udp_after_the_idle_time_out_is_a_new_flow():
    story = Story()
    packet = udp(CLIENT, SERVER, 1, 2)
    _, outer = story.sent(packet)
    story.wait(120.1)
    _, again = story.sent(packet)
    assert cookie_of(again) != cookie_of(outer)


def test_restarted_gateway_takes_connections_older_than_itself():
    story = Story()
    story.wait(349)
    story.sent(DATA)
    story.wait(2)
    assert story.refused(tcp(CLIENT, SERVER, 40_001, 443, "A")) is Verdict.FLOW_EXPIRED


def test_return_after_the_idle_time_out_is_refused():
    story = Story()
    name, outer = story.sent(udp(CLIENT, SERVER, 1, 2))
    story.wait(121)
    verdict, _ = story.back(name, returned(udp(CLIENT, SERVER, 1, 2), outer))
    assert verdict is Verdict.INVALID_GWLB_FLOW_COOKIE


def test_idle_flows_are_aged_out():
    story = Story()
    places(story, clients(100))
    assert story.gateway.metrics["ActiveFlowCount"] == 100
    story.wait(351)
    for _ in range(70):
        story.gateway.handle_timer(story.now)
        story.wait(1 / 64)
    assert story.gateway.metrics["ActiveFlowCount"] == 0
    assert sum(story.flows_on(name) for name in story.names) == 0


def test_full_table_is_named_and_expired_flows_make_room():
    story = Story(max_flows=8)
    verdicts = [verdict for verdict, _, _ in story.send(*clients(60))]
    assert verdicts.count(Verdict.FORWARD) == 16
    assert verdicts.count(Verdict.FLOW_TABLE_FULL) == 44
    story.wait(351)
    assert all(verdict is Verdict.FORWARD for verdict, _, _ in story.send(*clients(60)[-8:]))


def test_flows_are_shown_while_others_come_and_go():
    table = Story(max_flows=100_000).gateway.tables.flows
    with comes_and_goes(table.tags):
        for _ in range(1000):
            assert len(flows.snapshot(table, 10)) <= 10


# Fragments, ICMP, bad packets ---------------------------------------------------------------------------


@pytest.mark.parametrize(("here", "there"), [(CLIENT, SERVER), ("2001:db8::1", "2001:db8::2")])
def test_fragments_follow_their_first_there_and_back(here, there):
    story = Story(targets=8)
    parts = fragments(udp(here, there, 7, 9, b"x" * 1200), 512)
    sent = [story.sent(part) for part in parts]
    assert len({(name, cookie_of(outer)) for name, outer in sent}) == 1
    for part, (name, outer) in zip(parts, sent, strict=True):
        assert story.back(name, returned(part, outer)) == (Verdict.FORWARD, part)


def test_later_fragment_without_its_first_is_named():
    later = fragments(udp(CLIENT, SERVER, 7, 9, b"x" * 1200), 512)[1]
    assert Story().refused(later) is Verdict.FRAGMENT_UNMATCHED


def test_later_fragment_after_its_flow_is_gone_is_named():
    story = Story()
    first, later, _ = fragments(udp(CLIENT, SERVER, 7, 9, b"x" * 1200), 512)
    story.sent(first)
    story.wait(31)
    assert story.refused(later) is Verdict.FRAGMENT_UNMATCHED


def test_icmp_error_goes_to_the_target_of_the_flow_it_quotes():
    story = Story(targets=8)
    name, outer = story.sent(SYN)
    error = icmp_error("203.0.113.7", CLIENT, SYN)
    other, back = story.sent(error)
    assert (other, cookie_of(back)) == (name, cookie_of(outer))
    assert story.back(name, returned(error, back)) == (Verdict.FORWARD, error)


def test_icmp_error_about_an_unknown_flow_is_dropped():
    assert Story().refused(icmp_error("203.0.113.7", CLIENT, SYN)) is Verdict.ICMP_ERROR_UNMATCHED


def test_broken_inner_packets_are_dropped_by_name():
    story = Story()
    assert story.refused(SYN[:19]) is Verdict.IP_TRUNCATED
    assert story.refused(tcp(CLIENT, SERVER, 1, 2, "SF")) is Verdict.TCP_FLAGS
    assert story.dropped() == {"ip-truncated": 1, "tcp-flags": 1}


def test_bytes_behind_the_inner_packet_are_not_carried():
    story = Story()
    assert inner_of(story.sent(SYN + b"padding")[1]) == SYN


def test_packet_without_room_for_the_header_is_refused():
    story = Story()
    batch = batch_of([SYN], bare=True, endpoint=ENDPOINT)
    batch.data[0, : len(SYN)] = batch.data[0, HEADROOM_BYTES : HEADROOM_BYTES + len(SYN)]
    batch.meta[0, meta.START], batch.meta[0, meta.END] = 0, len(SYN)
    story.gateway.from_endpoint(batch, 1, story.now)
    assert batch.meta[0, meta.VERDICT] == Verdict.OVERSIZE
