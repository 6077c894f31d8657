"""Offloaded sessions: the program sees their packets, and everybody else reads them as if the engine had.

The program is its twin in plain Python. ``node.drive`` sends a packet by way of it; what it does not bounce, the engine
judges.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from everwall.kernels import JIT
from everwall.limits import BEAT_STALE_NS, LOOP_GAP_NS_MAX, REFRESH_PASSES, SECOND_NS
from everwall.policy.match import allow_all, deny_all
from everwall.session import control, image, offload, state, tcp
from everwall.session import table as t
from everwall.session.offload import stamp, totals, withdraw_all
from everwall.verdict import Verdict
from tests import packets
from tests.cluster import Cluster, Node
from tests.conversations import Connection
from tests.naive.cutthrough import BOUNCED

pytestmark = pytest.mark.kernel

FORWARD = Verdict.FORWARD
CLIENT, SERVER = "10.0.0.1", "10.0.1.1"
ASK = packets.udp(CLIENT, SERVER, 5000, 53, b"question")
ANSWER = packets.udp(SERVER, CLIENT, 53, 5000, b"the answer")
EPOCHS = 1 << 15


def make_node(**config: object) -> Node:
    return Cluster().node(**{"cut_through": True, "resiliency": False} | config)


def established(node: Node, **options: object) -> Connection:
    """A connection that the program has taken over."""
    talk = Connection(**options)
    assert node.drive(*talk.handshake()) == [FORWARD] * 3
    assert node.drive(*talk.exchange(2)) == [BOUNCED] * 4
    return talk


def slot_of(node: Node) -> int:
    (slot,) = np.flatnonzero(node.engine.sessions_state.table.tags)
    return int(slot)


def flag_of(node: Node) -> int:
    return int(node.engine.sessions_state.table.hot32[slot_of(node), t.CONTROL])


# Who is offloaded ------------------------------------------------------------------------------------


def stories() -> dict[str, tuple[list[bytes], bool]]:
    """Packets, and whether their session needs no look after them."""
    opened, closing, reset, intruded = Connection(), Connection(), Connection(), Connection()
    foreign_syn = intruded.segment(intruded.client, "S", seq=77)
    return {
        "syn": ([Connection().syn()], False),
        "syn-ack": (Connection().handshake()[:2], False),
        "established": (opened.handshake(), True),
        "half-closed": ([*closing.handshake(), closing.fin()], False),
        "reset": ([*reset.handshake(), reset.rst()], False),
        "established, and somebody's syn": ([*intruded.handshake(), foreign_syn], True),
        "udp, one way": ([ASK, ASK], False),
        "udp, answered": ([ASK, ANSWER], True),
        "icmp": (
            [packets.icmp_echo(CLIENT, SERVER, 7), packets.icmp_echo(SERVER, CLIENT, 7, reply=True)],
            False,
        ),
        "other": ([packets.ip(CLIENT, SERVER, 47, b"gre"), packets.ip(SERVER, CLIENT, 47, b"gre")], False),
        "ipv6": (Connection("2001:db8::1", "2001:db8::2").handshake(), True),
    }


@pytest.mark.parametrize(("story", "expected"), stories().values(), ids=stories())
def test_a_session_is_offloaded_when_nobody_needs_to_look_at_it(story: list[bytes], expected: bool) -> None:
    node = make_node()
    assert set(node.drive(*story)) == {FORWARD}
    assert (flag_of(node) != 0) == expected
    assert node.only_session()["offloaded"] == expected
    assert node.engine.counters["offloaded"] == expected


def test_nothing_is_offloaded_where_there_is_no_program() -> None:
    node = make_node(cut_through=False)
    assert set(node.receive(*Connection().handshake(), ASK, ANSWER)) == {FORWARD}
    assert node.engine.counters["offloaded"] == 0
    assert not node.engine.sessions_state.table.hot32[:, t.CONTROL].any()


def test_a_session_taken_over_is_offloaded_when_its_windows_are_known_again() -> None:
    cluster, talk = Cluster(), Connection()
    former = cluster.node()
    former.judge(*talk.handshake())
    node = cluster.node(cut_through=True)
    assert node.drive(talk.data()) == [Verdict.PARK]
    node.serve()
    assert node.drive(talk.data(talk.server), talk.data()) == [FORWARD] * 2
    assert node.engine.counters["offloaded"] == 0
    cluster.wait(11)
    assert node.drive(talk.data()) == [FORWARD], "this one ends the learning"
    assert node.drive(talk.data(), talk.data(talk.server)) == [BOUNCED] * 2
    assert node.only_session()["packets"] == 2 + 6, "the record was written before its third packet counted"


# What is known of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_totals_are_those_of_program_and_engine_together(family: str) -> None:
    node = make_node()
    ends = (CLIENT, SERVER) if family == "ipv4" else ("2001:db8::1", "2001:db8::2")
    talk = Connection(*ends)
    sent = [*talk.handshake(), *talk.exchange(5), talk.data(talk.server, 1000), *talk.goodbye()]
    outcomes = node.drive(*sent)
    assert outcomes.count(BOUNCED) == 11
    assert node.only_session()["packets"] == len(sent)
    assert node.only_session()["bytes"] == sum(len(packet) for packet in sent)
    node.tick(20)
    (event,) = node.engine.events()
    assert (event[image.PACKETS], event[image.BYTES]) == (len(sent), sum(len(packet) for packet in sent))


def test_whoever_only_reads_sees_what_the_program_saw() -> None:
    node = make_node()
    established(node)
    node.cluster.wait(7)
    node.drive(*[Connection(client_start=1_301).data()] * 3)
    sessions = node.engine.sessions_state
    slots = np.array([slot_of(node)])
    read = [int(array[0]) for array in totals(sessions, slots)]
    cold = sessions.table.cold[slots[0]].copy()
    node.tick()  # the hand comes by
    assert cold[t.PACKETS] < read[1] == sessions.table.cold[slots[0], t.PACKETS]
    assert cold[t.LAST_SEEN] < read[0] == sessions.table.cold[slots[0], t.LAST_SEEN]
    assert read[2] == node.only_session()["bytes"]
    assert [int(array[0]) for array in totals(sessions, slots)] == read


def test_program_counters_may_wrap() -> None:
    node = make_node()
    talk = Connection()
    node.drive(*talk.handshake())
    table, slot = node.engine.sessions_state.table, slot_of(node)
    table.hot32[slot, t.PACKETS_LOWER : t.PACKETS_UPPER + 1] = 2**32 - 2
    table.small[slot, t.PACKETS_BASE : t.PACKETS_BASE + 2] = 2**32 - 2
    assert set(node.drive(*talk.exchange(5))) == {BOUNCED}
    assert node.only_session()["packets"] == 13
    node.tick()
    assert node.only_session()["packets"] == 13


def test_a_new_session_in_a_used_slot_begins_at_zero() -> None:
    node = make_node(max_sessions=64)
    established(node)
    slot = slot_of(node)
    node.tick(3601)
    assert node.sessions() == []
    table = node.engine.sessions_state.table
    assert table.hot32[slot, t.PACKETS_LOWER] == 2, "never set back: a packet may still be on its way"
    node.drive(*Connection().handshake())
    assert slot_of(node) == slot
    session = node.only_session()
    assert session["packets"] == 3
    table.hot32[slot, t.PACKETS_LOWER] += 1  # the old session's last packet, counted late
    assert node.only_session()["packets"] <= 4


# Time -----------------------------------------------------------------------------------------------------


def test_a_session_does_not_age_while_the_program_sees_its_packets() -> None:
    node = make_node()
    node.drive(ASK, ANSWER)
    for _ in range(20):
        node.tick(25)
        assert node.drive(ASK) == [BOUNCED]
    node.tick(29.9)
    assert len(node.sessions()) == 1
    node.tick(1)
    assert node.ends() == ["aged-out"]
    assert node.engine.counters["offloaded"] == 0
    assert node.drive(ASK) == [FORWARD], "a new session: the program does not know the old one any more"


def test_a_time_out_is_not_missed_because_the_hand_is_late() -> None:
    node = make_node()
    node.drive(ASK, ANSWER)
    node.cluster.wait(29)
    assert node.drive(ASK) == [BOUNCED]
    node.cluster.wait(29)
    first = packets.fragments(packets.udp(CLIENT, SERVER, 5000, 53, b"x" * 2000), 1200)[0]
    assert node.drive(first) == [FORWARD], "the engine sees it, and the session lives"
    assert node.only_session()["packets"] == 4


def test_the_store_hears_of_packets_that_only_the_program_saw() -> None:
    node = make_node(resiliency=True)
    talk = Connection()
    node.drive(*talk.handshake())
    node.serve()
    written = node.engine.counters["writes"]
    node.tick(1300)
    assert node.engine.counters["writes"] == written, "silent: its record is still true"
    assert node.drive(talk.data()) == [BOUNCED]
    node.tick_through(REFRESH_PASSES)
    (row,) = node.engine.outbox()
    assert row[image.OP] == image.WRITE
    assert row[image.PACKETS] == 4
    seen_s = node.cluster.time // SECOND_NS - REFRESH_PASSES
    assert abs(int(row[image.EXPIRY]) - (seen_s + 3600 + 120)) <= 1, "counted from the program's last-seen"
    assert node.engine.counters["refreshes"] == 1
    node.tick(1300)
    assert len(node.engine.outbox()) == 0


def test_the_program_clock_may_run_over() -> None:
    # SEEN has 32 bits of about a millisecond: 52 days.
    node = make_node()
    node.cluster.time += ((2**32 << t.SEEN_SHIFT) - node.now) - 10 * SECOND_NS
    node.drive(ASK, ANSWER)
    node.tick()
    for _ in range(4):
        node.cluster.wait(20)
        assert node.drive(ASK) == [BOUNCED]
        node.tick()
    assert node.now - node.only_session()["last_seen_ns"] < 2 << t.SEEN_SHIFT


# TCP goes on where the program has come ------------------------------------------------------------------


def long_gone(node: Node, start: int = 1_000, steps: int = 40, **options: object) -> Connection:
    """A connection that has moved on by some hundreds of megabytes in the program alone."""
    talk = Connection(client_start=start, server_start=start + 500, **options)
    node.drive(*talk.handshake())
    for _ in range(steps):
        for end in (talk.client, talk.server):
            # Segments of 60,000 bytes, every two hundredth of them.
            end.next = (end.next + 199 * 60_000) % 2**32
            assert node.drive(talk.data(end, 1000)) == [BOUNCED]
    return talk


@pytest.mark.parametrize("start", [1_000, 2**32 - 300_000_000], ids=["low", "wraps"])
def test_a_fin_after_a_long_offload_closes(start: int) -> None:
    node = make_node()
    talk = long_gone(node, start)
    assert node.drive(*talk.goodbye()) == [FORWARD] * 3
    assert node.only_session()["state"] == "time-wait"
    assert node.engine.counters["offloaded"] == 0


def test_fragmented_segments_among_bounced_ones_do_not_push_the_window_ahead() -> None:
    # How far a fragmented segment reaches is not known; taken each time as far as a widened window, the honest
    # segments would soon lie behind it.
    node = make_node()
    talk = established(node)
    for ident in range(8):
        assert node.drive(talk.data(), talk.ack(talk.server)) == [BOUNCED] * 2
        whole = talk.data(size=400)
        assert node.drive(*packets.fragments(whole, 200, ident)) == [FORWARD] * len(
            packets.fragments(whole, 200)
        )
    assert node.drive(*talk.exchange(), *talk.goodbye()) == [BOUNCED] * 2 + [FORWARD] * 3


@pytest.mark.parametrize("start", [1_000, 2**32 - 300_000_000], ids=["low", "wraps"])
def test_an_rst_is_judged_by_the_sequence_that_the_program_reached(start: int) -> None:
    node = make_node()
    talk = long_gone(node, start)
    beyond = talk.segment(talk.client, "R", seq=talk.client.next + 65_536)
    behind = talk.segment(talk.client, "R", seq=start + 1)
    assert node.drive(beyond, behind) == [Verdict.TCP_RST_WINDOW] * 2
    assert node.only_session()["offloaded"], "a refused packet costs nothing"
    assert node.drive(talk.rst()) == [FORWARD]
    assert node.only_session()["state"] == "closed", "exact: RFC 5961"


def test_an_rst_inside_the_window_is_not_believed() -> None:
    node = make_node()
    talk = long_gone(node)
    assert node.drive(talk.segment(talk.client, "R", seq=talk.client.next + 100)) == [FORWARD]
    assert node.only_session()["state"] == "unverified-rst"
    assert node.drive(talk.data()) == [FORWARD], "not bounced while there is doubt"
    assert node.only_session()["state"] == "established"
    assert node.drive(talk.data()) == [BOUNCED]


def test_a_retransmission_that_the_engine_has_to_judge_is_in_the_window() -> None:
    node = make_node()
    talk = long_gone(node)
    again = talk.segment(talk.client, "PA", b"d" * 1000, seq=talk.client.next - 30_000)
    withdraw_all(node.engine.sessions_state)
    assert node.drive(again) == [FORWARD]
    assert node.drive(again) == [BOUNCED]
    stray = talk.segment(talk.client, "FA", seq=talk.client.next - 5_000_000)
    assert node.drive(stray) == [Verdict.TCP_WINDOW]


def test_windows_that_grew_meanwhile_are_as_wide_as_their_scale_allows() -> None:
    node = make_node()
    talk = Connection(client_scale=7, server_scale=7)
    talk.client.window = talk.server.window = 500  # 64,000 bytes once scaled
    node.drive(*talk.handshake(), *talk.exchange())
    talk.client.window = talk.server.window = 50_000  # 6.4 million
    assert node.drive(*talk.exchange()) == [BOUNCED] * 2
    withdraw_all(node.engine.sessions_state)
    lost_before = talk.segment(talk.server, "A", seq=talk.server.next + 6_000_000)
    assert node.drive(lost_before) == [FORWARD]
    old = talk.segment(talk.client, "FA", seq=talk.client.next - 6_000_000)
    assert node.drive(old) == [FORWARD]


def test_windows_do_not_grow_where_there_is_no_scale() -> None:
    node = make_node()
    talk = established(node)
    withdraw_all(node.engine.sessions_state)
    assert node.drive(talk.segment(talk.client, "FA", seq=talk.client.next + 65_540)) == [Verdict.TCP_WINDOW]


def test_more_than_half_the_sequence_space_between_two_looks() -> None:
    node = make_node()
    talk = long_gone(node, steps=250)  # 2,985,000,000 bytes each way, and nobody came by
    assert node.drive(*talk.goodbye()) == [FORWARD] * 3
    assert node.only_session()["state"] == "time-wait"


def test_a_packet_counted_late_does_not_turn_the_sequence_back() -> None:
    node = make_node()
    talk = established(node)
    table, slot = node.engine.sessions_state.table, slot_of(node)
    late = int(table.hot32[slot, t.END_LOWER])
    assert node.drive(talk.segment(talk.client, "UA", b"u" * 500)) == [FORWARD], "urgent: the engine's"
    # On another core the program was about to note a packet from before.
    table.hot32[slot, t.END_LOWER] = late
    table.hot32[slot, t.PACKETS_LOWER] += 1
    withdraw_all(node.engine.sessions_state)
    assert node.drive(talk.ack(talk.server)) == [FORWARD], "it acknowledges the 500 bytes"


def test_a_segment_far_off_is_the_engines() -> None:
    node = make_node()
    talk = established(node)
    far = talk.segment(talk.client, "A", seq=talk.client.next + (1 << 25))
    assert node.drive(far) == [Verdict.TCP_WINDOW]
    assert node.drive(talk.data()) == [BOUNCED], "and moved nothing"


# Withdrawn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_closing_connection_is_withdrawn(how: str) -> None:
    node = make_node()
    talk = established(node)
    node.drive(talk.fin() if how == "fin" else talk.rst())
    assert flag_of(node) == 0
    assert BOUNCED not in node.drive(talk.data(), talk.data(talk.server))


def test_a_parked_packet_that_is_resumed_finds_its_session_taken_back() -> None:
    # A FIN overtakes the data before it, to a node whose session was quiet: it asks, and meanwhile the data come.
    node = make_node(resiliency=True)
    talk = established(node)
    node.cluster.wait(1)
    fin = talk.segment(talk.client, "FA", seq=talk.client.next + 140 * 1_000)
    assert node.drive(fin) == [Verdict.PARK], "outside the window"
    assert node.drive(*[talk.data(size=1_000) for _ in range(140)])[1:] == [BOUNCED] * 139
    (asked,) = [row for row in node.engine.outbox() if row[image.OP] == image.LOOKUP]
    node.reply(asked.reshape(1, -1), image.MISSING)
    assert node.released, "by now it is in the window"
    assert node.only_session()["state"] == "half-closed"
    assert flag_of(node) == 0, "nobody but the engine forwards for a connection that closes"


def test_another_policy_takes_back_what_it_refuses_and_nothing_else() -> None:
    node = make_node()
    talk = established(node)
    node.engine.replace_policy(allow_all())
    node.tick()
    assert node.drive(talk.data()) == [BOUNCED], "what goes on is not touched"
    node.engine.replace_policy(deny_all())
    node.tick()
    assert node.program.run(talk.data(), 0, node.now) == "no-session"
    assert node.sessions() == []
    (ended,) = node.engine.events()
    assert tcp.END_NAMES[int(ended[state.EVENT_REASON])] == "policy-deny"
    assert ended[image.PACKETS] == 8, "what the program saw is not forgotten"


def test_a_session_lost_to_another_node_is_withdrawn() -> None:
    node = make_node(resiliency=True)
    talk = established(node)
    (written,) = node.engine.outbox()
    node.reply(written.reshape(1, -1), image.LOST)
    assert node.sessions() == []
    assert not node.engine.sessions_state.table.hot32[:, t.CONTROL].any()
    assert node.drive(talk.data()) == [Verdict.PARK]
    assert node.engine.counters["offloaded"] == 0


def test_a_connection_begun_anew_on_the_same_tuple_starts_in_the_engine() -> None:
    node = make_node()
    talk = established(node)
    node.drive(*talk.goodbye())
    again = Connection(client_start=3_000_000_000, server_start=9)
    assert node.drive(again.syn()) == [FORWARD]
    assert flag_of(node) == 0
    assert node.ends() == ["tcp-fin"]
    assert node.drive(again.syn_ack(), again.ack()) == [FORWARD] * 2
    assert node.drive(again.data()) == [BOUNCED]
    assert node.only_session()["packets"] == 4


def test_a_connection_lost_by_its_server_begins_anew_although_it_was_offloaded() -> None:
    node = make_node()
    talk = established(node)
    again = Connection(client_start=3_000_000_000, server_start=9)
    assert node.drive(again.syn()) == [FORWARD]
    assert node.drive(talk.data()) == [BOUNCED], "an intruder's SYN costs nothing"
    assert node.drive(again.syn_ack(), again.ack()) == [FORWARD] * 2, (
        "but this server has lost the old connection"
    )
    assert node.drive(again.data()) == [BOUNCED]
    assert node.ends() == ["tcp-reuse"]
    assert node.only_session()["packets"] == 3


def test_a_session_handed_over_takes_its_totals_along() -> None:
    node = make_node()
    established(node)
    node.engine.hand_over(slot_of(node), node.now)
    (row,) = node.engine.outbox()
    assert row[image.PACKETS] == 7
    assert node.engine.counters["offloaded"] == 0


# Epochs ----------------------------------------------------------------------------------------------------


def test_flags_of_older_epochs_are_cleared_as_the_hand_comes_by() -> None:
    node = make_node()
    established(node)
    withdraw_all(node.engine.sessions_state)
    assert flag_of(node) != 0, "withdrawing all touches no session"
    assert node.engine.counters["offloaded"] == 1
    node.tick(1)
    assert flag_of(node) == 0
    assert node.engine.counters["offloaded"] == 0
    assert node.only_session()["packets"] == 7


def test_no_flag_comes_to_life_when_the_epochs_begin_anew() -> None:
    node = make_node()
    talk = established(node)
    epoch = flag_of(node) >> 16
    for _ in range(EPOCHS):  # in no time: the hand does not come by
        withdraw_all(node.engine.sessions_state)
    assert node.engine.sessions_state.words[state.EPOCH] == epoch, "the same number again"
    assert flag_of(node) == 0
    assert node.drive(talk.data()) == [FORWARD]
    assert node.only_session()["packets"] == 8


@pytest.mark.skipif(JIT, reason="looks into the middle of a kernel")
def test_nothing_is_bounced_while_old_flags_are_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    node = make_node()
    talk = established(node)
    meanwhile = []

    def watched(sessions: state.Sessions, slot: int) -> None:
        meanwhile.append(node.program.run(talk.data(), 0, node.now))
        taken_back(sessions, slot)

    taken_back = offload._take_back
    monkeypatch.setattr(offload, "_take_back", watched)
    node.engine.sessions_state.words[state.EPOCH] = EPOCHS - 1
    withdraw_all(node.engine.sessions_state)
    assert meanwhile == ["not-offloaded"], "a flag of the epoch 0 before this one"


def test_every_offload_has_another_version() -> None:
    # The program compares CONTROL before and after it has compared the key.
    node = make_node()
    talk = established(node)
    seen = {flag_of(node)}
    for _ in range(5):
        node.drive(talk.segment(talk.client, "UA"))
        seen.add(flag_of(node))
    assert len(seen) == 6
    assert {flag & control.EPOCH_MASK for flag in seen} == {1}


# The dead man's word ----------------------------------------------------------------------------------------


def test_a_loop_that_stands_still_bounces_nothing() -> None:
    node = make_node()
    talk = established(node)
    assert node.program.run(talk.data(), 0, node.now + BEAT_STALE_NS) == BOUNCED
    assert node.program.run(talk.data(), 0, node.now + BEAT_STALE_NS + 1) == "stale"


def test_a_loop_that_comes_back_takes_its_sessions_back_first() -> None:
    node = make_node()
    sessions = node.engine.sessions_state
    talk = established(node)
    now = node.now + LOOP_GAP_NS_MAX
    stamp(sessions, now)
    assert node.program.run(talk.data(), 0, now) == BOUNCED, "within the bound"
    stamp(sessions, now + LOOP_GAP_NS_MAX + 1)
    assert node.program.run(talk.data(), 0, now + LOOP_GAP_NS_MAX + 1) == "not-offloaded"


# All together ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_with_and_without_the_program_it_is_the_same_firewall(seed: int) -> None:
    """Whatever two honest ends send: same verdicts, same states, same totals."""
    print(f"seed {seed}")
    dice = random.Random(seed)
    cluster = Cluster()
    plain = cluster.node(resiliency=False)
    fast = cluster.node(resiliency=False, cut_through=True)
    talks = [
        Connection(sport=sport, client_start=dice.randrange(2**32), server_start=dice.randrange(2**32))
        for sport in range(1, 9)
    ]
    waiting = [talk.handshake() for talk in talks]
    bounced = 0
    for _ in range(600):
        which = dice.randrange(len(talks))
        talk, queue = talks[which], waiting[which]
        if not queue:
            if dice.random() < 0.02:
                queue += talk.goodbye()
                talks[which] = Connection(sport=which + 1, client_start=dice.randrange(2**32))
                waiting[which] = queue + talks[which].handshake()
                queue = waiting[which]
            else:
                end = dice.choice([talk.client, talk.server])
                queue += [talk.ack(end)] if dice.random() < 0.5 else [talk.data(end, 1400) for _ in range(3)]
        packet = queue.pop(0)
        (expected,) = plain.receive(packet)
        (outcome,) = fast.drive(packet)
        bounced += outcome == BOUNCED
        assert expected == (FORWARD if outcome == BOUNCED else outcome)
        if dice.random() < 0.1:
            for node in (plain, fast):
                node.tick()
            cluster.wait(dice.random())
    assert bounced > 200
    assert plain.ends() == fast.ends()
    assert told(plain) == told(fast)


def told(node: Node) -> list[dict]:
    """What is said of each session, but for what a millisecond or the program's presence changes."""
    left_out = ("last_seen_ns", "offloaded", "id", "start_ms")
    rows = [{k: v for k, v in row.items() if k not in left_out} for row in node.sessions()]
    return sorted(rows, key=lambda row: (row["sport"], row["dport"]))
