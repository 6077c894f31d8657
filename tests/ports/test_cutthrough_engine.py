"""The program against the engine: a node with the cut-through does what one without it does.

Two engines get the same traffic. One has its table on the program's memory and sees only what the program hands up;
the other sees all. Verdicts, bytes on the wire and books have to be equal. What is not is in docs/cut-through.md,
"Differences", and each of them is a test here.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from random import Random

import numpy as np
import pytest

from everwall import pipeline
from everwall.engine import EngineConfig, describe_sessions, make_state
from everwall.limits import AGEING_PERIOD_NS, BATCH_PACKETS, SECOND_NS, SEQUENCE_JUMP_MAX
from everwall.pipeline import State
from everwall.policy.match import allow_all
from everwall.ports.bpf import CutThrough, Outcome
from everwall.ports.libbpf import XDP_TX
from everwall.session import offload, tcp
from everwall.session import table as t
from everwall.session.table import SharedTable, slots_for
from everwall.verdict import Verdict
from everwall.wire import meta as m
from everwall.wire.meta import make_batch
from tests import needs, packets
from tests.conversations import Connection
from tests.cutthrough import FLOWS, SEED, SOURCES, Flow, clock, pass_loop
from tests.frames import FIREWALL, GENEVE_AT, frame, sealed

pytestmark = pytest.mark.kernel

SESSIONS = 64
ENDPOINT = 0x0A1B_2C3D_0000_0000
SEEN_WITHIN_NS = 1 << t.SEEN_SHIFT
"""Between what engine and program note of a packet, beside the time that its way took: a unit."""


class Pair:
    """Two nodes; ``send`` gives both the same frame."""

    def __init__(self) -> None:
        config = EngineConfig(
            max_sessions=SESSIONS,
            resiliency=False,
            seed=SEED,
            geneve_sources=tuple(SOURCES),
            parked_packets=16,
            lookups=8,
            ring_rows=64,
        )
        self.program = CutThrough(workers=1, slots=slots_for(SESSIONS), queues=1)
        shared = SharedTable(self.program.hot, self.program.tags, self.program.addresses)
        self.with_ = make_state(config, allow_all(), shared, self.program.control)
        self.without = make_state(config, allow_all())
        self.program.configure(seed=SEED, sources=SOURCES, addresses=[IPv4Address(FIREWALL)])
        self.batch = make_batch(BATCH_PACKETS)
        self.counted = self.program.counters()
        self.took = 0
        """Longest that a frame was under way, ns by the program's clock."""

    def send(self, sent: bytes) -> tuple[Outcome, Verdict | None, Verdict | None]:
        """What the program did; what the node with it and the node without it made of the packet.

        No verdict on what goes to the kernel, nor where the outer lengths are wrong: that is the port's to see.
        """
        now = clock()
        pass_loop(self.with_.sessions, now)
        action, back, _ = self.program.test_run(sent)
        self.took = max(self.took, clock() - now)
        after = self.program.counters()
        changed = {name for name in after if after[name] != self.counted[name]} - {"bounced-bytes"}
        self.counted = after
        (outcome,) = (which for which in Outcome if which.label in changed)
        if outcome == Outcome.PASSED or sealed(sent) != sent or len(sent) > 1900:
            assert outcome != Outcome.BOUNCED
            return outcome, None, None
        alone = self._judge(self.without, sent, now)
        if outcome != Outcome.BOUNCED:
            assert action != XDP_TX
            return outcome, self._judge(self.with_, sent, now), alone
        if alone == Verdict.FORWARD:
            self._same_on_the_wire(sent, back)
        return outcome, Verdict.FORWARD, alone

    def _judge(self, state_: State, sent: bytes, now: int) -> Verdict:
        peer = (str(IPv4Address(sent[26:30])), int.from_bytes(sent[34:36], "big"))
        local = (str(IPv4Address(sent[30:34])), int.from_bytes(sent[36:38], "big"))
        packets.load(self.batch, 0, sent[GENEVE_AT:], peer=peer, local=local)
        self.batch.meta[0, m.VERDICT] = Verdict.FORWARD
        pipeline.receive(state_, self.batch, 1, now)
        return Verdict(int(self.batch.meta[0, m.VERDICT]))

    def _same_on_the_wire(self, sent: bytes, back: bytes) -> None:
        """What a port would send of the engine's row: it was judged last, so it is still there."""
        row = self.batch.meta[0]
        assert back[GENEVE_AT:] == packets.unload(self.batch, 0), "its own GENEVE header, byte for byte"
        assert int.from_bytes(back[26:30], "big") == row[m.LOCAL_ADDRESS]
        assert int.from_bytes(back[30:34], "big") == row[m.PEER_ADDRESS]
        assert int.from_bytes(back[34:36], "big") == row[m.PEER_PORT]
        assert int.from_bytes(back[36:38], "big") == 6081
        assert back[:12] == sent[6:12] + sent[:6]

    def agree(self, sent: bytes) -> Outcome:
        """Send a frame on which both nodes have to agree."""
        outcome, ours, alone = self.send(sent)
        assert ours == alone, f"{outcome.label}: {ours} with, {alone} without: {sent.hex()}"
        return outcome

    def books(self) -> list[dict[str, object]]:
        """The sessions of both, which have to be equal; last seen within what the program's clock can tell."""
        ours, alone = describe_sessions(self.with_.sessions), describe_sessions(self.without.sessions)
        for rows in (ours, alone):
            rows.sort(key=lambda row: row["id"])
        assert len(ours) == len(alone)
        for mine, theirs in zip(ours, alone):
            seen = mine.pop("last_seen_ns") - theirs.pop("last_seen_ns")
            assert -SEEN_WITHIN_NS <= seen <= self.took + SEEN_WITHIN_NS, (
                "an offloaded session is as young as it is"
            )
            mine.pop("offloaded", None), theirs.pop("offloaded", None)
            assert mine == theirs
        return ours

    def offloaded(self) -> int:
        hot32 = self.with_.sessions.table.hot32
        return int(np.count_nonzero(hot32[:, t.CONTROL]))

    def close(self) -> None:
        self.program.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    needs.xdp()
    made = Pair()
    yield made
    made.close()


def wrapped(inner: bytes, endpoint: int = ENDPOINT) -> bytes:
    return frame(packets.geneve(inner, endpoint))


def connect(pair: Pair, connection: Connection, exchanges: int = 2) -> None:
    """A handshake, and as much data as makes a session one to be offloaded."""
    for inner in connection.handshake() + connection.exchange(exchanges):
        pair.agree(wrapped(inner))


# In the window --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_a_whole_connection_is_the_same_and_its_data_is_bounced(pair: Pair, family: int) -> None:
    ends = ("10.0.0.1", "10.0.1.1") if family == 4 else ("2001:db8::1", "2001:db8::2")
    connection = Connection(*ends, client_scale=7, server_scale=9)
    outcomes = [pair.agree(wrapped(inner)) for inner in connection.whole_life(exchanges=20)]
    assert outcomes.count(Outcome.BOUNCED) >= 38, (
        "all but the opening, the end and what comes before it is known"
    )
    assert outcomes[-3:-1] == [Outcome.TCP_FLAGS] * 2, "the engine sees who closes"
    (session,) = pair.books()
    assert session["packets"] == len(outcomes)
    assert session["state"] == "time-wait"


@pytest.mark.parametrize("family", [4, 6])
def test_an_answered_datagram_flow_is_bounced(pair: Pair, family: int) -> None:
    ends = ("10.0.0.1", "10.0.1.1") if family == 4 else ("2001:db8::1", "2001:db8::2")
    flow = Flow(*ends, packets.UDP, 5000, 53)
    assert pair.agree(flow.frame()) == Outcome.NO_SESSION
    assert pair.agree(flow.frame()) == Outcome.NOT_OFFLOADED, "nobody has answered yet"
    assert pair.agree(flow.turned().frame()) == Outcome.NOT_OFFLOADED
    for size in (0, 1, 600):
        assert pair.agree(flow.frame(size)) == Outcome.BOUNCED
        assert pair.agree(flow.turned().frame(size)) == Outcome.BOUNCED
    assert pair.books()[0]["packets"] == 9


@pytest.mark.parametrize("seed", range(6))
def test_many_connections_at_once(pair: Pair, seed: int) -> None:
    """Data, retransmissions, resets, SYNs into the middle, fragments and errors, shuffled among each other."""
    rng = Random(seed)
    open_: list[Connection] = []
    outcomes = []
    for number in range(400):
        what = rng.random()
        if not open_ or (what < 0.05 and number < 360):
            port = 20_000 + number
            ends = ("10.0.0.1", "10.0.1.1") if rng.random() < 0.5 else ("2001:db8::1", "2001:db8::2")
            start = rng.choice([1000, 2**32 - 300])
            open_.append(Connection(*ends, port, 80, client_start=start, client_scale=rng.choice([None, 5])))
            inners = open_[-1].handshake()
        else:
            connection = rng.choice(open_)
            end = rng.choice([connection.client, connection.server])
            size = rng.choice([1, 100, 500])
            if what < 0.10:
                inners = [connection.syn()]
                connection.client.next -= 1
            elif what < 0.13:
                inners = connection.goodbye()
                open_.remove(connection)
            elif what < 0.16:
                inners = [connection.rst(end)]
                open_.remove(connection)
            elif what < 0.22 and end.next > size:
                inners = [connection.segment(end, "PA", b"d" * size, seq=end.next - size)]
            elif what < 0.27:
                inners = packets.fragments(connection.segment(end, "PA", b"d" * 400), 200, ident=number)
            elif what < 0.32:
                quoted = connection.segment(connection.other(end), "A")
                inners = [
                    packets.icmp_error(connection.server.address, connection.other(end).address, quoted)
                ]
                if connection.other(end) is connection.server:
                    inners = [
                        packets.icmp_error(connection.client.address, connection.server.address, quoted)
                    ]
            elif what < 0.36:
                inners = [connection.segment(end, "A", seq=end.next - 1)]  # keep-alive
            else:
                inners = [connection.ack(end), connection.data(end, size)]
        outcomes += [pair.agree(wrapped(inner)) for inner in inners]
        if number % 50 == 0:
            pair.books()
    pair.books()
    assert outcomes.count(Outcome.BOUNCED) > 100
    assert {Outcome.TCP_FLAGS, Outcome.FRAGMENT, Outcome.INNER_PROTOCOL} <= set(outcomes)


# Damage ---------------------------------------------------------------------------------------------------


def arrays_of(value: object) -> Iterator[np.ndarray]:
    """Every array in a tree of named tuples."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from arrays_of(part)


class Moment:
    """All that the two engines know of packets, to go back to."""

    def __init__(self, pair: Pair) -> None:
        self.arrays = [
            array
            for state_ in (pair.with_, pair.without)
            for name, part in state_.sessions._asdict().items()
            if name not in ("arena", "requests", "events", "shared")
            for array in arrays_of(part)
        ]
        self.copies = [array.copy() for array in self.arrays]

    def restore(self) -> None:
        """Back to the moment; time went on all the same."""
        for array, copy in zip(self.arrays, self.copies):
            array[...] = copy


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_bounced_the_engine_forwards(pair: Pair, seed: int) -> None:
    """Damaged packets of live sessions: equal verdicts, but for segments that are TCP's to refuse."""
    rng = Random(seed)
    connection = Connection(client_scale=3, server_scale=3)
    connect(pair, connection)
    for flow in FLOWS:
        if flow.protocol == packets.UDP:
            for sent in (flow.frame(), flow.turned().frame(), flow.frame()):
                pair.agree(sent)
    moment = Moment(pair)
    datagrams = [flow for flow in FLOWS if flow.protocol == packets.UDP]
    outcomes = []
    for _ in range(700):
        if rng.random() < 0.5:
            end = rng.choice([connection.client, connection.server])
            sent = wrapped(connection.segment(end, "PA", b"d" * rng.choice([0, 1, 90]), seq=end.next))
        else:
            flow = rng.choice(datagrams)
            sent = rng.choice([flow, flow.turned()]).frame(rng.choice([0, 1, 90]))
        damaged = bytearray(sent)
        for _ in range(rng.choice([0, 1, 1, 2])):
            at = rng.randrange(GENEVE_AT, min(len(damaged), GENEVE_AT + 110))
            damaged[at] = rng.choice([damaged[at] ^ 1 << rng.randrange(8), rng.randrange(256)])
        if rng.random() < 0.1:
            damaged = damaged[: rng.randrange(GENEVE_AT + 1, len(damaged))]
        sent = sealed(bytes(damaged))
        at = GENEVE_AT + 8 + 4 * (sent[GENEVE_AT] % 64)
        if rng.random() < 0.7 and len(sent) >= at + 20 and sent[at] == 0x45:
            sent = sent[:at] + packets.fix_ipv4_checksum(sent[at : at + 20]) + sent[at + 20 :]
        outcome, ours, alone = pair.send(sent)
        outcomes.append(outcome)
        window = outcome == Outcome.BOUNCED and alone == Verdict.TCP_WINDOW
        assert ours == alone or window, f"{outcome.label}: {ours} with, {alone} without: {sent.hex()}"
        if not window and ours is not None:
            pair.books()
        moment.restore()
    assert outcomes.count(Outcome.BOUNCED) > 100
    assert len(set(outcomes)) >= 7


def test_segments_cut_off_at_every_length(pair: Pair) -> None:
    connection = Connection()
    connect(pair, connection)
    whole = wrapped(connection.segment(connection.client, "PA", b"abc", seq=connection.client.next))
    for length in range(GENEVE_AT, len(whole)):
        assert pair.agree(sealed(whole[:length])) != Outcome.BOUNCED
    assert pair.agree(whole) == Outcome.BOUNCED
    pair.books()


def test_reserved_bits_and_option_orders_change_nothing(pair: Pair) -> None:
    connection = Connection()
    for inner in connection.handshake() + connection.exchange(2):
        pair.agree(frame(packets.geneve(inner, ENDPOINT)))
    options = [packets.endpoint_option(ENDPOINT), packets.attachment_option(3), packets.cookie_option(4)]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2], [0], [0, 2], [1, 0]):
        geneve = packets.geneve(
            connection.ack(), options=[options[k] for k in order], reserved=21, reserved_last=255, vni=77
        )
        assert pair.agree(frame(geneve)) == Outcome.BOUNCED
    unknown = [*options, packets.option(0x0102, 5, b"else")]
    assert pair.agree(frame(packets.geneve(connection.ack(), options=unknown))) == Outcome.OPTIONS
    pair.books()


# Withdrawn ------------------------------------------------------------------------------------------------


def test_a_segment_after_the_end_is_judged_by_the_engine(pair: Pair) -> None:
    connection = Connection()
    connect(pair, connection)
    assert pair.agree(wrapped(connection.rst())) == Outcome.TCP_FLAGS
    assert pair.offloaded() == 0
    outcome, ours, alone = pair.send(wrapped(connection.data(connection.server)))
    assert (outcome, ours, alone) == (Outcome.NOT_OFFLOADED, Verdict.TCP_STATE, Verdict.TCP_STATE)


def test_withdrawing_all_hands_everything_up_until_the_engine_has_looked_again(pair: Pair) -> None:
    connection = Connection()
    connect(pair, connection)
    offload.withdraw_all(pair.with_.sessions)
    assert pair.agree(wrapped(connection.data())) == Outcome.NOT_OFFLOADED
    assert pair.agree(wrapped(connection.data())) == Outcome.BOUNCED
    pair.books()


# Differences, as docs/cut-through.md lists them -----------------------------------------------------------


def settled(pair: Pair) -> Connection:
    """A connection whose both ends are known and whose segments are bounced."""
    connection = Connection(window=1000)
    connect(pair, connection)
    assert pair.agree(wrapped(connection.ack())) == Outcome.BOUNCED
    return connection


@pytest.mark.parametrize("offset", [5_000, 1_000_000, SEQUENCE_JUMP_MAX - 200, -3_000, -1_000_000])
def test_difference_1_data_outside_the_window_is_bounced(pair: Pair, offset: int) -> None:
    connection = settled(pair)
    stray = connection.segment(connection.client, "PA", b"d" * 100, seq=connection.client.next + offset)
    assert pair.send(wrapped(stray)) == (Outcome.BOUNCED, Verdict.FORWARD, Verdict.TCP_WINDOW)


@pytest.mark.parametrize("offset", [SEQUENCE_JUMP_MAX + 1, -SEQUENCE_JUMP_MAX - 1000, 1 << 31])
def test_but_never_data_far_outside(pair: Pair, offset: int) -> None:
    connection = settled(pair)
    stray = connection.segment(connection.client, "PA", b"d" * 100, seq=connection.client.next + offset)
    assert pair.send(wrapped(stray)) == (Outcome.SEQUENCE, Verdict.TCP_WINDOW, Verdict.TCP_WINDOW)


@pytest.mark.parametrize("offset", [-200_000, -1_000_000])
def test_difference_2_an_acknowledgement_that_is_too_old_is_bounced(pair: Pair, offset: int) -> None:
    connection = settled(pair)
    stray = connection.segment(connection.client, "A", ack=connection.server.next + offset)
    assert pair.send(wrapped(stray)) == (Outcome.BOUNCED, Verdict.FORWARD, Verdict.TCP_WINDOW)


@pytest.mark.parametrize("offset", [1, 1_000_000, -SEQUENCE_JUMP_MAX - 1, 1 << 31])
def test_but_never_one_of_what_was_not_sent(pair: Pair, offset: int) -> None:
    connection = settled(pair)
    stray = connection.segment(connection.client, "A", ack=connection.server.next + offset)
    assert pair.send(wrapped(stray)) == (Outcome.SEQUENCE, Verdict.TCP_WINDOW, Verdict.TCP_WINDOW)


def test_difference_3_after_the_program_a_window_counts_as_wide_as_it_may_be(pair: Pair) -> None:
    """What was offered in bounced packets is not known, so a reset is passed on that was just outside before."""
    connection = settled(pair)
    for inner in connection.exchange(2):
        assert pair.agree(wrapped(inner)) == Outcome.BOUNCED
    reset = connection.segment(connection.client, "R", seq=connection.client.next + 30_000)
    outcome, ours, alone = pair.send(wrapped(reset))
    assert (outcome, alone) == (Outcome.TCP_FLAGS, Verdict.TCP_RST_WINDOW)
    assert ours == Verdict.FORWARD, "unverified: the receiver challenges it"


def test_difference_4_a_session_that_was_just_over_lives_on(pair: Pair) -> None:
    """The engine ends it at its next packet; the program does not know time-outs, the ageing hand comes each second."""
    flow = Flow("10.0.0.1", "10.0.1.1", packets.UDP, 5000, 53)
    for sent in (flow.frame(), flow.turned().frame(), flow.frame()):
        pair.agree(sent)
    for state_ in (pair.with_, pair.without):
        (slot,) = np.flatnonzero(state_.sessions.table.hot[:, t.KEY2])
        state_.sessions.table.cold[slot, t.LAST_SEEN] -= int(state_.sessions.timeouts[tcp.UDP])
        state_.sessions.table.hot32[slot, t.SEEN] -= int(state_.sessions.timeouts[tcp.UDP]) >> t.SEEN_SHIFT
    outcome, ours, alone = pair.send(flow.frame())
    assert (outcome, ours, alone) == (Outcome.BOUNCED, Verdict.FORWARD, Verdict.FORWARD)
    (with_,), (without,) = (describe_sessions(state_.sessions) for state_ in (pair.with_, pair.without))
    assert with_["packets"] == 4, "the old session"
    assert without["packets"] == 1, "a new one"
    assert AGEING_PERIOD_NS <= SECOND_NS
