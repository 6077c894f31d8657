"""TCP tracking: stories told segment by segment, and random walks beside a twin in plain Python.

Stories run through a whole engine, so that every verdict is the one a packet would get.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from everwall.session import image, tcp
from everwall.session import table as t
from everwall.verdict import Verdict
from everwall.wire import meta as m
from tests.cluster import Cluster, Node
from tests.conversations import Connection, End
from tests.naive import tcp as naive
from tests.packets import flag_bits

pytestmark = pytest.mark.kernel

FORWARD = Verdict.FORWARD
LOWER, UPPER = "10.0.0.1", "10.0.1.1"


@pytest.fixture
def node() -> Node:
    return Cluster().node(resiliency=False)


@pytest.fixture(params=["client lower", "client upper"])
def connection(request: pytest.FixtureRequest) -> Connection:
    """Everything holds in either canonical direction."""
    if request.param == "client lower":
        return Connection(LOWER, UPPER)
    return Connection(UPPER, LOWER)


def states_after(node: Node, segments: list[bytes]) -> list[str]:
    """The session's state after each segment; every one is forwarded."""
    states = []
    for number, segment in enumerate(segments):
        assert node.receive(segment) == [FORWARD], f"segment {number}"
        states.append(node.only_session()["state"])
    return states


def established(node: Node, connection: Connection) -> None:
    assert node.receive(*connection.handshake()) == [FORWARD] * 3


def state_of(node: Node) -> str:
    return node.only_session()["state"]


# Lives ------------------------------------------------------------------------------------------------


def test_a_whole_life_closed_by_the_client(node: Node, connection: Connection) -> None:
    assert states_after(node, connection.whole_life(1)) == [
        "init",
        "handshake",
        "established",
        "established",
        "established",
        "half-closed",
        "time-wait",
        "time-wait",
    ]


def test_a_whole_life_closed_by_the_server(node: Node, connection: Connection) -> None:
    established(node, connection)
    server, client = connection.server, connection.client
    last = [connection.fin(server), connection.ack(client), connection.data(client), connection.fin(client)]
    assert states_after(node, [*last, connection.ack(server)]) == ["half-closed"] * 3 + ["time-wait"] * 2


def test_sequence_numbers_may_wrap_around(node: Node, connection: Connection) -> None:
    connection.client.next, connection.server.next = 2**32 - 50, 2**32 - 250
    assert states_after(node, connection.whole_life(4))[-1] == "time-wait"


def test_data_in_the_syn_and_a_fin_instead_of_the_last_ack(node: Node, connection: Connection) -> None:
    first = connection.segment(connection.client, "S", b"early data")
    assert states_after(node, [first, connection.syn_ack(), connection.fin()])[-1] == "half-closed"


def test_both_ends_open_at_once(node: Node, connection: Connection) -> None:
    client, server = connection.client, connection.server
    opening = [
        connection.segment(client, "S"),
        connection.segment(server, "S"),
        connection.segment(client, "SA", seq=client.next - 1),
        connection.segment(server, "SA", seq=server.next - 1),
        connection.data(client),
        connection.data(server),
    ]
    assert states_after(node, opening) == ["init"] + ["handshake"] * 3 + ["established"] * 2


def test_a_syn_is_sent_again_with_the_same_or_another_sequence(node: Node, connection: Connection) -> None:
    again = Connection(connection.client.address, connection.server.address, client_start=3_000_000_000)
    segments = [connection.syn(), connection.segment(connection.client, "S", seq=1_000), *again.handshake()]
    assert states_after(node, segments)[-1] == "established"


def test_a_reused_tuple_begins_a_new_session(node: Node, connection: Connection) -> None:
    again = Connection(connection.client.address, connection.server.address, client_start=7)
    assert node.receive(*connection.whole_life(0), *again.handshake()) == [FORWARD] * 9
    assert node.ends() == ["tcp-fin"]
    session = node.only_session()
    assert (session["state"], session["packets"]) == ("established", 3)


def test_a_reused_tuple_may_turn_its_direction(node: Node, connection: Connection) -> None:
    back = Connection(UPPER, LOWER, 80, 40_000)
    node.receive(*Connection(LOWER, UPPER, 40_000, 80).whole_life(0), *back.handshake())
    session = node.only_session()
    assert (session["src"], session["state"]) == (UPPER, "established")


def test_reuse_finds_room_wherever_its_sets_have_it() -> None:
    # In a crowded table the new session may land in the other set; its SYN passes all the same.
    node = Cluster().node(resiliency=False, max_sessions=90)
    for sport in range(90):
        node.receive(*Connection(sport=sport).whole_life(0))
    again = [Connection(sport=sport, client_start=9) for sport in range(90)]
    assert {verdict for fresh in again for verdict in node.receive(*fresh.handshake())} == {FORWARD}
    assert {(session["state"], session["packets"]) for session in node.sessions()} == {("established", 3)}


# What a state does not allow ------------------------------------------------------------------------


def test_an_answer_by_the_client_before_the_servers_is_refused(node: Node, connection: Connection) -> None:
    node.receive(connection.syn())
    client = connection.client
    for flags in ("A", "PA", "FA", "SA"):
        verdicts = node.receive(connection.segment(client, flags, seq=client.next, ack=1))
        assert verdicts == [Verdict.TCP_STATE], flags
    assert state_of(node) == "init"


def test_a_segment_without_ack_that_opens_nothing_is_refused(node: Node, connection: Connection) -> None:
    established(node, connection)
    client = connection.client
    assert node.receive(connection.segment(client, "F", seq=client.next)) == [Verdict.TCP_STATE]
    assert state_of(node) == "established"


def test_nothing_goes_on_after_an_exact_rst(node: Node, connection: Connection) -> None:
    established(node, connection)
    assert node.receive(connection.rst(), connection.data(connection.server), connection.data()) == [
        FORWARD,
        Verdict.TCP_STATE,
        Verdict.TCP_STATE,
    ]
    assert state_of(node) == "closed"


def test_a_client_does_not_answer_its_own_connection(node: Node, connection: Connection) -> None:
    established(node, connection)
    wrong = connection.segment(connection.client, "SA", seq=connection.client.next)
    assert node.receive(wrong) == [Verdict.TCP_STATE]


# Windows -----------------------------------------------------------------------------------------------


def offset_segment(connection: Connection, end: End, by: int, **fields: object) -> bytes:
    return connection.segment(end, "PA", b"x", seq=end.next + by, **fields)


@pytest.mark.parametrize("sender", ["client", "server"])
@pytest.mark.parametrize(
    ("by", "verdict"),
    [
        (0, FORWARD),
        (65_535, FORWARD),  # the byte a zero-window probe would send
        (65_536, FORWARD),
        (65_537, Verdict.TCP_WINDOW),
        (1 << 31, Verdict.TCP_WINDOW),
        (-1, FORWARD),  # keep-alive
        (-65_536, FORWARD),  # a retransmission that ends at the edge of the receiver's window
        (-65_537, Verdict.TCP_WINDOW),
    ],
)
def test_sequences_stay_inside_the_window(
    node: Node, connection: Connection, sender: str, by: int, verdict: Verdict
) -> None:
    established(node, connection)
    assert node.receive(offset_segment(connection, getattr(connection, sender), by)) == [verdict]


@pytest.mark.parametrize("sender", ["client", "server"])
@pytest.mark.parametrize(
    ("by", "verdict"),
    [(0, FORWARD), (1, Verdict.TCP_WINDOW), (-66_000, FORWARD), (-66_001, Verdict.TCP_WINDOW)],
)
def test_nobody_acknowledges_what_was_not_sent_or_long_ago(
    node: Node, connection: Connection, sender: str, by: int, verdict: Verdict
) -> None:
    established(node, connection)
    end = getattr(connection, sender)
    segment = connection.segment(end, "A", seq=end.next, ack=connection.other(end).next + by)
    assert node.receive(segment) == [verdict]


def test_a_dropped_segment_teaches_nothing(node: Node, connection: Connection) -> None:
    established(node, connection)
    before = node.only_session()
    node.receive(offset_segment(connection, connection.client, 100_000))
    assert node.only_session() == before
    assert node.receive(offset_segment(connection, connection.client, 100_001)) == [Verdict.TCP_WINDOW]


def test_a_closed_window_lets_one_byte_probe(node: Node, connection: Connection) -> None:
    connection.server.window = connection.client.window = 0
    established(node, connection)
    client = connection.client
    assert node.receive(offset_segment(connection, client, 0)) == [FORWARD]
    assert node.receive(offset_segment(connection, client, 3)) == [Verdict.TCP_WINDOW]


SCALES = {
    "both offer": (7, 9, True),
    "only the client": (7, None, False),
    "only the server": (None, 9, False),
    "neither": (None, None, False),
}


@pytest.mark.parametrize(("client_scale", "server_scale", "scaled"), SCALES.values(), ids=SCALES)
def test_windows_are_scaled_only_if_both_offer(
    node: Node, connection: Connection, client_scale: int | None, server_scale: int | None, scaled: bool
) -> None:
    connection.client.scale, connection.server.scale = client_scale, server_scale
    connection.client.window = connection.server.window = 1000
    established(node, connection)
    client, server = connection.client, connection.server
    client_room, server_room = (1000 << 7, 1000 << 9) if scaled else (1000, 1000)
    # The SYN-ACK's own window is never scaled; the next segment's is.
    assert node.receive(offset_segment(connection, client, 1002)) == [Verdict.TCP_WINDOW]
    assert node.receive(connection.ack(server)) == [FORWARD]
    assert node.receive(offset_segment(connection, client, server_room + 2)) == [Verdict.TCP_WINDOW]
    assert node.receive(offset_segment(connection, client, server_room)) == [FORWARD]
    assert node.receive(offset_segment(connection, server, client_room + 2)) == [Verdict.TCP_WINDOW]
    heard = client.next + server_room + 1
    assert node.receive(offset_segment(connection, server, client_room, ack=heard)) == [FORWARD]


def test_the_answer_to_a_syn_acknowledges_it(node: Node, connection: Connection) -> None:
    node.receive(connection.syn())
    wrong = connection.segment(connection.server, "SA", seq=0, ack=connection.client.next + 1)
    assert node.receive(wrong) == [Verdict.TCP_WINDOW]
    assert state_of(node) == "init"


# RST (RFC 5961 section 3) --------------------------------------------------------------------------------


@pytest.mark.parametrize("sender", ["client", "server"])
def test_an_exact_rst_ends_the_session_at_once(node: Node, connection: Connection, sender: str) -> None:
    established(node, connection)
    assert node.receive(connection.rst(getattr(connection, sender))) == [FORWARD]
    session = node.only_session()
    assert (session["state"], session["end"]) == ("closed", f"tcp-rst-from-{sender}")


def test_an_rst_inside_the_window_is_passed_on_and_proves_nothing(node: Node, connection: Connection) -> None:
    established(node, connection)
    inside = connection.segment(connection.client, "R", seq=connection.client.next + 1000)
    assert states_after(node, [inside, inside]) == ["unverified-rst"] * 2
    # A receiver that lives challenges it, and the connection goes on.
    assert states_after(node, [connection.ack(connection.server)]) == ["established"]


@pytest.mark.parametrize("by", [65_536, 1 << 31, -65_536])
def test_an_rst_outside_the_window_is_dropped(node: Node, connection: Connection, by: int) -> None:
    established(node, connection)
    outside = connection.segment(connection.client, "R", seq=connection.client.next + by)
    assert node.receive(outside) == [Verdict.TCP_RST_WINDOW]
    assert state_of(node) == "established"


def test_a_doubtful_rst_takes_no_state_back(node: Node, connection: Connection) -> None:
    """Else an RST and an ACK would make an established session of one that was closing, or never answered."""
    client, server = connection.client, connection.server
    node.receive(connection.syn())
    assert states_after(node, [connection.segment(client, "R", seq=client.next - 1)]) == ["init"]
    assert states_after(node, [connection.syn_ack()]) == ["handshake"]
    assert states_after(node, [connection.segment(server, "R", seq=server.next - 1)]) == ["handshake"]
    assert states_after(node, [connection.ack(), connection.fin()]) == ["established", "half-closed"]
    assert states_after(node, [connection.segment(server, "R", seq=server.next + 9)]) == ["half-closed"]
    assert states_after(node, [connection.fin(server)]) == ["time-wait"]
    assert states_after(node, [connection.segment(client, "R", seq=client.next + 9)]) == ["time-wait"]
    assert states_after(node, [connection.ack()]) == ["time-wait"]


def test_a_refused_connection_is_closed_by_who_knows_its_syn(node: Node, connection: Connection) -> None:
    node.receive(connection.syn())
    guess = connection.segment(connection.server, "RA", seq=0, ack=connection.client.next + 1)
    assert node.receive(guess) == [Verdict.TCP_RST_WINDOW]
    refusal = connection.segment(connection.server, "RA", seq=0, ack=connection.client.next)
    assert node.receive(refusal) == [FORWARD]
    assert node.only_session()["end"] == "tcp-rst-from-server"


# SYN in the middle (RFC 5961 section 4) ---------------------------------------------------------------------


def test_a_syn_in_the_middle_changes_nothing_while_both_ends_live(node: Node, connection: Connection) -> None:
    established(node, connection)
    stray = connection.segment(connection.client, "S", seq=123_456_789)
    challenge = connection.ack(connection.server)
    assert states_after(node, [stray, challenge, *connection.exchange(1)]) == ["established"] * 4
    assert node.ends() == []


def test_a_server_that_lost_the_connection_opens_it_anew(node: Node, connection: Connection) -> None:
    established(node, connection)
    addresses = connection.client.address, connection.server.address
    again = Connection(*addresses, client_start=70_000_000, server_start=9_000)
    assert states_after(node, again.whole_life(2)) == (
        ["established", "handshake"] + ["established"] * 5 + ["half-closed"] + ["time-wait"] * 2
    )
    assert node.ends() == ["tcp-reuse"]
    assert node.only_session()["src"] == connection.client.address


@pytest.mark.parametrize("start", [400, 1_100, 70_000_000], ids=["behind", "ahead", "elsewhere"])
def test_a_client_whose_first_syn_was_answered_in_vain_begins_again(
    node: Node, connection: Connection, start: int
) -> None:
    """The answer was lost, or the rest of the connection took another way, and the tuple is used once more."""
    node.receive(connection.syn(), connection.syn_ack())
    addresses = connection.client.address, connection.server.address
    again = Connection(*addresses, client_start=start, server_start=9_000)
    assert states_after(node, again.handshake()) == ["handshake", "handshake", "established"]
    assert node.ends() == ["tcp-reuse"]


def test_a_handshake_that_is_sent_again_is_the_same(node: Node, connection: Connection) -> None:
    opening = connection.syn(), connection.syn_ack()
    assert states_after(node, [*opening, *opening, connection.ack()])[1:] == ["handshake"] * 3 + [
        "established"
    ]
    assert node.ends() == []


def test_a_syn_ack_that_answers_no_syn_opens_nothing(node: Node, connection: Connection) -> None:
    established(node, connection)
    retransmitted = connection.segment(connection.server, "SA", seq=connection.server.next - 1)
    invented = connection.segment(connection.server, "SA", seq=1, ack=77)
    assert states_after(node, [retransmitted, invented]) == ["established"] * 2
    assert node.ends() == []


def test_an_old_connections_challenge_reaches_the_client(node: Node, connection: Connection) -> None:
    # The server still has the connection before this one: it challenges, and the client resets it.
    node.receive(connection.syn())
    challenge = connection.segment(connection.server, "A", seq=44, ack=55)
    assert states_after(node, [challenge]) == ["init"]
    assert states_after(node, [connection.syn_ack(), connection.ack()]) == ["handshake", "established"]


# After a takeover -------------------------------------------------------------------------------------------


@pytest.fixture
def takeover(connection: Connection) -> Node:
    """A node that has the established connection from the store only."""
    cluster = Cluster()
    first, second = cluster.node(), cluster.node()
    assert set(first.judge(*connection.handshake(), *connection.exchange(2))) == {FORWARD}
    return second


def test_no_window_is_judged_while_it_is_learnt(takeover: Node, connection: Connection) -> None:
    far = offset_segment(connection, connection.client, 10_000_000)
    assert takeover.judge(*connection.exchange(1), far) == [FORWARD] * 3


def test_windows_are_judged_again_after_ten_seconds(takeover: Node, connection: Connection) -> None:
    assert takeover.judge(*connection.exchange(2)) == [FORWARD] * 4
    takeover.cluster.wait(10.5)
    far = offset_segment(connection, connection.client, 10_000_000)
    assert takeover.receive(*connection.exchange(1), far) == [FORWARD, FORWARD, Verdict.TCP_WINDOW]


@pytest.mark.parametrize("seconds", [0, 10.5])
def test_an_intruder_who_speaks_while_windows_are_learnt_does_not_shut_the_ends_out(
    takeover: Node, connection: Connection, seconds: float
) -> None:
    takeover.judge(*connection.exchange(2))
    far = offset_segment(connection, connection.client, 10_000_000, ack=123_456_789)
    assert takeover.judge(far) == [FORWARD], "nothing is judged yet, and the server will not take it"
    takeover.cluster.wait(seconds)
    assert takeover.judge(*connection.exchange(2)) == [FORWARD] * 4
    takeover.cluster.wait(10.5)
    assert takeover.judge(*connection.exchange(2)) == [FORWARD] * 4
    assert takeover.receive(far) == [Verdict.TCP_WINDOW]


def test_windows_are_not_judged_before_both_ends_are_known(takeover: Node, connection: Connection) -> None:
    # A segment without ACK flag does not exist here; an RST teaches nothing about anybody.
    takeover.cluster.wait(60)
    far = offset_segment(connection, connection.client, 10_000_000)
    assert takeover.judge(far) == [FORWARD]


def test_scales_come_with_the_session() -> None:
    cluster = Cluster()
    first, second = cluster.node(), cluster.node()
    connection = Connection(client_scale=7, server_scale=9, window=1000)
    first.judge(*connection.handshake())
    second.judge(*connection.exchange(1))
    cluster.wait(10.5)
    beyond = [offset_segment(connection, connection.client, (1000 << 9) + by) for by in (0, 2)]
    assert second.receive(*beyond) == [FORWARD, Verdict.TCP_WINDOW]


@pytest.mark.parametrize("by", [0, 5])
def test_what_was_acknowledged_tells_where_the_silent_end_stands(
    takeover: Node, connection: Connection, by: int
) -> None:
    """The first node to hear nothing but the client can still tell the server's exact RST from a guess."""
    takeover.judge(connection.ack(connection.client))
    rst = connection.segment(connection.server, "R", seq=connection.server.next + by)
    assert takeover.judge(rst) == [FORWARD]
    assert state_of(takeover) == ("closed" if by == 0 else "unverified-rst")


def test_an_rst_that_comes_first_after_a_takeover_is_not_believed(
    takeover: Node, connection: Connection
) -> None:
    assert takeover.judge(connection.rst()) == [FORWARD]
    assert state_of(takeover) == "unverified-rst"


# Beside the twin ------------------------------------------------------------------------------------------


class Pair:
    """Kernel and twin fed with the same segments."""

    def __init__(self, initiator_upper: int) -> None:
        self.initiator_upper = initiator_upper
        cold = np.zeros((1, t.COLD_COLUMNS), np.int64)
        self.small, self.short = cold.view(np.uint32), cold.view(np.uint16)
        self.meta = np.zeros((1, m.COLUMNS), np.int64)
        self.twin: naive.Session | None = None

    def open(self, syn: naive.Segment) -> None:
        self._restart()
        tcp.open_session(self.short, self.small, 0, self.describe(syn), 0, self.scale(syn))
        self.twin = naive.Session.opened_by(syn)

    def reopen(self, syn_ack: naive.Segment) -> None:
        self._restart()
        tcp.reopen_from_syn_ack(self.short, self.small, 0, self.describe(syn_ack), 0, self.scale(syn_ack))
        self.twin = naive.Session.reopened_by(syn_ack)

    def _restart(self) -> None:
        self.small[:] = 0
        self.short[0, t.FLAGS] = image.INITIATOR_UPPER * self.initiator_upper

    def take_over(self) -> None:
        """What a record holds survives: state, flags and scales."""
        kept = self.short[0, [t.FLAGS, t.SCALES]].copy()
        self.twin = self.twin.taken_over()
        self.small[:] = 0
        self.short[0, [t.FLAGS, t.SCALES]] = kept
        self.short[0, t.STATE] = self.twin.state
        self.short[0, t.LOCAL] = t.RELEARNING

    def end_relearning(self) -> None:
        tcp.end_relearning(self.short, 0, tcp.RELEARN_NS + 1, 0)
        if self.twin.client.known and self.twin.server.known:
            self.twin.relearning = False

    def judge(self, segment: naive.Segment) -> tuple[int, int]:
        meta = self.describe(segment)
        verdict, follows = tcp.track(self.short, self.small, 0, meta, 0, self.scale(segment))
        before = repr(self.twin)
        expected, expected_state = self.twin.judge(segment)
        if expected_state == naive.RESTART:
            expected_state = tcp.RESTART
        assert (verdict, follows) == (expected, expected_state), f"{segment} in {before}"
        if follows != tcp.RESTART:
            self.short[0, t.STATE] = self.twin.state = follows
        return verdict, follows

    def describe(self, segment: naive.Segment) -> np.ndarray:
        row = self.meta[0]
        row[m.DIRECTION] = self.initiator_upper if segment.from_client else 1 - self.initiator_upper
        row[m.TCP_FLAG_BITS] = segment.flags
        row[m.TCP_SEQUENCE], row[m.TCP_ACKNOWLEDGEMENT] = segment.seq, segment.ack
        row[m.TCP_WINDOW_FIELD], row[m.PAYLOAD] = segment.window, segment.payload
        return self.meta

    @staticmethod
    def scale(segment: naive.Segment) -> int:
        return -1 if segment.scale is None or not segment.flags & naive.SYN else segment.scale


FLAGS = ["S", "SA", "A", "A", "A", "PA", "PA", "FA", "FA", "R", "RA", "F", "P"]
JUMPS = [
    0,
    0,
    0,
    0,
    0,
    0,
    1,
    -1,
    2,
    1000,
    -1000,
    65_535,
    -65_535,
    66_000,
    -66_001,
    1 << 20,
    -(1 << 20),
    1 << 31,
]


class Stacks:
    """What two real stacks would roughly write, and now and then something else."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.next = [dice.choice([0, 1000, 2**32 - 500, dice.randrange(2**32)]) for _ in range(2)]
        self.heard = list(reversed(self.next))

    def segment(self, flags: str | None = None, from_client: bool | None = None) -> naive.Segment:
        dice = self.dice
        client = dice.random() < 0.5 if from_client is None else from_client
        me, peer = (0, 1) if client else (1, 0)
        bits = flag_bits(flags or dice.choice(FLAGS))
        payload = dice.choice([0, 0, 1, 100, 1460]) if not bits & naive.SYN else 0
        made = naive.Segment(
            client,
            bits,
            (self.next[me] + dice.choice(JUMPS)) % 2**32,
            (self.next[peer] + dice.choice(JUMPS)) % 2**32,
            dice.choice([0, 1, 1000, 65_535]),
            payload,
            dice.choice([None, None, 0, 2, 14]) if bits & naive.SYN else None,
        )
        if dice.random() < 0.7:
            self.next[me] = made.end
        return made


def walk(seed: int) -> set[tuple[int, int]]:
    """One random connection, or several on the same tuple; returns the (state, verdict) pairs it met."""
    dice = random.Random(seed)
    stacks, pair = Stacks(dice), Pair(seed % 2)
    met = set()
    pair.open(stacks.segment("S", True))
    if dice.random() < 0.7:  # most walks get through the handshake
        pair.judge(stacks.segment("SA", False))
        pair.judge(stacks.segment("A", True))
    for _ in range(150):
        segment = stacks.segment()
        state = pair.twin.state
        verdict, follows = pair.judge(segment)
        met.add((int(state), int(verdict)))
        if follows == tcp.RESTART and segment.kind == "SYN":
            segment.from_client = True
            pair.open(segment)
        elif follows == tcp.RESTART:
            pair.reopen(segment)
        chance = dice.random()
        if chance < 0.02:
            pair.take_over()
        elif chance < 0.06:
            pair.end_relearning()
    return met


def test_kernel_and_twin_walk_together() -> None:
    met = set()
    for seed in range(400):
        print(f"seed {seed}")
        met |= walk(seed)
    # Else the walks would prove little: every state was visited, every verdict given.
    assert {state for state, _ in met} == set(tcp.STATE_NAMES) - {tcp.UDP, tcp.ICMP, tcp.OTHER}
    refusals = {Verdict.TCP_STATE, Verdict.TCP_WINDOW, Verdict.TCP_RST_WINDOW}
    assert {verdict for _, verdict in met} == refusals | {FORWARD}
