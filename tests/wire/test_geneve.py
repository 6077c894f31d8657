"""GENEVE: what a gateway load balancer may send, in whatever order and dressing, and what is refused why."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scapy.contrib.geneve import GENEVE, GeneveOptions

from everwall.verdict import Verdict
from everwall.wire.geneve import ENCAPSULATION_BYTES, encapsulate
from tests import packets
from tests.wire.reading import prefix_verdicts, read, verdict_of

pytestmark = pytest.mark.kernel

INNER = packets.tcp("10.0.0.1", "10.0.0.2", 1234, 80)
INNER_V6 = packets.tcp("2001:db8::1", "2001:db8::2", 1234, 80)

ENDPOINT = packets.endpoint_option(0x0123456789ABCDEF)
ATTACHMENT = packets.attachment_option(7)
COOKIE = packets.cookie_option(0xC00C1E)
FOREIGN = packets.option(0x0107, 0x33, b"uncritical..")


def refusal(packet: bytes) -> Verdict:
    return verdict_of(packet, bare=False)


def test_endpoint_cookie_and_inner_packet_are_found() -> None:
    verdict, found = read(packets.geneve(INNER, 0x0123456789ABCDEF, 0xC00C1E), bare=False)
    assert verdict == Verdict.FORWARD
    assert found["endpoint"] == 0x0123456789ABCDEF
    assert found["cookie"] == 0xC00C1E
    assert found["inner"] == ENCAPSULATION_BYTES == 40
    assert found["sport"] == 1234


def test_truncated() -> None:
    whole = packets.geneve(INNER)
    verdicts = prefix_verdicts(whole, bare=False)
    assert set(verdicts[:40]) == {Verdict.GENEVE_TRUNCATED}
    assert set(verdicts[40:]) == {Verdict.IP_TRUNCATED}


def test_what_scapy_writes_is_read_the_same() -> None:
    options = [
        GeneveOptions(classid=0x0108, type=3, length=1, data=b"\x00\xc0\x0c\x1e"),
        GeneveOptions(classid=0x0108, type=1, length=2, data=bytes.fromhex("0123456789abcdef")),
        GeneveOptions(classid=0xFFFF, type=2, length=0),
    ]
    header = bytes(GENEVE(proto=0x86DD, vni=0xABCDEF, options=options))
    verdict, found = read(header + INNER_V6, bare=False)
    assert verdict == Verdict.FORWARD
    assert (found["endpoint"], found["cookie"]) == (0x0123456789ABCDEF, 0xC00C1E)
    assert found["inner"] == len(header)


def test_what_is_written_scapy_reads_the_same() -> None:
    data = np.full((2, 48), 0x55, np.uint8)
    length = encapsulate(data, 1, 4, 0x0800, -2, 7, 0xC00C1E)
    written = bytes(data[1, 4 : 4 + length])
    assert written == packets.geneve(b"", (1 << 64) - 2, 0xC00C1E, 7)
    assert set(data[0]) == {0x55}
    assert set(data[1, :4]) == set(data[1, 44:]) == {0x55}
    header = GENEVE(written)
    assert (header.version, header.optionlen, header.proto, header.vni) == (0, 8, 0x0800, 0)
    assert (header.critical, header.oam) == (0, 0)
    assert [(found.classid, found.type, found.data) for found in header.options] == [
        (0x0108, 1, b"\xff" * 7 + b"\xfe"),
        (0x0108, 2, bytes(7) + b"\x07"),
        (0x0108, 3, b"\x00\xc0\x0c\x1e"),
    ]


@pytest.mark.parametrize("order", list(itertools.permutations([ENDPOINT, ATTACHMENT, COOKIE, FOREIGN])))
def test_options_may_stand_in_any_order_beside_strangers(order: tuple[bytes, ...]) -> None:
    verdict, found = read(packets.geneve(INNER, options=order), bare=False)
    assert verdict == Verdict.FORWARD
    assert (found["endpoint"], found["cookie"]) == (0x0123456789ABCDEF, 0xC00C1E)


@pytest.mark.parametrize("endpoint", [7 << 32, 0, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF])
def test_an_endpoint_id_is_all_its_64_bits(endpoint: int) -> None:
    """Also with a low word of 0, which others have taken for no endpoint at all."""
    verdict, found = read(packets.geneve(INNER, endpoint), bare=False)
    assert verdict == Verdict.FORWARD
    assert found["endpoint"] & 0xFFFFFFFFFFFFFFFF == endpoint


@pytest.mark.parametrize("bit", range(6))
def test_reserved_bits_are_ignored(bit: int) -> None:
    """In the header's second and last byte and in each option (RFC 8926: ignored on receipt)."""
    dressed = packets.option(0x0108, 1, bytes(8), reserved=1 + bit)
    options = [dressed, packets.option(0x0107, 5, b"", reserved=7), COOKIE]
    packet = packets.geneve(INNER, options=options, reserved=1 << bit, reserved_last=1 << bit)
    verdict, found = read(packet, bare=False)
    assert verdict == Verdict.FORWARD
    assert found["cookie"] == 0xC00C1E


def test_the_critical_bit_of_the_header_alone_says_nothing() -> None:
    assert refusal(packets.geneve(INNER, critical=True)) == Verdict.FORWARD


def test_without_a_cookie_there_is_none() -> None:
    assert read(packets.geneve(INNER, cookie=None), bare=False)[1]["cookie"] == -1
    assert read(packets.geneve(INNER, cookie=0), bare=False)[1]["cookie"] == 0


def test_all_252_bytes_of_options_are_read() -> None:
    filling = [packets.option(0x0107, 9, bytes(124)), packets.option(0x0107, 9, bytes(108))]
    packet = packets.geneve(INNER, options=[*filling, ENDPOINT])
    assert packet[0] == 63
    assert read(packet, bare=False)[1]["inner"] == 8 + 252


def test_another_version_is_refused() -> None:
    for version in (1, 2, 3):
        assert refusal(packets.geneve(INNER, version=version)) == Verdict.GENEVE_VERSION


def test_a_control_packet_is_refused() -> None:
    assert refusal(packets.geneve(INNER, control=True)) == Verdict.GENEVE_CONTROL


@pytest.mark.parametrize("words", [0, 1, 2, 3, 4, 5, 6, 7])
def test_options_that_are_cut_off_by_the_option_length_are_refused(words: int) -> None:
    """Unless the cut falls behind an option: then those before it count."""
    verdict = refusal(packets.geneve(INNER, option_words=words))
    if words in (0, 3, 6):
        # The rest of the options stands where the inner packet should.
        assert verdict == (Verdict.GENEVE_NO_ENDPOINT if words == 0 else Verdict.IP_VERSION)
    else:
        assert verdict == Verdict.GENEVE_OPTIONS


def test_an_option_longer_than_the_options_is_refused() -> None:
    wrong = FOREIGN[:3] + bytes([31]) + FOREIGN[4:]
    assert refusal(packets.geneve(INNER, options=[ENDPOINT, wrong])) == Verdict.GENEVE_OPTIONS


@pytest.mark.parametrize("length", [0, 4, 12])
def test_an_endpoint_of_another_length_is_refused(length: int) -> None:
    wrong = packets.option(0x0108, 1, bytes(length))
    assert refusal(packets.geneve(INNER, options=[wrong])) == Verdict.GENEVE_OPTIONS


@pytest.mark.parametrize("length", [0, 8])
def test_a_cookie_of_another_length_is_refused(length: int) -> None:
    wrong = packets.option(0x0108, 3, bytes(length))
    assert refusal(packets.geneve(INNER, options=[ENDPOINT, wrong])) == Verdict.GENEVE_OPTIONS


@pytest.mark.parametrize("twice", [ENDPOINT, COOKIE])
def test_what_is_said_twice_is_refused(twice: bytes) -> None:
    packet = packets.geneve(INNER, options=[ENDPOINT, COOKIE, twice])
    assert refusal(packet) == Verdict.GENEVE_OPTIONS


def test_an_unknown_critical_option_is_refused() -> None:
    """AWS's own class is no exception: type 0x81 is another type than 1."""
    for option_class, option_type in ((0x0107, 0x80), (0x0108, 0x81), (0xFFFF, 0xFF)):
        options = [ENDPOINT, packets.option(option_class, option_type, b"")]
        assert refusal(packets.geneve(INNER, options=options)) == Verdict.GENEVE_CRITICAL_OPTION


def test_without_an_endpoint_it_is_refused() -> None:
    for options in ([], [COOKIE], [ATTACHMENT, COOKIE], [packets.option(0x0107, 1, bytes(8))]):
        assert refusal(packets.geneve(INNER, options=options)) == Verdict.GENEVE_NO_ENDPOINT


@pytest.mark.parametrize("protocol_type", [0, 0x6558, 0x0806, 0xFFFF])
def test_a_payload_that_is_not_ip_is_refused(protocol_type: int) -> None:
    assert refusal(packets.geneve(INNER, protocol_type=protocol_type)) == Verdict.GENEVE_PROTOCOL


def test_a_payload_of_the_other_family_is_refused() -> None:
    assert refusal(packets.geneve(INNER, protocol_type=0x86DD)) == Verdict.IP_VERSION
    assert refusal(packets.geneve(INNER_V6, protocol_type=0x0800)) == Verdict.IP_VERSION


def test_a_bare_packet_keeps_the_endpoint_it_was_given() -> None:
    verdict, found = read(INNER, bare=True, endpoint=42)
    assert verdict == Verdict.FORWARD
    assert (found["endpoint"], found["cookie"], found["inner"]) == (42, -1, 0)
