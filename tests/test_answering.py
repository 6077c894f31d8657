"""What policy refuses is answered as its rule says: to whom, with which numbers, in which tunnel, and how often."""

from __future__ import annotations

import random
import struct
from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, IPerror, UDPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.packet import Packet

from everwall.engine import describe_event
from everwall.limits import (
    ANSWERS_MADE_MAX,
    ANSWERS_PER_S,
    LOGGED_REFUSALS_PER_S,
    REFUSED_NS,
    SECOND_NS,
)
from everwall.policy.match import (
    ANSWER_RESET_CLIENT,
    ANSWER_RESET_SERVER,
    ANSWER_UNREACHABLE,
    ANSWER_UNREACHABLE_TCP,
    RULE_ANSWER,
    CompiledPolicy,
    allow_all,
    deny_all,
    rule_id,
)
from everwall.session import state
from everwall.session.state import make_sessions
from everwall.verdict import Verdict
from everwall.wire import meta as m
from tests import packets
from tests.cluster import Cluster, Node
from tests.conversations import Connection
from tests.naive import answers as naive
from tests.test_rematch import pass_over, policy

pytestmark = pytest.mark.kernel

FORWARD, POLICY_DENY, NON_SYN_TCP = Verdict.FORWARD, Verdict.POLICY_DENY, Verdict.NON_SYN_TCP
CLIENT, SERVER = "10.0.0.1", "10.0.1.1"
CLIENT6, SERVER6 = "2001:db8::5", "2001:db8:1::9"
FAMILIES = [(CLIENT, SERVER), (SERVER, CLIENT), (CLIENT6, SERVER6)]


def refusing(action: str, more: str = "") -> CompiledPolicy:
    return policy(f"name: refusal; action: {action}{more}")


def node_with(compiled: CompiledPolicy, **config: object) -> Node:
    return Cluster().node(compiled, **config)


def read(packet: bytes) -> Packet:
    """The packet as scapy reads it, whose checksums scapy finds right."""
    kind = IP if packet[0] >> 4 == 4 else IPv6
    seen = kind(packet)
    for layer, field in ((IP, "chksum"), (TCP, "chksum"), (ICMP, "chksum"), (ICMPv6DestUnreach, "cksum")):
        if layer in seen:
            anew = kind(packet)
            delattr(anew[layer], field)
            assert getattr(kind(bytes(anew))[layer], field) == getattr(seen[layer], field), f"{layer} {field}"
    return seen


def told(node: Node) -> list[Packet]:
    """What the node has made since it was asked last, without tunnels."""
    return [read(packet) for packet in node.engine.made()]


# To whom -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("action", ["deny", "reset-client", "reset-both"])
def test_a_refused_syn_is_reset(action: str, ends: tuple[str, str]) -> None:
    node = node_with(refusing(action))
    assert node.judge(Connection(*ends, client_start=2**32 - 1).syn()) == [POLICY_DENY]
    (reset,) = told(node)
    assert (reset.src, reset.dst) == (ends[1], ends[0])
    assert (reset[TCP].sport, reset[TCP].dport, reset[TCP].flags) == (80, 40_000, "RA")
    assert (reset[TCP].seq, reset[TCP].ack, reset[TCP].window) == (0, 0, 0), (
        "all that the SYN holds, acknowledged"
    )
    assert node.engine.counters["resets"] == 1
    (event,) = node.engine.events()
    assert event[state.EVENT_KIND] == state.EVENT_REFUSED


@pytest.mark.parametrize("action", ["drop", "reset-server"])
def test_a_refused_syn_whose_client_is_not_to_be_told_dies_in_silence(action: str) -> None:
    """Nothing of it came to the server: there is nobody to reset."""
    node = node_with(refusing(action))
    assert node.judge(Connection().syn()) == [POLICY_DENY]
    assert told(node) == []


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize(
    "refusal", ["deny", "drop; icmp-unreachable: yes", "reset-both; icmp-unreachable: yes"]
)
def test_a_refused_datagram_is_unreachable(refusal: str, ends: tuple[str, str]) -> None:
    node = node_with(refusing(refusal))
    datagram = packets.udp(*ends, 5000, 53, b"question")
    assert node.judge(datagram) == [POLICY_DENY]
    (seen,) = told(node)
    assert (seen.src, seen.dst) == (ends[1], ends[0]), "we have no address of our own in there"
    if ends[0] == CLIENT6:
        assert (seen[ICMPv6DestUnreach].type, seen[ICMPv6DestUnreach].code) == (1, 1)
        assert bytes(seen[ICMPv6DestUnreach].payload) == datagram
    else:
        assert (seen[ICMP].type, seen[ICMP].code) == (3, 13)
        assert bytes(seen[IPerror]) == datagram
        assert seen[UDPerror].dport == 53
    assert node.engine.counters["unreachables"] == 1


@pytest.mark.parametrize("action", ["drop", "reset-client", "reset-server", "reset-both"])
def test_a_refused_datagram_is_answered_by_resets_no_more_than_by_a_drop(action: str) -> None:
    node = node_with(refusing(action))
    assert node.judge(packets.udp(CLIENT, SERVER, 5000, 53)) == [POLICY_DENY]
    assert told(node) == []


def test_a_connection_that_is_dropped_with_unreachables_is_told_by_icmp() -> None:
    node = node_with(refusing("drop; icmp-unreachable: yes"))
    assert node.judge(Connection().syn()) == [POLICY_DENY]
    (seen,) = told(node)
    assert (seen[ICMP].code, seen[ICMP].type) == (13, 3)
    assert node.engine.counters["resets"] == 0


def test_a_connection_that_is_reset_is_not_told_by_icmp_as_well() -> None:
    node = node_with(refusing("reset-client; icmp-unreachable: yes"))
    node.judge(Connection().syn())
    assert [TCP in seen for seen in told(node)] == [True]


@pytest.mark.parametrize("ends", FAMILIES)
def test_a_refused_ping_is_unreachable_and_its_reply_is_nobodys(ends: tuple[str, str]) -> None:
    node = node_with(refusing("deny"), resiliency=False)
    assert node.judge(packets.icmp_echo(*ends)) == [POLICY_DENY]
    assert len(told(node)) == 1
    assert node.judge(packets.icmp_echo(*ends, reply=True)) == [Verdict.ICMP_UNSOLICITED]
    assert told(node) == []


def test_what_no_rule_speaks_of_is_not_answered() -> None:
    """Neither without a policy nor by a default rule that denies, as those who come from elsewhere expect."""
    written = policy(
        "service: tcp/1; action: allow", zones="default-rules: {intrazone-default: {action: deny}}"
    )
    for compiled in (deny_all(), policy("service: tcp/1; action: allow"), written):
        node = node_with(compiled)
        assert node.judge(Connection().syn(), packets.udp(CLIENT, SERVER, 1, 2)) == [POLICY_DENY] * 2
        assert told(node) == []


def test_a_default_rule_answers_where_it_says_so() -> None:
    rule = "default-rules: {intrazone-default: {action: reset-client, icmp-unreachable: true}}"
    node = node_with(policy("service: tcp/1; action: allow", zones=rule))
    node.judge(Connection().syn(), packets.udp(CLIENT, SERVER, 1, 2))
    assert [(TCP in seen, ICMP in seen) for seen in told(node)] == [(True, False), (False, True)]


# To whom never -----------------------------------------------------------------------------------------


def test_nothing_answers_an_answer_a_part_or_a_crowd() -> None:
    node = node_with(refusing("deny"), resiliency=False)
    long = packets.udp(CLIENT, SERVER, 1, 2, bytes(600))
    silent = [
        *packets.fragments(long, 400),
        packets.udp(CLIENT, "224.0.0.251", 5353, 5353),
        packets.udp(CLIENT, "255.255.255.255", 68, 67),
        packets.udp("0.0.0.0", SERVER, 68, 67),
        packets.udp("127.0.0.1", SERVER, 1, 2),
        packets.udp("224.0.0.1", SERVER, 1, 2),
        packets.tcp("255.255.255.255", SERVER, 1, 2, "S"),
        packets.udp(CLIENT6, "ff02::fb", 5353, 5353),
        packets.udp("::", SERVER6, 1, 2),
        packets.udp("ff02::1", SERVER6, 1, 2),
        packets.udp("::1", SERVER6, 1, 2),
        packets.tcp(CLIENT, SERVER, 1, 2, "R"),
        packets.tcp(CLIENT, SERVER, 1, 2, "RA"),
        packets.icmp_error(CLIENT, SERVER, packets.udp(SERVER, CLIENT, 1, 2)),
        packets.icmp(CLIENT, SERVER, 13, 0, bytes(16)),
        packets.icmp(CLIENT6, SERVER6, 135, 0, bytes(20)),
    ]
    for packet in silent:
        assert FORWARD not in node.judge(packet)
        assert told(node) == [], packet.hex()
    assert node.engine.verdicts["policy-deny"] >= 12, "the reason stays, answered or not"


def test_a_stray_of_a_connection_nobody_knows_stays_without_answer() -> None:
    """It may belong to a connection whose session is being looked for elsewhere: a reset would end it for good."""
    node = node_with(refusing("reset-both"))
    talk = Connection()
    assert node.judge(talk.data(), talk.data(talk.server), talk.syn_ack()) == [NON_SYN_TCP] * 3
    open_to_strays = policy("action: reset-both", zones="sessions: {tcp-reject-non-syn: no}")
    admitting = node_with(open_to_strays)
    admitting.engine.state.sessions.words[state.ADMIT_NON_SYN] = 1
    assert admitting.judge(talk.data()) == [POLICY_DENY], "policy was asked"
    assert told(node) + told(admitting) == []


# A live connection -------------------------------------------------------------------------------------


def refused_while_alive(action: str, ends: tuple[str, str] = (CLIENT, SERVER)) -> tuple[Node, Connection]:
    node = node_with(allow_all())
    talk = Connection(*ends)
    assert set(node.judge(*talk.handshake(), *talk.exchange(2))) == {FORWARD}
    node.engine.replace_policy(refusing(action))
    pass_over(node)
    node.serve()
    return node, talk


@pytest.mark.parametrize("ends", FAMILIES)
@pytest.mark.parametrize("speaks", ["client", "server"])
@pytest.mark.parametrize(
    ("action", "who"),
    [
        ("deny", ["client"]),
        ("reset-client", ["client"]),
        ("reset-server", ["server"]),
        ("reset-both", ["client", "server"]),
    ],
)
def test_the_next_packet_of_a_connection_that_a_reload_refuses_resets_it(
    action: str, who: list[str], speaks: str, ends: tuple[str, str]
) -> None:
    node, talk = refused_while_alive(action, ends)
    assert told(node) == [], "nobody is reset out of the blue"
    end = getattr(talk, speaks)
    expected = {name: getattr(talk, name).address for name in who}
    numbers = {talk.client.address: talk.server.next, talk.server.address: talk.client.next}
    assert node.judge(talk.data(end)) == [POLICY_DENY]
    resets = told(node)
    assert {reset.dst for reset in resets} == set(expected.values())
    for reset in resets:
        assert "R" in reset[TCP].flags
        assert reset[TCP].seq == numbers[reset.dst], "exactly what the receiver waits for (RFC 5961)"
    assert node.judge(talk.data(end)) == [POLICY_DENY], "and its retransmission is told again"
    assert len(told(node)) == len(who)


def test_the_log_names_the_rule_that_ended_it() -> None:
    node, _ = refused_while_alive("reset-both")
    (ended,) = [event for event in node.engine.events() if event[state.EVENT_KIND] == state.EVENT_ENDED]
    assert ended[state.EVENT_REFUSED_BY] == rule_id("refusal")


def test_a_connection_that_a_silent_rule_refuses_is_a_stray_afterwards() -> None:
    node, talk = refused_while_alive("drop")
    assert node.judge(talk.data()) == [NON_SYN_TCP]
    assert told(node) == []


def test_it_is_remembered_for_as_long_as_its_ends_may_still_speak() -> None:
    node, talk = refused_while_alive("reset-both")
    node.cluster.wait(REFUSED_NS / SECOND_NS - 1)
    assert node.judge(talk.data()) == [POLICY_DENY]
    node.cluster.wait(1.5)
    assert node.judge(talk.data()) == [NON_SYN_TCP]
    assert len(told(node)) == 2


def test_a_new_connection_on_its_ports_is_not_taken_for_it() -> None:
    node, _ = refused_while_alive("reset-both")
    node.engine.replace_policy(allow_all())
    pass_over(node)
    fresh = Connection(client_start=7_000)
    assert set(node.judge(*fresh.whole_life())) == {FORWARD}
    node.tick(60)
    node.serve()
    assert node.judge(fresh.data()) == [NON_SYN_TCP], "and is forgotten like any other"
    assert told(node) == []


def test_a_newer_connection_that_another_node_let_in_is_not_taken_for_it() -> None:
    """Policy has changed its mind, the ports were used again elsewhere, and then the flow came here."""
    node, _ = refused_while_alive("reset-both")
    node.engine.replace_policy(allow_all())
    pass_over(node)
    other, fresh = node.cluster.node(allow_all()), Connection(client_start=7_000, server_start=8_000)
    assert set(other.judge(*fresh.handshake(), *fresh.exchange(1))) == {FORWARD}
    assert set(node.judge(*fresh.exchange(2))) == {FORWARD}
    assert told(node) == []


def test_its_ends_are_told_what_todays_rule_says() -> None:
    node, talk = refused_while_alive("reset-both")
    node.engine.replace_policy(refusing("drop"))
    pass_over(node)
    assert node.judge(talk.data()) == [POLICY_DENY]
    assert told(node) == []


def test_a_closing_connection_is_left_to_close() -> None:
    node = node_with(allow_all())
    talk = Connection()
    node.judge(*talk.whole_life())
    node.engine.replace_policy(refusing("reset-both"))
    pass_over(node)
    node.serve()
    assert node.judge(talk.ack()) == [NON_SYN_TCP]
    assert told(node) == []


@pytest.mark.parametrize("speaks", ["client", "server"])
def test_a_connection_that_comes_from_another_node_and_is_refused_here_is_reset(speaks: str) -> None:
    cluster = Cluster()
    dead, alive = cluster.node(allow_all()), cluster.node(refusing("reset-both"))
    talk = Connection()
    dead.judge(*talk.handshake(), *talk.exchange(1))
    end = getattr(talk, speaks)
    numbers = {talk.client.address: talk.server.next, talk.server.address: talk.client.next}
    assert alive.judge(talk.data(end)) == [POLICY_DENY]
    assert {(reset.dst, reset[TCP].seq) for reset in told(alive)} == set(numbers.items())


def test_an_established_connection_survives_a_spoofed_syn_that_policy_has_come_to_refuse() -> None:
    """Its sender is told, which a client in the middle of a connection does not believe: the number is not its own."""
    node = node_with(allow_all())
    talk = Connection()
    node.judge(*talk.handshake())
    node.engine.replace_policy(refusing("reset-client"))
    assert node.judge(talk.segment(talk.client, "S", seq=99)) == [POLICY_DENY]
    (reset,) = told(node)
    assert (reset[TCP].seq, reset[TCP].ack, reset[TCP].flags) == (0, 100, "RA")


# In which tunnel ---------------------------------------------------------------------------------------


def test_an_answer_goes_back_in_the_tunnel_of_the_packet_it_is_about() -> None:
    node = node_with(refusing("deny"))
    options = [
        packets.endpoint_option(7),
        packets.attachment_option(8),
        packets.cookie_option(0xC00C1E),
        packets.option(0x0104, 0x42, b"somebody else's.", reserved=5),
    ]
    syn = Connection().syn()
    outer = packets.geneve(syn, options=options)
    batch = packets.batch_of([outer])
    node.engine.receive(batch, 1, node.now)
    meta = node.engine.state.sessions.made.meta[0]
    for column in (m.PEER_ADDRESS, m.PEER_PORT, m.LOCAL_ADDRESS, m.PEER_MAC, m.BARE):
        assert meta[column] == batch.meta[0, column]
    assert meta[m.FRAME] == 0, "no frame of the port's is its own"
    (made,) = node.engine.made()
    header = len(outer) - len(syn)
    assert made[:header] == outer[:header]
    assert read(made[header:])[TCP].flags == "RA"
    assert packets.unload(batch, 0) == outer, "the refused packet is as it came"


# How much ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ends", "most"), [((CLIENT, SERVER), 576), ((CLIENT6, SERVER6), 1280)])
def test_an_unreachable_quotes_no_more_than_its_family_allows(ends: tuple[str, str], most: int) -> None:
    node = node_with(refusing("deny"))
    for size in (0, 1, 499, 520, 521, 1100, 1204, 1205, 1400):
        datagram = packets.udp(*ends, 5000, 53, random.Random(size).randbytes(size))
        node.judge(datagram)
        (made,) = node.engine.made()
        read(made)
        header = 28 if most == 576 else 48
        assert len(made) == min(header + len(datagram), most)
        assert made[header:] == datagram[: most - header]


# How often ---------------------------------------------------------------------------------------------


def test_no_more_are_made_than_a_second_allows() -> None:
    node = node_with(refusing("deny"), resiliency=False)
    node.cluster.wait(5)
    syns = [Connection(sport=port).syn() for port in range(1, 65)]
    made = 0
    for _ in range(ANSWERS_PER_S // 64 + 2):
        assert set(node.receive(*syns)) == {POLICY_DENY}
        made += len(node.engine.made())
    assert made == ANSWERS_PER_S
    assert node.engine.counters["answers-held-back"] == (ANSWERS_PER_S // 64 + 2) * 64 - ANSWERS_PER_S
    node.cluster.wait(0.01)
    node.receive(*syns)
    assert len(node.engine.made()) == ANSWERS_PER_S // 100


def test_the_workers_of_a_node_share_what_a_second_allows() -> None:
    node = node_with(refusing("deny"), workers=4, resiliency=False)
    assert node.engine.state.sessions.words[state.MADE_BUDGET] == ANSWERS_PER_S // 4


def test_what_finds_no_row_is_not_made_and_counted() -> None:
    node = node_with(refusing("deny"), resiliency=False)
    for _ in range(3):
        node.receive(*(Connection(sport=port).syn() for port in range(1, 65)))
    assert len(node.engine.made()) == ANSWERS_MADE_MAX
    assert node.engine.counters["answers-held-back"] == 3 * 64 - ANSWERS_MADE_MAX


# Against the plain reading -----------------------------------------------------------------------------

_BITS = {
    naive.RESET_CLIENT: ANSWER_RESET_CLIENT,
    naive.RESET_SERVER: ANSWER_RESET_SERVER,
    naive.UNREACHABLE: ANSWER_UNREACHABLE,
    naive.UNREACHABLE_TCP: ANSWER_UNREACHABLE_TCP,
}
_ADDRESSES = [
    [
        "10.0.0.1",
        "10.0.1.1",
        "223.255.255.255",
        "224.0.0.1",
        "255.255.255.255",
        "0.1.2.3",
        "127.1.1.1",
        "1.0.0.0",
    ],
    ["2001:db8::5", "fe80::1", "ff02::1", "::", "::1", "::2", "fd00::ffff:ffff:ffff:ffff"],
]


def _draw(draw: random.Random) -> bytes:
    source, destination = draw.choices(draw.choice(_ADDRESSES), k=2)
    data = draw.randbytes(draw.choice((0, 1, 7, 100, 547, 548, 1231, 1300)))
    kind = draw.randrange(5)
    if kind <= 1:
        return packets.tcp(
            source,
            destination,
            draw.randrange(65536),
            draw.randrange(65536),
            draw.choice(("S", "SA", "A", "PA", "FA", "R", "RA", "F", "FAU")),
            draw.getrandbits(32),
            draw.getrandbits(32),
            payload=data,
            options=draw.choice((b"", bytes([1, 3, 3, 7]), bytes(40))),
        )
    if kind == 2:
        return packets.udp(source, destination, draw.randrange(65536), draw.randrange(65536), data)
    if kind == 3:
        return packets.icmp_echo(source, destination, reply=draw.random() < 0.3, payload=data)
    return packets.ip(source, destination, 47, data)


def test_what_is_made_is_what_the_plain_reading_says() -> None:
    seed = random.randrange(2**32)
    draw = random.Random(seed)
    from everwall.answering import answer
    from everwall.flow import make_key
    from everwall.wire.packet import parse

    sessions = make_sessions(64, parked_packets=8, lookups=8)
    for turn in range(600):
        packet = _draw(draw)
        batch = packets.batch_of([packet], bare=True)
        meta = batch.meta
        meta[0, m.INNER] = meta[0, m.START]
        if parse(batch.data, meta, 0) != FORWARD:
            continue
        make_key(meta, 0, 1)
        wanted = {name for name in _BITS if draw.random() < 0.5}
        from_client, known = draw.random() < 0.5, draw.random() < 0.5
        client_upper = bool(meta[0, m.DIRECTION]) == from_client
        sessions.words[state.ANSWER] = (
            sum(_BITS[name] for name in wanted)
            | (state.ANSWER_CLIENT_UPPER if client_upper else 0)
            | (state.ANSWER_KNOWN if known else 0)
        )
        sessions.words[state.MADE] = 0
        answer(sessions, batch, 0, turn * SECOND_NS)
        made = [packets.unload(sessions.made, row) for row in range(int(sessions.words[state.MADE]))]
        assert made == naive.answers(packet, wanted, from_client, known), f"seed {seed}, turn {turn}"
        for each in made:
            read(each)


def test_every_action_is_compiled_to_what_it_says() -> None:
    said = {
        "allow": 0,
        "drop": 0,
        "deny": ANSWER_RESET_CLIENT | ANSWER_UNREACHABLE,
        "reset-client": ANSWER_RESET_CLIENT,
        "reset-server": ANSWER_RESET_SERVER,
        "reset-both": ANSWER_RESET_CLIENT | ANSWER_RESET_SERVER,
        "drop; icmp-unreachable: yes": ANSWER_UNREACHABLE | ANSWER_UNREACHABLE_TCP,
        "deny; icmp-unreachable: yes": ANSWER_RESET_CLIENT | ANSWER_UNREACHABLE,
        "reset-server; icmp-unreachable: yes": ANSWER_RESET_SERVER | ANSWER_UNREACHABLE,
    }
    compiled = policy(*(f"action: {action}" for action in said))
    assert [int(row[RULE_ANSWER]) for row in compiled.rules[:-2]] == list(said.values())


# The log of beginnings ---------------------------------------------------------------------------------


def test_a_rule_that_asks_for_it_has_the_beginning_of_its_sessions_logged() -> None:
    node = node_with(policy("name: web; service: tcp/80; action: allow; log-start: yes", "action: allow"))
    talk = Connection()
    node.judge(talk.syn(), packets.udp(CLIENT, SERVER, 5000, 53))
    (begun,) = node.engine.events()
    assert begun[state.EVENT_KIND] == state.EVENT_STARTED
    node.judge(talk.syn_ack(), talk.ack(), *talk.goodbye())
    node.judge(Connection(client_start=9_000_000).syn())
    kinds = [int(event[state.EVENT_KIND]) for event in node.engine.events()]
    assert kinds == [state.EVENT_ENDED, state.EVENT_STARTED], "a connection on used ports begins as well"


@pytest.mark.parametrize(
    ("more", "logged"),
    [("", True), ("; log-end: no", False), ("; log-end: no; log-start: yes", True)],
    ids=["as it is", "no end", "beginnings only"],
)
def test_a_refused_connection_is_logged_by_the_rule_that_refuses_it(more: str, logged: bool) -> None:
    node = node_with(refusing("drop", more))
    talk = Connection(client=CLIENT, server=SERVER, sport=4_000)
    assert node.judge(talk.syn()) == [POLICY_DENY]
    assert node.sessions() == []
    events = [describe_event(event) for event in node.engine.events()]
    assert len(events) == logged
    for event in events:
        assert (event["src"], event["sport"], event["dst"]) == (CLIENT, 4_000, SERVER)
        assert (event["packets"], event["end"], event["generation"]) == (1, "policy-deny", 0)
        assert event["rule"] == event["refused_by"] == rule_id("refusal")


def test_default_rules_log_what_they_refuse_only_if_they_are_told_to() -> None:
    node = node_with(deny_all())
    node.judge(Connection().syn(), packets.udp(CLIENT, SERVER, 5000, 53))
    assert len(node.engine.events()) == 0


def test_a_flood_of_refused_connections_does_not_fill_the_log() -> None:
    node = node_with(refusing("drop"), resiliency=False)
    node.cluster.wait(5)
    syns = [Connection(sport=port).syn() for port in range(1, 65)]
    rounds = LOGGED_REFUSALS_PER_S // 64 + 2
    for _ in range(rounds):
        assert set(node.judge(*syns)) == {POLICY_DENY}
    assert len(node.engine.events()) == LOGGED_REFUSALS_PER_S
    assert node.engine.counters["refusals-unlogged"] == rounds * 64 - LOGGED_REFUSALS_PER_S
    node.cluster.wait(0.01)
    node.judge(*syns)
    assert len(node.engine.events()) == LOGGED_REFUSALS_PER_S // 100


def test_addresses_are_written_whole() -> None:
    """High halves too: an answer over IPv6 between ends that differ in every byte."""
    ends = ("2001:db8:aaaa:bbbb:cccc:dddd:eeee:1111", "fd12:3456:789a:bcde:f012:3456:789a:bcde")
    node = node_with(refusing("deny"))
    node.judge(packets.tcp(*ends, 1, 2))
    (made,) = node.engine.made()
    assert struct.unpack_from("!16s16s", made, 8) == (ip_address(ends[1]).packed, ip_address(ends[0]).packed)
