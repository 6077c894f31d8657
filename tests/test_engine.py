"""A node's engine from outside: what it lets pass, what it takes over, and that nothing gets lost in counting."""

from __future__ import annotations

import random
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path

import numpy as np
import pytest

from everwall.engine import EngineConfig, describe_sessions, make_state
from everwall.limits import MS_NS, REFRESH_PASSES
from everwall.policy.compile import load_policy
from everwall.policy.match import CompiledPolicy, allow_all, deny_all
from everwall.session import image, state, tcp
from everwall.verdict import Verdict, is_drop
from everwall.wire import meta as m
from tests import packets
from tests.cluster import START_S, Cluster, Node
from tests.conversations import Connection
from tests.meanwhile import comes_and_goes

pytestmark = pytest.mark.kernel

FORWARD, PARK = Verdict.FORWARD, Verdict.PARK
CLIENT, SERVER = "10.0.0.1", "10.0.1.1"
CLIENT6, SERVER6 = "2001:db8::1", "2001:db8::2"
ANY = "source: [any], destination: [any]"


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def policy(tmp_path: Path) -> Callable[..., CompiledPolicy]:
    """Compiles a policy of flow-style rules, for example ``service: [udp/53], action: allow``."""

    def compiled(*rules: str, head: str = "", source: str = ANY) -> CompiledPolicy:
        path = tmp_path / "policy.yaml"
        lines = [f"  - {{name: rule-{k}, {source}, {rule}}}" for k, rule in enumerate(rules)]
        path.write_text(head + ("rules:\n" + "\n".join(lines) if lines else "rules: []") + "\n")
        return load_policy(path).compiled

    return compiled


def counters(node: Node, *labels: str) -> dict[str, int]:
    return {label: node.engine.counters[label] for label in labels}


# Takeover: the whole point -----------------------------------------------------------------------------


@pytest.mark.parametrize("addresses", [(CLIENT, SERVER), (SERVER, CLIENT), (CLIENT6, SERVER6)])
@pytest.mark.parametrize("first_from", ["client", "server"])
def test_a_tcp_connection_goes_on_at_another_node(
    cluster: Cluster, addresses: tuple[str, str], first_from: str
) -> None:
    dead, alive = cluster.node(), cluster.node()
    connection = Connection(*addresses)
    dead.judge(*connection.handshake(), *connection.exchange(3))
    assert alive.judge(connection.data(getattr(connection, first_from))) == [FORWARD]
    assert set(alive.judge(*connection.exchange(2), *connection.goodbye())) == {FORWARD}
    session = alive.only_session()
    assert (session["src"], session["dst"], session["sport"]) == (*addresses, 40_000)
    assert (session["state"], session["generation"]) == ("time-wait", 1)
    assert counters(alive, "lookups", "lookup-hits", "sessions-restored", "sessions-created") == {
        "lookups": 1,
        "lookup-hits": 1,
        "sessions-restored": 1,
        "sessions-created": 0,
    }


@pytest.mark.parametrize("fin_from", ["client", "server"])
def test_a_closing_connection_is_closed_at_another_node(cluster: Cluster, fin_from: str) -> None:
    dead, alive = cluster.node(), cluster.node()
    connection = Connection()
    end = getattr(connection, fin_from)
    dead.judge(*connection.handshake(), connection.fin(end))
    assert alive.judge(connection.data(connection.other(end)), connection.fin(connection.other(end))) == [
        FORWARD,
        FORWARD,
    ]
    assert alive.only_session()["state"] == "time-wait"


def test_without_the_store_the_same_packets_are_strays(cluster: Cluster) -> None:
    # What the takeover spares: nobody knows the connection, and its middle is refused.
    dead, alive = cluster.node(resiliency=False), cluster.node(resiliency=False)
    connection = Connection()
    dead.judge(*connection.handshake())
    assert alive.judge(*connection.exchange(2)) == [Verdict.NON_SYN_TCP] * 4


def test_a_connection_may_move_again_and_again(cluster: Cluster) -> None:
    nodes = [cluster.node() for _ in range(4)]
    connection = Connection()
    nodes[0].judge(*connection.handshake())
    for turn in range(1, 9):
        cluster.wait(30)
        node = nodes[turn % 4]
        node.forget_everything()
        assert set(node.judge(*connection.exchange(1))) == {FORWARD}
        assert node.only_session()["generation"] == turn
    assert len(cluster.records()) == 1


def test_totals_and_start_come_along_and_say_that_they_are_partial(cluster: Cluster) -> None:
    dead, alive = cluster.node(), cluster.node()
    connection = Connection()
    dead.judge(*connection.handshake(), *connection.exchange(1))
    dead.engine.offer_all(dead.now)
    dead.serve()
    cluster.wait(100)
    alive.judge(connection.data())
    session = alive.only_session()
    assert session["start_ms"] == START_S * 1000
    assert (session["packets"], session["bytes"]) == (6, 3 * 40 + 140 + 340 + 140)
    alive.engine.offer_all(alive.now)
    (offered,) = alive.engine.outbox()
    assert offered[image.FLAGS] & image.PARTIAL


def test_udp_that_policy_allows_goes_at_once_and_adopts_its_past(cluster: Cluster) -> None:
    dead, alive = cluster.node(), cluster.node()
    ask, answer = packets.udp(CLIENT, SERVER, 5000, 53), packets.udp(SERVER, CLIENT, 53, 5000)
    dead.judge(ask, answer)
    assert alive.receive(answer) == [FORWARD]  # nobody waits for the store
    assert alive.only_session()["src"] == SERVER  # for all this node knows
    alive.serve()
    session = alive.only_session()
    assert (session["src"], session["sport"], session["generation"]) == (CLIENT, 5000, 1)
    assert counters(alive, "sessions-adopted", "sessions-restored") == {
        "sessions-adopted": 1,
        "sessions-restored": 0,
    }


def test_udp_that_policy_would_not_open_asks_first(
    cluster: Cluster, policy: Callable[..., CompiledPolicy]
) -> None:
    rules = policy("service: [udp/53], action: allow")
    dead, alive = cluster.node(rules), cluster.node(rules)
    ask, answer = packets.udp(CLIENT, SERVER, 5000, 53), packets.udp(SERVER, CLIENT, 53, 5000)
    dead.judge(ask, answer)
    assert alive.receive(answer) == [PARK]
    alive.serve()
    assert alive.released == [answer]
    assert alive.only_session()["src"] == CLIENT
    stranger = packets.udp(SERVER, "10.0.0.9", 53, 5000)
    assert alive.judge(stranger) == [Verdict.POLICY_DENY]


def test_what_policy_allows_is_not_refused_for_having_waited(
    cluster: Cluster, policy: Callable[..., CompiledPolicy]
) -> None:
    # The answer comes first and asks; the question finds the look-up under way and waits with it.
    node = cluster.node(policy("service: [udp/53], action: allow"))
    ask, answer = packets.udp(CLIENT, SERVER, 5000, 53), packets.udp(SERVER, CLIENT, 53, 5000)
    for status in (image.MISSING, image.FAILED, image.REFUSED, None):
        node.released.clear()
        assert node.receive(answer, ask, answer) == [PARK] * 3
        if status is None:
            node.engine.outbox()
            node.tick(0.05)
        else:
            node.reply(node.engine.outbox(), status)
        assert node.released == [ask, answer], status
        assert node.only_session()["src"] == CLIENT
        node.tick(31)
        node.engine.outbox()


@pytest.mark.parametrize("ends", [(CLIENT, SERVER), (CLIENT6, SERVER6)])
def test_an_echo_answer_finds_its_question_in_the_store(cluster: Cluster, ends: tuple[str, str]) -> None:
    dead, alive = cluster.node(), cluster.node()
    dead.judge(packets.icmp_echo(*ends, 7), packets.icmp_echo(*reversed(ends), 7, reply=True))
    assert alive.judge(packets.icmp_echo(*reversed(ends), 7, reply=True)) == [FORWARD]
    assert alive.judge(packets.icmp_echo(*reversed(ends), 8, reply=True)) == [Verdict.ICMP_UNSOLICITED]


@pytest.mark.parametrize("ends", [(CLIENT, SERVER), (CLIENT6, SERVER6)])
def test_an_icmp_error_finds_its_flow_in_the_store_but_does_not_take_it(
    cluster: Cluster, ends: tuple[str, str]
) -> None:
    dead, alive = cluster.node(), cluster.node()
    connection = Connection(*ends)
    dead.judge(*connection.handshake())
    segment = connection.data()
    error = packets.icmp_error(ends[1], ends[0], segment)
    assert alive.judge(error) == [FORWARD]
    assert alive.sessions() == []
    assert dead.judge(segment, connection.ack(connection.server)) == [FORWARD] * 2
    unknown = packets.icmp_error(ends[1], ends[0], Connection(*ends, sport=9).syn())
    assert alive.judge(unknown) == [Verdict.ICMP_ERROR_UNMATCHED]


def test_an_icmp_error_that_waits_with_segments_does_not_hinder_the_takeover(cluster: Cluster) -> None:
    dead, alive = cluster.node(), cluster.node()
    connection = Connection()
    dead.judge(*connection.handshake())
    segment = connection.data()
    error = packets.icmp_error(SERVER, CLIENT, segment)
    assert alive.receive(error, segment) == [PARK] * 2
    alive.serve()
    assert alive.released == [error, segment]
    assert alive.only_session()["packets"] == 3  # two written with the record, and the segment


def test_a_datagram_in_fragments_is_restored_by_its_first(cluster: Cluster) -> None:
    dead, alive = cluster.node(), cluster.node(deny_all())
    ask, answer = packets.udp(CLIENT, SERVER, 5000, 53), packets.udp(SERVER, CLIENT, 53, 5000, b"x" * 3000)
    dead.judge(ask, packets.udp(SERVER, CLIENT, 53, 5000))
    alive.engine.replace_policy(allow_all())
    parts = packets.fragments(answer, 1480)
    assert alive.judge(parts[1]) == [Verdict.FRAGMENT_UNMATCHED]  # no ports, no question to ask
    assert alive.judge(*parts) == [FORWARD] * 3


def test_endpoints_keep_equal_flows_apart_in_the_store(cluster: Cluster) -> None:
    dead, alive = cluster.node(), cluster.node()
    connection = Connection()
    dead.judge(*connection.handshake(), endpoint=1)
    assert alive.judge(connection.data(), endpoint=2) == [Verdict.NON_SYN_TCP]
    assert alive.judge(connection.data(), endpoint=1) == [FORWARD]


# Nothing passes that policy would not pass ------------------------------------------------------------------


def test_a_stored_session_that_todays_policy_forbids_stays_dead(
    cluster: Cluster, policy: Callable[..., CompiledPolicy]
) -> None:
    dead, alive = cluster.node(), cluster.node(policy("service: [tcp/443], action: allow"))
    connection = Connection(dport=80)
    dead.judge(*connection.handshake())
    assert alive.judge(connection.data()) == [Verdict.POLICY_DENY]
    assert alive.judge(connection.data(connection.server)) == [Verdict.POLICY_DENY]
    assert alive.sessions() == []
    assert counters(alive, "restore-denied") == {"restore-denied": 2}


def test_policy_is_asked_in_the_direction_the_session_was_opened(
    cluster: Cluster, policy: Callable[..., CompiledPolicy]
) -> None:
    outward = policy("service: [any], action: allow", source=f"source: [{CLIENT}], destination: [{SERVER}]")
    dead, alive = cluster.node(outward), cluster.node(outward)
    connection = Connection()
    dead.judge(*connection.handshake())
    assert alive.judge(connection.data(connection.server)) == [FORWARD]


def test_an_adopted_flow_has_the_rule_of_its_true_direction(
    cluster: Cluster, policy: Callable[..., CompiledPolicy]
) -> None:
    rules = policy("service: [udp/53], action: allow", "service: [any], action: allow")
    dead, alive = cluster.node(rules), cluster.node(rules)
    ask, answer = packets.udp(CLIENT, SERVER, 5000, 53), packets.udp(SERVER, CLIENT, 53, 5000)
    dead.judge(ask, answer)
    alive.judge(answer)  # to port 5000 by itself: the second rule
    assert alive.only_session()["rule"] == dead.only_session()["rule"]


def test_a_past_that_policy_forbids_is_not_adopted(
    cluster: Cluster, policy: Callable[..., CompiledPolicy]
) -> None:
    dead = cluster.node()
    alive = cluster.node(policy("service: [udp/53], action: deny", "service: [any], action: allow"))
    ask, answer = packets.udp(CLIENT, SERVER, 5000, 53), packets.udp(SERVER, CLIENT, 53, 5000)
    dead.judge(ask, answer)
    alive.judge(answer)
    session = alive.only_session()
    assert (session["src"], session["generation"]) == (SERVER, 0)  # a flow of its own, as any new one
    assert counters(alive, "restore-denied", "sessions-adopted") == {
        "restore-denied": 1,
        "sessions-adopted": 0,
    }


def forge(cluster: Cluster, change: Callable[[bytearray], None]) -> None:
    for fields in cluster.store.keys.values():
        if isinstance(fields, dict):
            for field, value in fields.items():
                altered = bytearray(value)
                change(altered)
                fields[field] = bytes(altered)


@pytest.mark.parametrize("byte", [0, 1, 12, 28, 29, 43, 51])
def test_an_altered_record_opens_nothing(cluster: Cluster, byte: int) -> None:
    dead, alive = cluster.node(), cluster.node()
    connection = Connection()
    dead.judge(*connection.handshake())

    def flip(value: bytearray) -> None:
        value[byte] ^= 0x10

    forge(cluster, flip)
    assert alive.judge(connection.data()) == [Verdict.RESTORE_REFUSED]
    assert alive.sessions() == []
    assert counters(alive, "records-refused") == {"records-refused": 1}


def test_a_record_of_another_flow_opens_nothing(cluster: Cluster) -> None:
    dead, alive = cluster.node(), cluster.node()
    one, other = Connection(sport=1), Connection(sport=2)
    dead.judge(*one.handshake())
    (value,) = cluster.records().values()
    dead.judge(*other.handshake())
    for fields in cluster.store.keys.values():
        if isinstance(fields, dict):
            fields.update(dict.fromkeys(fields, value))
    assert alive.judge(other.data()) == [Verdict.RESTORE_REFUSED]


def test_a_record_under_another_secret_is_not_even_found(cluster: Cluster) -> None:
    stranger, alive = cluster.node(secret=b"another secret, of 32 bytes too."), cluster.node()
    connection = Connection()
    stranger.judge(*connection.handshake())
    assert alive.judge(connection.data()) == [Verdict.NON_SYN_TCP]


def test_a_record_past_its_expiry_opens_nothing(cluster: Cluster) -> None:
    dead, alive = cluster.node(), cluster.node()
    connection = Connection()
    dead.judge(*connection.handshake())
    cluster.wait(3600 + 120 + 1)
    assert alive.judge(connection.data()) == [Verdict.NON_SYN_TCP]


# A store that fails -------------------------------------------------------------------------------------


def test_a_silent_store_ends_the_wait_by_name(cluster: Cluster) -> None:
    node = cluster.node()
    connection = Connection()
    connection.handshake()
    assert node.receive(connection.data()) == [PARK]
    node.tick(0.05)
    assert node.engine.verdicts["lookup-timeout"] == 1


def test_a_store_that_cannot_be_asked_is_named(cluster: Cluster) -> None:
    node = cluster.node()
    node.receive(packets.tcp(CLIENT, SERVER, 1, 2, "A"))
    node.reply(node.engine.outbox(), image.FAILED)
    assert node.engine.verdicts["store-unavailable"] == 1


def test_live_traffic_does_not_notice_a_dead_store(cluster: Cluster) -> None:
    node = cluster.node(ring_rows=8)  # nobody ever empties the queue
    for sport in range(20):
        connection = Connection(sport=sport)
        verdicts = node.receive(*connection.handshake(), *connection.exchange(2), *connection.goodbye())
        assert set(verdicts) == {FORWARD}
    assert node.receive(packets.udp(CLIENT, SERVER, 5000, 53)) == [FORWARD]


def test_an_old_owner_gives_up_silently_when_it_loses(cluster: Cluster) -> None:
    old, new = cluster.node(), cluster.node()
    connection = Connection()
    old.judge(*connection.handshake())
    new.judge(connection.ack())
    cluster.wait(1300)
    old.receive(connection.ack())  # cut off: it still hears the flow, and refreshes it
    old.tick_through(REFRESH_PASSES)
    old.serve()
    assert old.sessions() == []
    assert old.ends() == []
    assert counters(old, "sessions-demoted", "sessions") == {"sessions-demoted": 1, "sessions": 0}
    assert new.judge(*connection.exchange(1)) == [FORWARD] * 2


def test_a_stale_defeat_does_not_end_a_newer_session(cluster: Cluster) -> None:
    node = cluster.node()
    connection = Connection()
    node.receive(*connection.handshake())
    rows = node.engine.outbox()
    cluster.wait(1)
    again = Connection(client_start=9)
    node.receive(connection.rst(), *again.handshake())
    node.reply(rows, image.LOST)  # about the connection before
    assert node.only_session()["state"] == "established"


def test_an_old_owner_cannot_delete_what_the_new_one_has(cluster: Cluster) -> None:
    old, new = cluster.node(), cluster.node()
    connection = Connection()
    old.judge(*connection.handshake())
    new.judge(connection.ack())
    old.tick(3601)
    old.serve()
    assert old.ends() == ["aged-out"]
    assert len(cluster.records()) == 1


# Limits ---------------------------------------------------------------------------------------------------


def test_max_sessions_is_a_limit_for_new_and_restored_ones(cluster: Cluster) -> None:
    dead, alive = cluster.node(), cluster.node(max_sessions=3)
    saved = Connection(sport=99)
    dead.judge(*saved.handshake())
    assert alive.receive(*(Connection(sport=sport).syn() for sport in range(4))) == [FORWARD] * 3 + [
        Verdict.SESSION_LIMIT
    ]
    assert alive.judge(saved.data()) == [Verdict.SESSION_LIMIT]
    alive.tick(5)  # the embryonic ones are gone
    cluster.wait(1)
    assert alive.judge(saved.data()) == [FORWARD]


def test_full_sets_are_counted_as_a_fault(cluster: Cluster) -> None:
    node = cluster.node(max_sessions=64, resiliency=False)
    node.engine.state.sessions.words[state.MAX_SESSIONS] = 1 << 20  # no limit but the table itself
    verdicts = node.receive(*(packets.udp(CLIENT, SERVER, sport, 53) for sport in range(400)))
    assert set(verdicts) == {FORWARD, Verdict.TABLE_FULL}
    assert verdicts.count(FORWARD) == len(node.sessions()) > 64


# GENEVE -----------------------------------------------------------------------------------------------------


def test_geneve_is_believed_from_known_sources_only(cluster: Cluster) -> None:
    sources = (ip_network("10.9.0.0/30"), ip_network("192.0.2.7/32"))
    node = cluster.node(geneve_sources=sources, resiliency=False)
    wrapped = packets.geneve(packets.udp(CLIENT, SERVER, 5000, 53))

    def verdict_from(peer: str) -> Verdict:
        batch = packets.make_batch(1)
        packets.load(batch, 0, wrapped, peer=(peer, 40_000))
        node.engine.receive(batch, 1, node.now)
        return Verdict(int(batch.meta[0, m.VERDICT]))

    assert [verdict_from(peer) for peer in ("10.9.0.0", "10.9.0.3", "192.0.2.7")] == [FORWARD] * 3
    assert {verdict_from(peer) for peer in ("10.8.255.255", "10.9.0.4", "192.0.2.8", "255.255.255.255")} == {
        Verdict.GENEVE_SOURCE
    }


def test_geneve_is_refused_where_inspection_is_not_enabled(cluster: Cluster) -> None:
    node = cluster.node(inspect=False, resiliency=False)
    inner = packets.udp(CLIENT, SERVER, 5000, 53)
    assert node.receive(packets.geneve(inner), bare=False) == [Verdict.GENEVE_REFUSED]
    assert node.receive(inner) == [FORWARD]


def test_an_endpoint_without_a_zone_is_refused_once_others_have_one(
    cluster: Cluster, policy: Callable[..., CompiledPolicy]
) -> None:
    mapped = policy("service: [any], action: allow", head="zones:\n  inside: {endpoints: [0x11]}\n")
    node = cluster.node(mapped)
    assert node.receive(packets.udp(CLIENT, SERVER, 5000, 53), endpoint=0x11) == [FORWARD]
    assert node.receive(packets.udp(CLIENT, SERVER, 5000, 53), endpoint=0x12) == [Verdict.ENDPOINT_UNMAPPED]
    dead = cluster.node()
    connection = Connection()
    dead.judge(*connection.handshake(), endpoint=0x12)
    assert node.judge(connection.data(), endpoint=0x12) == [Verdict.ENDPOINT_UNMAPPED]


def test_no_policy_denies_everything(cluster: Cluster) -> None:
    node = cluster.node(deny_all(), resiliency=False)
    assert (
        node.receive(Connection().syn(), packets.udp(CLIENT, SERVER, 1, 2), packets.icmp_echo(CLIENT, SERVER))
        == [Verdict.POLICY_DENY] * 3
    )


def test_a_packet_that_its_port_refused_is_only_counted(cluster: Cluster) -> None:
    node = cluster.node(resiliency=False)
    batch = packets.batch_of([packets.udp(CLIENT, SERVER, 1, 2)], bare=True)
    batch.meta[0, m.VERDICT] = Verdict.OVERSIZE
    node.engine.receive(batch, 1, node.now)
    assert node.engine.verdicts == {"oversize": 1}
    assert node.sessions() == []


# The log and the counters --------------------------------------------------------------------------------


def test_every_session_of_ones_own_ends_with_one_event(cluster: Cluster) -> None:
    node = cluster.node()
    connection = Connection()
    node.judge(*connection.whole_life(2), packets.udp(CLIENT, SERVER, 5000, 53))
    node.tick(31)
    events = node.engine.events()
    assert sorted(int(event[image.PACKETS]) for event in events) == [1, 10]
    assert {tcp.END_NAMES[int(event[state.EVENT_REASON])] for event in events} == {"tcp-fin", "aged-out"}
    assert node.ends() == []


def test_live_sessions_are_listed_client_first(cluster: Cluster) -> None:
    node = cluster.node(resiliency=False)
    node.receive(*Connection(SERVER, CLIENT, 1, 2).handshake(), endpoint=2**64 - 1 - 2**64)
    session = node.only_session()
    assert (session["src"], session["sport"], session["dst"], session["dport"]) == (SERVER, 1, CLIENT, 2)
    assert session["endpoint"] == 2**64 - 1
    assert (session["proto"], session["packets"], session["bytes"]) == (6, 3, 120)


def test_sessions_are_listed_while_others_come_and_go() -> None:
    sessions = make_state(EngineConfig(max_sessions=100_000, resiliency=False), allow_all()).sessions
    with comes_and_goes(sessions.table.tags):
        for _ in range(1000):
            assert describe_sessions(sessions, 10) == [], "nothing but tags"


def garbage(dice: random.Random, cluster: Cluster) -> bytes:
    connection = Connection(
        f"10.0.0.{dice.randrange(4)}",
        SERVER,
        dice.randrange(3),
        client_start=dice.randrange(2**32),
        server_start=dice.randrange(2**32),
    )
    kind = dice.randrange(8)
    if kind == 0:
        return packets.udp(connection.client.address, SERVER, dice.randrange(9), 53)
    if kind == 1:
        return packets.icmp_echo(
            connection.client.address, SERVER, dice.randrange(3), reply=dice.random() < 0.5
        )
    if kind == 2:
        return packets.icmp_error(SERVER, connection.client.address, connection.syn())
    if kind == 3:
        whole = packets.udp(CLIENT, SERVER, dice.randrange(9), 53, b"x" * 2000)
        return dice.choice(packets.fragments(whole, 1480, dice.randrange(20)))
    if kind == 4:
        broken = bytearray(connection.syn())
        broken[dice.randrange(len(broken))] ^= 1 << dice.randrange(8)
        return bytes(broken)
    end = dice.choice([connection.client, connection.server])
    return connection.segment(end, dice.choice(["S", "SA", "A", "PA", "FA", "R"]))


@pytest.mark.parametrize("seed", range(6))
def test_the_counters_add_up(cluster: Cluster, seed: int) -> None:
    """Every packet received has one final verdict or is parked now, whatever the store and time do."""
    print(f"seed {seed}")
    dice = random.Random(seed)
    node = cluster.node(max_sessions=20, parked_packets=16, lookups=16)
    received, released = 0, 0
    for _ in range(150):
        batch = [garbage(dice, cluster) for _ in range(dice.randrange(1, 12))]
        verdicts = node.receive(*batch)
        received += len(batch)
        released += verdicts.count(FORWARD)
        rows = node.engine.outbox()
        choice = dice.random()
        if choice < 0.4:
            node.answer(rows)
        elif choice < 0.7:
            rows = rows[rows[:, image.OP] == image.LOOKUP]
            node.reply(rows, dice.choice([image.MISSING, image.REFUSED, image.FAILED]))
        node.tick(dice.choice([0, 0.01, 0.06, 1, 7]))
        counts = node.engine.verdicts
        final = sum(count for label, count in counts.items() if label != PARK.label)
        seen = node.engine.counters
        assert seen["received"] == received == final + seen["parked"]
        assert counts.get("forward", 0) == released + len(node.released)
        assert counts.get("park", 0) >= seen["parked"]
        live = seen["sessions-created"] + seen["sessions-restored"]
        assert (
            live - seen["sessions-ended"] - seen["sessions-demoted"]
            == seen["sessions"]
            == len(node.sessions())
        )
    drops = {label for label in node.engine.verdicts if is_drop(Verdict[label.upper().replace("-", "_")])}
    assert len(drops) >= 6, drops


def test_lookups_are_all_accounted_for(cluster: Cluster) -> None:
    dead, node = cluster.node(), cluster.node()
    connection = Connection(sport=9)
    dead.judge(*connection.handshake())
    node.judge(connection.data(), *(packets.tcp(CLIENT, SERVER, sport, 2, "A") for sport in range(5)))
    node.receive(packets.tcp(CLIENT, SERVER, 70, 2, "A"))
    node.tick(0.1)
    assert counters(node, "lookups", "lookup-hits", "lookup-misses", "lookup-failures") == {
        "lookups": 7,
        "lookup-hits": 1,
        "lookup-misses": 5,
        "lookup-failures": 1,
    }


def test_the_arrays_of_a_worker_are_made_by_its_configuration(cluster: Cluster) -> None:
    node = cluster.node(timeouts={tcp.UDP: 7 * MS_NS}, seed=77, owner=0xABCD)
    made = make_state(node.engine.config, allow_all())
    assert made.sessions.timeouts[tcp.UDP] == 7 * MS_NS
    assert made.sources.tolist() == [[0, 2**32 - 1]]
    assert np.count_nonzero(made.sessions.table.hot) == 0
