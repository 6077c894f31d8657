"""The program against its plain twin: the same frames, the same outcome, the same bytes, the same books."""

from __future__ import annotations

import itertools
import struct
from collections import Counter
from collections.abc import Iterator
from random import Random

import pytest

from everwall.limits import BEAT_STALE_NS, MS_NS, SEQUENCE_JUMP_MAX
from everwall.session import control
from everwall.session import table as t
from tests import needs, packets
from tests.cutthrough import EPOCH, FLOWS, Flow, Rig
from tests.frames import GATEWAY_MAC, GENEVE_AT, frame, sealed
from tests.naive.cutthrough import BOUNCED, returned, sums_up

TCP_V4, UDP_V4, TCP_V6, UDP_V6 = FLOWS[:4]


@pytest.fixture(scope="module")
def loaded() -> Iterator[Rig]:
    needs.xdp()
    made = Rig()
    yield made
    made.close()


@pytest.fixture
def rig(loaded: Rig) -> Rig:
    loaded.begin()
    for flow in FLOWS:
        loaded.add(flow)
    return loaded


# What is bounced ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", FLOWS, ids=str)
@pytest.mark.parametrize("size", [0, 1, 24, 512, 1400])
def test_both_directions_of_an_offloaded_session_are_bounced(rig: Rig, flow: Flow, size: int) -> None:
    assert rig.run(flow.frame(size)) == BOUNCED
    assert rig.run(flow.turned().frame(size)) == BOUNCED
    assert rig.line(flow)[t.PACKETS_LOWER : t.PACKETS_UPPER + 1].sum() == 2


def test_a_bounced_packet_keeps_its_geneve_header_and_source_port(rig: Rig) -> None:
    sent = TCP_V4.frame()
    assert rig.run(sent) == BOUNCED
    back = returned(sent)  # which is what the program made of it, byte for byte
    assert back[:12] == sent[6:12] + sent[:6], "MACs swapped"
    assert back[26:34] == sent[30:34] + sent[26:30], "addresses swapped"
    assert back[34:40] == sent[34:40], "ports as they came: source kept, destination 6081"
    assert back[40:42] == b"\0\0", "no UDP checksum"
    assert back[GENEVE_AT:] == sent[GENEVE_AT:], "GENEVE header and inner packet byte for byte"
    assert sums_up(back[14:34])


@pytest.mark.parametrize("ttl", range(0, 256, 3))
def test_the_outer_time_to_live_begins_anew_and_the_checksum_follows(rig: Rig, ttl: int) -> None:
    inner = packets.geneve(TCP_V4.inner())
    for packet_id in (0, 1, 0x7FFF, 0xFFFF):
        assert rig.run(frame(inner, ttl=ttl, packet_id=packet_id)) == BOUNCED


def test_any_checksum_that_is_right_stays_right(rig: Rig) -> None:
    """The header id walks through enough values for sums near all ones."""
    inner = packets.geneve(TCP_V4.inner())
    for packet_id in Random(5).sample(range(1 << 16), 2000):
        assert rig.run(frame(inner, ttl=255, packet_id=packet_id)) == BOUNCED


@pytest.mark.parametrize("word", ["don't fragment", "reserved bit"])
def test_bits_that_the_engine_does_not_look_at_do_not_matter(rig: Rig, word: str) -> None:
    for flow in (TCP_V4, UDP_V4):
        inner = bytearray(flow.inner())
        inner[6] = 0x40 if word == "don't fragment" else 0x80
        fixed = packets.fix_ipv4_checksum(bytes(inner))
        assert rig.run(frame(packets.geneve(fixed, flow.endpoint))) == BOUNCED


@pytest.mark.parametrize("bits", range(64))
def test_reserved_geneve_bits_and_the_network_id_do_not_matter(rig: Rig, bits: int) -> None:
    header = packets.geneve(
        TCP_V4.inner(), reserved=bits, reserved_last=bits * 4, vni=bits * 7919, critical=bits % 2 == 1
    )
    assert rig.run(frame(header)) == BOUNCED


# TCP ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", [TCP_V4, TCP_V6], ids=["ipv4", "ipv6"])
def test_only_plain_acknowledged_segments_are_bounced(rig: Rig, flow: Flow) -> None:
    bounced = [flags for flags in range(256) if rig.run(flow.frame(flags=flags)) == BOUNCED]
    plain = packets.flag_bits("A")
    others = [packets.flag_bits(flags) for flags in ("P", "E", "C", "PE", "PC", "EC", "PEC")]
    assert bounced == sorted([plain] + [plain | other for other in others])


def test_the_highest_sequence_end_of_each_direction_is_kept(rig: Rig) -> None:
    for sequence, end in ((1000, 1024), (5000, 5024), (2000, 5024), (5024, 5048)):
        assert rig.run(TCP_V4.frame(24, seq=sequence)) == BOUNCED
        assert rig.line(TCP_V4)[t.END_LOWER] == end
    assert rig.line(TCP_V4)[t.END_UPPER] == 1000, "the other direction's own"


def test_sequences_wrap_around(rig: Rig) -> None:
    flow = Flow("10.3.0.1", "10.3.0.2", packets.TCP, 1, 2)
    rig.add(flow, (2**32 - 100, 1))
    for sequence in (2**32 - 100, 2**32 - 24, 2**32 - 12, 5):
        assert rig.run(flow.frame(24, seq=sequence)) == BOUNCED
    assert rig.line(flow)[t.END_LOWER] == 29


@pytest.mark.parametrize("sign", [1, -1])
def test_a_segment_too_far_off_is_handed_up_and_changes_nothing(rig: Rig, sign: int) -> None:
    nearest = 1000 - 24 + sign * SEQUENCE_JUMP_MAX
    assert rig.run(TCP_V4.frame(24, seq=(nearest + sign) % 2**32)) == "sequence"
    assert rig.line(TCP_V4)[t.END_LOWER] == 1000
    assert rig.run(TCP_V4.frame(24, seq=nearest % 2**32)) == BOUNCED


@pytest.mark.parametrize("sent", [1000, 5, 2**32 - 5])
def test_what_was_not_sent_cannot_be_acknowledged(rig: Rig, sent: int) -> None:
    # So a stranger who wants to be believed has to guess two numbers.
    flow = Flow("10.3.0.1", "10.3.0.2", packets.TCP, 1, 2)
    rig.add(flow, (1000, sent))
    for behind, outcome in (
        (0, BOUNCED),
        (100, BOUNCED),
        (SEQUENCE_JUMP_MAX, BOUNCED),
        (SEQUENCE_JUMP_MAX + 1, "sequence"),
        (-1, "sequence"),
    ):
        assert rig.run(flow.frame(24, ack=(sent - behind) % 2**32)) == outcome


@pytest.mark.parametrize("words", range(16))
def test_a_tcp_header_has_to_fit_its_packet(rig: Rig, words: int) -> None:
    outcome = rig.run(TCP_V4.frame(24, data_offset=words))
    assert outcome == (BOUNCED if 5 <= words <= 11 else "transport-header")


@pytest.mark.parametrize("flow", [UDP_V4, UDP_V6], ids=["ipv4", "ipv6"])
def test_a_datagram_may_be_shorter_than_its_packet_never_longer(rig: Rig, flow: Flow) -> None:
    for length in range(64):
        outcome = rig.run(flow.frame(24, length=length))
        assert outcome == (BOUNCED if 8 <= length <= 32 else "transport-header")


# Options --------------------------------------------------------------------------------------------------


def option_lists() -> Iterator[tuple[bytes, ...]]:
    """Every order of up to four of the options that a sender might write, AWS's and others."""
    endpoint = packets.endpoint_option(1)
    some = [
        endpoint,
        packets.attachment_option(7),
        packets.cookie_option(9),
        packets.endpoint_option(2),
        packets.option(0x0108, 1, b"abcd"),
        packets.option(0x0108, 2, b"abcd"),
        packets.option(0x0108, 3, b"abcdefgh"),
        packets.option(0x0108, 4, b"abcd"),
        packets.option(0x0102, 1, b"abcdefgh"),
        packets.option(0x0108, 0x83, b"abcd"),
        packets.option(0x0108, 1, struct.pack("!Q", 1), reserved=7),
        packets.option(0x0108, 3, b""),
    ]
    for count in range(4):
        yield from itertools.permutations(some, count)
    for extra in some[3:]:
        yield from itertools.permutations([*some[:3], extra])


def test_options_in_every_order(rig: Rig) -> None:
    inner = TCP_V4.inner()
    seen = Counter(rig.run(frame(packets.geneve(inner, options=options))) for options in option_lists())
    assert set(seen) == {BOUNCED, "options", "no-session"}
    assert rig.run(frame(packets.geneve(inner, options=[packets.endpoint_option(1)]))) == BOUNCED


@pytest.mark.parametrize("words", range(64))
def test_a_header_length_that_is_not_that_of_its_options(rig: Rig, words: int) -> None:
    assert (rig.run(frame(packets.geneve(TCP_V4.inner(), option_words=words))) == BOUNCED) == (words == 8)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_another_version_of_geneve_is_handed_up(rig: Rig, version: int) -> None:
    assert rig.run(frame(packets.geneve(TCP_V4.inner(), version=version))) == "options"


def test_a_control_packet_and_another_payload_type_are_handed_up(rig: Rig) -> None:
    inner = TCP_V4.inner()
    assert rig.run(frame(packets.geneve(inner, control=True))) == "inner-protocol"
    assert rig.run(frame(packets.geneve(inner, protocol_type=0x6558))) == "inner-protocol"
    assert rig.run(frame(packets.geneve(inner, protocol_type=0x86DD))) == "length"
    assert rig.run(frame(packets.geneve(TCP_V6.inner(), protocol_type=0x0800))) == "length"


def test_an_endpoint_id_whose_low_word_is_0_is_an_endpoint_like_any_other(rig: Rig) -> None:
    assert TCP_V6.endpoint & 0xFFFFFFFF == 0
    assert rig.run(TCP_V6.frame()) == BOUNCED
    for endpoint in (0, TCP_V6.endpoint >> 32, TCP_V6.endpoint | 1):
        assert rig.run(frame(packets.geneve(TCP_V6.inner(), endpoint))) == "no-session"


# What is ours ---------------------------------------------------------------------------------------------


def test_foreign_sources_are_handed_up_and_other_addresses_left_alone(rig: Rig) -> None:
    payload = packets.geneve(TCP_V4.inner())
    for source, wanted in (
        ("10.9.0.0", BOUNCED),
        ("10.9.0.255", BOUNCED),
        ("192.0.2.7", BOUNCED),
        ("10.8.255.255", "source"),
        ("10.9.1.0", "source"),
        ("192.0.2.8", "source"),
    ):
        assert rig.run(frame(payload, source=source)) == wanted
    for destination in ("10.9.0.3", "255.255.255.255", "0.0.0.0"):
        assert rig.run(frame(payload, destination=destination)) == "passed"


def test_without_addresses_every_destination_is_ours() -> None:
    needs.xdp()
    rig = Rig(addresses=())
    rig.add(TCP_V4)
    for destination in ("10.9.0.3", "203.0.113.9"):
        assert rig.run(frame(packets.geneve(TCP_V4.inner()), destination=destination)) == BOUNCED
    rig.close()


def test_what_is_not_geneve_over_plain_ipv4_goes_to_the_kernel(rig: Rig) -> None:
    payload = packets.geneve(TCP_V4.inner())
    for other in (
        frame(payload, dport=6080),
        frame(payload, sport=6081, dport=40_000),
        frame(payload, more=True),
        frame(payload, offset=8),
        frame(payload, ip_options=b"\1\1\1\0"),
        frame(payload, ether_type=0x86DD),
        frame(payload, ether_type=0x8100),
        frame(payload, macs=b"\xff" * 6 + GATEWAY_MAC),
        frame(payload, macs=bytes.fromhex("01005e000001") + GATEWAY_MAC),
        frame(payload)[:23] + b"\6" + frame(payload)[24:],
        packets.tcp("10.9.0.1", "10.9.0.2", 50_000, 22, "A", payload=b"ssh"),
        bytes(14),
        b"\xff" * 12 + b"\x08\x06" + bytes(46),
    ):
        assert rig.run(other) == "passed"


def test_a_wrong_outer_checksum_is_the_kernels_business(rig: Rig) -> None:
    right = TCP_V4.frame()
    for at in range(14, 34):
        wrong = right[:at] + bytes([right[at] ^ 4]) + right[at + 1 :]
        assert rig.run(wrong) == "passed"


# Lengths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", FLOWS[:4], ids=["tcp4", "udp4", "tcp6", "udp6"])
def test_a_frame_cut_off_at_any_length_is_not_bounced(rig: Rig, flow: Flow) -> None:
    whole = flow.frame(3)
    for length in range(14, len(whole)):
        assert rig.run(whole[:length]) != BOUNCED
        if length >= GENEVE_AT:
            assert rig.run(sealed(whole[:length])) != BOUNCED, "nor where the outer lengths fit"
    assert rig.run(whole) == BOUNCED


def test_bytes_after_the_packet_are_doubt(rig: Rig) -> None:
    whole = TCP_V4.frame(3)
    for extra in (1, 2, 60):
        assert rig.run(whole + bytes(extra)) == "length"
        assert rig.run(sealed(whole + bytes(extra))) == "length"


@pytest.mark.parametrize("flow", FLOWS[:4], ids=["tcp4", "udp4", "tcp6", "udp6"])
def test_a_length_field_that_does_not_fit_is_doubt(rig: Rig, flow: Flow) -> None:
    inner = flow.inner(8)
    for length in [*range(len(inner) + 20), 65_535]:
        fields = {"total_length": length} if "." in flow.source else {"payload_length": length}
        right = len(inner) if "." in flow.source else len(inner) - 40
        outcome = rig.run(flow.frame(8, **fields))
        assert outcome == (BOUNCED if length == right else "length")
        outcome = rig.run(frame(packets.geneve(inner, flow.endpoint), udp_length=length))
        assert outcome in (BOUNCED, "length")


# Inner packets --------------------------------------------------------------------------------------------


def test_inner_headers_that_only_the_engine_reads(rig: Rig) -> None:
    cases = [
        (TCP_V4.inner(ip_options=b"\1\1\1\0"), "inner-protocol"),
        (TCP_V4.inner(more=True), "fragment"),
        (TCP_V4.inner(offset=64), "fragment"),
        (TCP_V6.inner(extensions=[packets.ipv6_options()]), "inner-protocol"),
        (TCP_V6.inner(extensions=[packets.ipv6_fragment(7)]), "inner-protocol"),
        (packets.icmp_echo("10.0.0.1", "10.0.1.1"), "inner-protocol"),
        (packets.icmp_echo("2001:db8::1", "2001:db8::2"), "inner-protocol"),
        (packets.ip("10.0.0.1", "10.0.1.1", 50, bytes(40)), "inner-protocol"),
        (b"\x55" + TCP_V4.inner()[1:], "inner-protocol"),
        (b"\x44" + TCP_V4.inner()[1:], "inner-protocol"),
    ]
    for inner, wanted in cases:
        assert (
            rig.run(frame(packets.geneve(inner, protocol_type=0x86DD if inner[0] >> 4 == 6 else 0x0800)))
            == wanted
        )


def test_a_wrong_inner_checksum_is_handed_up(rig: Rig) -> None:
    inner = TCP_V4.inner()
    for at in (1, 4, 5, 8, 10, 11, 12, 15, 16, 19):
        wrong = inner[:at] + bytes([inner[at] ^ 1]) + inner[at + 1 :]
        assert rig.run(frame(packets.geneve(wrong))) == "inner-checksum"


# The table ------------------------------------------------------------------------------------------------


def test_a_full_table_is_found_whole_and_nothing_else_in_it() -> None:
    """Thousands of flows by random numbers: key, signature, hash, tag and sets are those of the Python sources."""
    needs.xdp()
    rig, rng = Rig(sessions=3000, workers=3), Random(3)

    def some(family: int) -> Flow:
        protocol = rng.choice([packets.TCP, packets.UDP])
        prefix = "10." if family == 4 else "2001:db8::"
        join = "." if family == 4 else ":"
        size = 255 if family == 4 else 0xFFFF
        ends = [
            prefix + join.join(f"{rng.randrange(size):{'d' if family == 4 else 'x'}}" for _ in range(3))
            for _ in "ab"
        ]
        return Flow(*ends, protocol, rng.randrange(1 << 16), rng.randrange(1 << 16), rng.randrange(1 << 64))

    flows = list({some(rng.choice([4, 6])) for _ in range(2500)})
    for flow in flows:
        rig.add(flow)
    for flow in flows:
        assert rig.run(rng.choice([flow, flow.turned()]).frame(rng.randrange(60))) == BOUNCED
    for flow in (some(rng.choice([4, 6])) for _ in range(1000)):
        if flow not in rig.slots and flow.turned() not in rig.slots:
            assert rig.run(flow.frame()) == "no-session"
    assert {worker for worker, _ in rig.slots.values()} == {0, 1, 2}
    rig.close()


def test_a_session_with_the_same_signature_but_other_addresses_is_not_taken(rig: Rig) -> None:
    worker, slot = rig.slots[TCP_V6]
    rig.tables[worker].addresses[slot, t.UPPER_LOW] ^= 1
    assert rig.run(TCP_V6.frame()) == "no-session"


def test_several_slots_with_the_right_tag_are_all_compared(rig: Rig) -> None:
    _, slot = rig.slots[TCP_V4]
    table = rig.tables[0]
    table.tags[:] = table.tags[slot]
    assert rig.run(TCP_V4.frame()) == BOUNCED


def test_counters_run_freely(rig: Rig) -> None:
    line = rig.line(TCP_V4)
    line[t.PACKETS_LOWER] = 2**32 - 1
    assert rig.run(TCP_V4.frame()) == BOUNCED
    assert line[t.PACKETS_LOWER] == 0


# What the engine wants ------------------------------------------------------------------------------------


def test_a_session_that_is_not_offloaded_is_handed_up(rig: Rig) -> None:
    rig.line(TCP_V4)[t.CONTROL] = 0
    assert rig.run(TCP_V4.frame()) == "not-offloaded"


def test_a_new_epoch_withdraws_all(rig: Rig) -> None:
    rig.word(0, control.WANT, (EPOCH + 1) << 16 | 1)
    assert {rig.run(flow.frame()) for flow in FLOWS} == {"not-offloaded"}


def test_before_a_worker_has_said_what_it_wants_nothing_is_bounced(rig: Rig) -> None:
    """Nor is a session whose flag is 0, though 0 equals 0."""
    rig.word(0, control.WANT, 0)
    rig.line(UDP_V4)[t.CONTROL] = 0
    assert {rig.run(flow.frame()) for flow in FLOWS} == {"not-offloaded"}


def test_a_worker_that_hangs_gets_every_packet(rig: Rig) -> None:
    rig.beat(age=BEAT_STALE_NS + 50 * MS_NS)
    assert {rig.run(flow.frame()) for flow in FLOWS} == {"stale"}
    for flow in FLOWS:
        for _ in range(100):
            rig.beat(age=BEAT_STALE_NS - 400 * MS_NS)
            outcome = rig.run(flow.frame())
            if outcome != "stale":  # where it is, the machine stood still for the rest of the time
                break
        assert outcome == BOUNCED


def test_the_dead_mans_word_is_each_workers_own() -> None:
    needs.xdp()
    rig = Rig(workers=2)
    flows = [Flow("10.0.0.1", "10.0.1.1", packets.TCP, port, 80) for port in range(1000, 1020)]
    for flow in flows:
        rig.add(flow)
    for flow in flows:
        worker, _ = rig.slots[flow]
        hangs = worker == 1
        rig.stay_alive()
        if hangs:
            rig.beat(2 * BEAT_STALE_NS, [worker])
        assert rig.run(flow.frame()) == ("stale" if hangs else BOUNCED)
    rig.close()


def test_a_disabled_program_hands_everything_up_and_leaves_the_rest_alone(rig: Rig) -> None:
    rig.program.control[control.ENABLED] = 0
    assert rig.run(TCP_V4.frame()) == "disabled"
    assert rig.run(frame(b"", dport=53)) == "passed"


# What the worker takes ------------------------------------------------------------------------------------


def test_what_the_worker_has_no_room_for_is_dropped_before_it_is_copied(rig: Rig) -> None:
    """Strays leave room for packets of sessions, and what is bounced needs none."""
    stray = Flow("10.7.7.7", "10.0.1.1", packets.UDP, 4000, 53).frame()
    rig.line(UDP_V4)[t.CONTROL] = 0
    rig.room(control.ROOM_KEPT + 1)
    assert [rig.run(stray) for _ in range(2)] == ["no-session", "no-room"]
    assert rig.run(UDP_V4.frame()) == "not-offloaded"
    assert rig.run(TCP_V4.frame(flags="FA")) == "tcp-flags"
    rig.room(1)
    assert [rig.run(UDP_V4.frame()) for _ in range(2)] == ["not-offloaded", "no-room"]
    assert rig.run(TCP_V4.frame()) == BOUNCED
    assert rig.run(frame(b"", dport=53)) == "passed"


# By chance ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_damaged_frames(rig: Rig, seed: int) -> None:
    """Bytes changed at random, most of them behind checksums that were made right again."""
    rng = Random(seed)
    seen: Counter[str] = Counter()
    for _ in range(1500):
        flow = rng.choice(FLOWS)
        flow = rng.choice([flow, flow.turned()])
        damaged = bytearray(flow.frame(rng.choice([0, 0, 1, 24, 100]), seq=rng.choice([1000, 1010, 10**9])))
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            at = rng.randrange(12 if rng.random() < 0.2 else GENEVE_AT, len(damaged))
            damaged[at] = rng.choice([damaged[at] ^ 1 << rng.randrange(8), rng.randrange(256)])
        result = bytes(damaged)
        if rng.random() < 0.3:
            at = GENEVE_AT + 8 + 4 * (result[GENEVE_AT] % 64)
            if len(result) >= at + 20 and result[at] & 15 == 5:
                result = result[:at] + packets.fix_ipv4_checksum(result[at : at + 20]) + result[at + 20 :]
        if rng.random() < 0.7:
            result = sealed(result)
        seen[rig.run(result)] += 1
    assert len(seen) >= 8, "damage of many kinds"


def test_in_several_buffers_the_same_holds() -> None:
    """The program for jumbo frames; what the first buffer does not hold of the headers is handed up."""
    needs.xdp()
    rig = Rig(frags=True)
    for flow in FLOWS:
        rig.add(flow)
    for flow in FLOWS:
        for size in (0, 24, 1400, 3000, 5000, 8400):
            assert rig.run(flow.frame(size)) == BOUNCED
            assert rig.run(flow.frame(size)[:-1]) == "length"
    assert returned(TCP_V4.frame(8400))[GENEVE_AT:] == TCP_V4.frame(8400)[GENEVE_AT:]
    rig.close()
