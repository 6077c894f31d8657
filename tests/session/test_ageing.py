"""Time: every state's time-out, the refresh of what the store holds, and how long a record is true."""

from __future__ import annotations

import numpy as np
import pytest

from everwall.engine import use_settings
from everwall.limits import FAILOVER_S, REFRESH_PASSES, SECOND_NS, STORED_IDLE_NS
from everwall.policy.compile import compile_policy
from everwall.policy.match import CompiledPolicy
from everwall.policy.rules import read_policy
from everwall.policy.settings import SessionSettings
from everwall.session import image, tcp
from everwall.session import table as t
from everwall.verdict import Verdict
from tests import packets
from tests.cluster import Cluster, Node
from tests.conversations import Connection

pytestmark = pytest.mark.kernel

FORWARD = Verdict.FORWARD
CLIENT, SERVER = "10.0.0.1", "10.0.1.1"
ASK = packets.udp(CLIENT, SERVER, 5000, 53)
ANSWER = packets.udp(SERVER, CLIENT, 53, 5000)


def unverified(connection: Connection) -> list[bytes]:
    inside = connection.segment(connection.client, "R", seq=connection.client.next + 100)
    return [*connection.handshake(), inside]


def lives() -> dict[str, tuple[list[bytes], float, str]]:
    """Packets that lead to a state, its time-out in seconds, and the reason in the log."""
    stories = {
        "init": ([Connection().syn()], 5, "aged-out"),
        "handshake": (Connection().handshake()[:2], 10, "aged-out"),
        "established": (Connection().handshake(), 3600, "aged-out"),
        "udp": ([ASK], 30, "aged-out"),
        "icmp": ([packets.icmp_echo(CLIENT, SERVER, 7)], 6, "aged-out"),
        "other": ([packets.ip(CLIENT, SERVER, 47, b"gre")], 30, "aged-out"),
        "unverified rst": (unverified(Connection()), 30, "tcp-rst-from-client"),
        "time-wait": (Connection().whole_life(0), 15, "tcp-fin"),
    }
    half, reset = Connection(), Connection()
    stories["half-closed"] = ([*half.handshake(), half.fin()], 120, "aged-out")
    stories["half-closed by the server"] = ([*half.handshake(), half.fin(half.server)], 120, "aged-out")
    stories["closed"] = ([*reset.handshake(), reset.rst(reset.server)], 15, "tcp-rst-from-server")
    return stories


@pytest.mark.parametrize(("story", "seconds", "reason"), lives().values(), ids=lives())
def test_every_state_has_its_time_out(story: list[bytes], seconds: float, reason: str) -> None:
    node = Cluster().node(resiliency=False)
    assert set(node.receive(*story)) == {FORWARD}
    node.tick(seconds - 0.001)
    assert len(node.sessions()) == 1
    node.tick(1)
    assert node.sessions() == []
    assert node.ends() == [reason]
    assert node.engine.counters["sessions-ended"] == 1


SETTINGS = {
    "init": "tcp_init",
    "handshake": "tcp_handshake",
    "established": "tcp",
    "udp": "udp",
    "icmp": "icmp",
    "other": "other",
    "unverified rst": "tcp_unverified_rst",
    "time-wait": "tcp_time_wait",
    "half-closed": "tcp_half_closed",
    "half-closed by the server": "tcp_half_closed",
    "closed": "tcp_time_wait",
}


@pytest.mark.parametrize("which", lives())
def test_a_policy_sets_each_time_out_by_its_name_and_nothing_set_is_as_usual(which: str) -> None:
    story, usual, _ = lives()[which]
    node = Cluster().node(resiliency=False, settings=SessionSettings(**{SETTINGS[which]: 7}))
    assert set(node.receive(*story)) == {FORWARD}
    node.tick(6.999)
    assert len(node.sessions()) == 1
    use_settings(node.engine.sessions_state, SessionSettings(**{SETTINGS[which]: 50}))
    node.tick(1)
    assert len(node.sessions()) == 1, "a live session is aged by what is set now"
    use_settings(node.engine.sessions_state, SessionSettings())
    node.tick(max(usual - 7.999, 0) + 1)
    assert node.sessions() == []


def test_a_time_out_longer_than_a_record_can_live_is_refreshed_like_the_longest_that_it_can() -> None:
    node = Cluster().node(settings=SessionSettings(tcp=86_400))
    connection = Connection()
    node.judge(*connection.handshake())
    node.serve()
    node.tick(STORED_IDLE_NS / SECOND_NS / 3)
    assert len(node.engine.outbox()) == 0, "nothing came since"
    node.receive(connection.ack())
    node.tick_through(REFRESH_PASSES)
    (row,) = node.engine.outbox()
    assert row[image.OP] == image.WRITE
    # A second of rounding up, and the failover itself.
    assert row[image.EXPIRY] - node.cluster.time // SECOND_NS <= STORED_IDLE_NS // SECOND_NS + FAILOVER_S + 1
    node.tick(2 * 3600)
    assert len(node.sessions()) == 1, "here it lives on"


def test_time_outs_are_exact_for_whoever_touches_the_session() -> None:
    # The ageing hand may be up to a second late; a packet of the flow is not fooled by that.
    node = Cluster().node(resiliency=False)
    connection = Connection()
    node.receive(*connection.whole_life(0))
    node.cluster.wait(15)
    assert node.receive(connection.ack()) == [Verdict.NON_SYN_TCP]
    assert node.ends() == ["tcp-fin"]


def test_every_packet_begins_the_time_out_anew() -> None:
    node = Cluster().node(resiliency=False)
    for _ in range(5):
        assert node.receive(ASK) == [FORWARD]
        node.tick(29)
    assert node.only_session()["packets"] == 5


def test_a_dropped_packet_keeps_nothing_alive() -> None:
    node = Cluster().node(resiliency=False)
    connection = Connection()
    node.receive(*connection.handshake(), connection.fin())
    node.tick(100)
    beyond = connection.segment(connection.server, "A", seq=connection.server.next + 200_000)
    assert node.receive(beyond) == [Verdict.TCP_WINDOW]
    node.tick(21)
    assert node.sessions() == []


def test_own_time_outs_take_the_place_of_the_defaults() -> None:
    node = Cluster().node(resiliency=False, timeouts={tcp.UDP: 2 * SECOND_NS})
    node.receive(ASK)
    node.tick(2.1)
    assert node.ends() == ["aged-out"]


def test_the_hand_passes_the_whole_table_in_a_second_of_slices() -> None:
    node = Cluster().node(resiliency=False, max_sessions=400)
    for sport in range(300):
        node.receive(packets.udp(CLIENT, SERVER, sport, 53))
    node.tick()  # from here on the hand is wound up
    node.cluster.wait(29)
    node.tick()
    assert len(node.sessions()) == 300
    node.cluster.wait(1)
    for _ in range(64):
        node.tick(1 / 64)
    assert node.sessions() == []


def test_the_next_timer_is_the_next_slice() -> None:
    node = Cluster().node(resiliency=False)
    node.tick()
    due = node.engine.next_timer() - node.now
    assert 0 < due <= SECOND_NS // 64


# The store ---------------------------------------------------------------------------------------------


def asked(node: Node, *operations: int) -> list[np.ndarray]:
    """What the node has asked of the store since the last call, of some kinds; look-ups find nothing."""
    rows = node.engine.outbox()
    node.reply(rows[rows[:, image.OP] == image.LOOKUP], image.MISSING)
    return [row for row in [*rows, *node.engine.outbox()] if row[image.OP] in operations]


REFRESHED = {
    "tcp": (Connection().handshake(), 1200.0),
    "udp": ([ASK, ANSWER], 10.0),
    "icmp": ([packets.icmp_echo(CLIENT, SERVER, 7), packets.icmp_echo(SERVER, CLIENT, 7, reply=True)], 2.0),
}


@pytest.mark.parametrize(("story", "third"), REFRESHED.values(), ids=REFRESHED)
def test_a_live_session_is_written_again_after_a_third_of_its_time_out(
    story: list[bytes], third: float
) -> None:
    node = Cluster().node()
    node.receive(*story)
    assert len(asked(node, image.WRITE_FIRST)) == 1
    node.tick(third / 2)
    node.receive(story[-1])
    node.tick(third / 2 - 0.1)
    assert asked(node, image.WRITE) == []
    for _ in range(REFRESH_PASSES):
        node.receive(story[-1])
        node.tick(1)
    (written,) = asked(node, image.WRITE)
    assert len(story) + 1 < written[image.PACKETS] <= len(story) + 1 + REFRESH_PASSES
    assert node.engine.counters["refreshes"] == 1


def test_a_silent_session_is_not_written_again() -> None:
    # Its record is still true: expiry counts from the last packet.
    node = Cluster().node()
    node.receive(*Connection().handshake())
    assert len(asked(node, image.WRITE_FIRST)) == 1
    node.tick(3000)
    assert asked(node, image.WRITE) == []


@pytest.mark.parametrize(
    ("story", "life"),
    [
        (Connection().handshake(), 3600 + 120),
        (Connection().whole_life(0), 350 + 120),  # the load balancer keeps a TCP flow longer than time-wait
        ([ASK, ANSWER], 120 + 120),
        ([packets.icmp_echo(CLIENT, SERVER, 7), packets.icmp_echo(SERVER, CLIENT, 7, reply=True)], 120 + 120),
    ],
    ids=["established", "time-wait", "udp", "icmp"],
)
def test_a_record_is_true_for_the_longer_time_out_and_the_failover(story: list[bytes], life: int) -> None:
    node = Cluster().node()
    node.receive(*story)
    written = asked(node, image.WRITE, image.WRITE_FIRST)
    assert int(written[-1][image.EXPIRY]) - node.cluster.time // SECOND_NS == life


def test_only_what_must_not_be_lost_is_written() -> None:
    node = Cluster().node()
    connection = Connection()
    node.receive(connection.syn(), connection.syn_ack(), ASK, packets.icmp_echo(CLIENT, SERVER, 7))
    assert asked(node, image.WRITE_FIRST) == []
    node.receive(connection.ack(), ANSWER)
    assert len(asked(node, image.WRITE_FIRST)) == 2


def test_an_ended_session_is_deleted_from_the_store() -> None:
    cluster = Cluster()
    node = cluster.node()
    aged, reset = Connection(sport=1), Connection(sport=2)
    node.judge(*aged.whole_life(0), *reset.handshake())
    assert len(cluster.records()) == 2
    node.judge(reset.rst())  # at once: nothing of it is worth a takeover
    assert len(cluster.records()) == 1
    node.tick(16)
    node.serve()
    assert cluster.records() == {}
    assert node.engine.counters["deletes"] == 2


def test_a_doubtful_rst_stays_a_private_doubt() -> None:
    node = Cluster().node()
    node.receive(*unverified(Connection()))
    assert [row[image.STATE] for row in asked(node, image.WRITE_FIRST)] == [tcp.TCP_ESTABLISHED]
    node.engine.offer_all(node.now)
    assert [row[image.STATE] for row in asked(node, image.WRITE)] == [tcp.TCP_ESTABLISHED]
    assert node.only_session()["state"] == "unverified-rst"


def test_what_a_full_queue_delayed_is_written_later() -> None:
    node = Cluster().node(ring_rows=4)
    for sport in range(6):
        node.receive(*Connection(sport=sport).handshake())
    assert len(asked(node, image.WRITE_FIRST)) == 4
    assert node.engine.counters["requests-delayed"] == 2
    node.tick(1)
    assert len(asked(node, image.WRITE_FIRST)) == 2


def test_all_sessions_are_offered_when_resiliency_begins() -> None:
    node = Cluster().node(resiliency=False)
    node.receive(*Connection().handshake(), Connection(sport=2).syn(), ASK)
    assert len(node.engine.outbox()) == 0
    node.engine.offer_all(node.now)
    assert len(asked(node, image.WRITE_FIRST)) == 3


def test_a_session_handed_over_leaves_no_trace_here() -> None:
    node = Cluster().node(resiliency=False)
    node.receive(Connection().syn())
    (slot,) = np.flatnonzero(node.engine.state.sessions.table.hot[:, t.KEY2])
    node.engine.hand_over(int(slot), node.now)
    assert (node.sessions(), node.ends()) == ([], [])
    assert len(asked(node, image.WRITE_FIRST)) == 1
    assert node.engine.counters["sessions"] == 0


# Modes -------------------------------------------------------------------------------------------------


def by(mode: str) -> CompiledPolicy:
    """A policy that allows everything in one mode."""
    rules = f"rules: [{{name: all, source: any, destination: any, service: any, action: allow, resiliency: {mode}}}]"
    return compile_policy(read_policy("policy.yaml", rules))[0]


def test_a_rule_without_resiliency_is_never_written() -> None:
    node = Cluster().node(by("off"))
    connection = Connection()
    node.receive(*connection.handshake(), ASK, ANSWER)
    node.tick(1300)
    node.receive(connection.data())
    node.tick(1)
    node.receive(connection.rst())
    node.tick(20)
    assert node.sessions() == []
    assert asked(node, image.WRITE_FIRST, image.WRITE, image.DELETE) == []


def test_a_young_session_is_not_written_and_an_old_one_is() -> None:
    node = Cluster().node(by("min-age 3s"))
    connection, short = Connection(sport=1), Connection(sport=2)
    node.receive(*connection.handshake(), *short.whole_life(0), ASK, ANSWER)
    node.tick(2.9)
    assert asked(node, image.WRITE_FIRST, image.WRITE) == []
    node.receive(short.rst())
    node.tick(1)
    assert {int(row[image.STATE]) for row in asked(node, image.WRITE_FIRST)} == {tcp.TCP_ESTABLISHED, tcp.UDP}
    node.receive(connection.fin())
    assert len(asked(node, image.WRITE)) == 1, "from then on as any other"


def test_a_session_that_ends_young_costs_the_store_nothing() -> None:
    node = Cluster().node(by("min-age 3s"))
    connection = Connection()
    node.receive(*connection.handshake(), connection.rst())
    node.tick(20)
    assert node.ends() == ["tcp-rst-from-client"]
    assert asked(node, image.WRITE_FIRST, image.WRITE, image.DELETE) == []


def test_only_what_is_worth_it_comes_of_age() -> None:
    node = Cluster().node(by("min-age 1s"))
    node.receive(ASK, Connection().syn())
    node.tick(2)
    assert asked(node, image.WRITE_FIRST, image.WRITE) == []


def test_a_restored_session_whose_rule_says_off_lives_on_unwritten() -> None:
    cluster = Cluster()
    former, node = cluster.node(), cluster.node(by("off"))
    connection = Connection()
    former.judge(*connection.handshake())
    (before,) = cluster.records().values()
    assert node.judge(connection.data()) == [FORWARD]
    assert list(cluster.records().values()) == [before]
    node.tick(1300)
    node.serve()
    assert list(cluster.records().values()) == [before]
    node.judge(connection.data(), connection.rst())
    assert cluster.records() == {}, "a closed session must not be restored"
