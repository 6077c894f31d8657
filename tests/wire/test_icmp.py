"""ICMP of both families: echo by its identifier, errors by the flow they quote, the rest by addresses."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6TimeExceeded, IPv6

from everwall.verdict import Verdict
from everwall.wire.meta import ICMP_ERROR, ICMP_NONE, ICMP_OTHER, ICMP_REPLY, ICMP_REQUEST
from tests import packets
from tests.wire.reading import Readings, read, verdict_of

pytestmark = pytest.mark.kernel

CLIENT, SERVER, ROUTER = "10.0.0.1", "10.0.0.2", "192.0.2.254"
CLIENT6, SERVER6, ROUTER6 = "2001:db8::1", "2001:db8::2", "fe80::1"
FAMILIES = [(CLIENT, SERVER, ROUTER), (CLIENT6, SERVER6, ROUTER6)]

both_families = pytest.mark.parametrize(("client", "server", "router"), FAMILIES)


@both_families
def test_the_identifier_of_an_echo_stands_in_both_ports(client: str, server: str, router: str) -> None:
    for reply, kind in ((False, ICMP_REQUEST), (True, ICMP_REPLY)):
        verdict, found = read(packets.icmp_echo(client, server, 0xBEEF, 3, reply))
        assert verdict == Verdict.FORWARD
        assert (found["icmp"], found["sport"], found["dport"]) == (kind, 0xBEEF, 0xBEEF)
        assert found["payload"] == 4


def test_what_scapy_writes_is_read_the_same() -> None:
    echo = bytes(IP(src=CLIENT, dst=SERVER) / ICMP(id=77) / b"abc")
    echo6 = bytes(IPv6(src=CLIENT6, dst=SERVER6) / ICMPv6EchoRequest(id=77, data=b"abc"))
    for packet in (echo, echo6):
        verdict, found = read(packet)
        assert verdict == Verdict.FORWARD
        assert (found["icmp"], found["sport"], found["payload"]) == (ICMP_REQUEST, 77, 3)

    quoted = IP(src=CLIENT, dst=SERVER) / UDP(sport=7, dport=9)
    quoted6 = IPv6(src=CLIENT6, dst=SERVER6) / UDP(sport=7, dport=9)
    error = bytes(IP(src=ROUTER, dst=CLIENT) / ICMP(type=11) / quoted)
    error6 = bytes(IPv6(src=ROUTER6, dst=CLIENT6) / ICMPv6TimeExceeded() / quoted6)
    for packet in (error, error6):
        verdict, found = read(packet)
        assert verdict == Verdict.FORWARD
        assert (found["icmp"], found["protocol"]) == (ICMP_ERROR, 17)
        assert (found["sport"], found["dport"]) == (9, 7)


@both_families
def test_an_error_has_the_tuple_of_the_quoted_flow_turned(client: str, server: str, router: str) -> None:
    """It travels to the client, as the server's answers do; the router that made it is not part of the flow."""
    quoted = packets.tcp(client, server, 1234, 80, "A", seq=0xDEADBEEF)
    verdict, found = read(packets.icmp_error(router, client, quoted))
    assert verdict == Verdict.FORWARD
    assert (found["icmp"], found["protocol"]) == (ICMP_ERROR, packets.TCP)
    assert found["source"] == ip_address(server).packed
    assert found["destination"] == ip_address(client).packed
    assert (found["sport"], found["dport"]) == (80, 1234)
    assert (found["seq"], found["flags"]) == (0xDEADBEEF, 0)


@both_families
def test_an_error_finds_the_flow_by_its_key(client: str, server: str, router: str) -> None:
    for quoted in (
        packets.tcp(client, server, 1234, 80),
        packets.udp(client, server, 1234, 53),
        packets.icmp_echo(client, server, 99),
        packets.ip(client, server, 47, bytes(8)),
    ):
        readings = Readings([quoted, packets.icmp_error(router, client, quoted)], bare=True)
        flow, error = readings.key(0), readings.key(1)
        assert error.pop("direction") != flow.pop("direction")
        assert error == flow


@both_families
def test_an_error_truncated(client: str, server: str, router: str) -> None:
    """Every quotation that is too short for the IP header and 8 bytes, in packets that are otherwise good."""
    quoted = packets.udp(client, server, 1234, 53)
    cut = [packets.icmp_error(router, client, quoted[:length]) for length in range(len(quoted))]
    assert set(Readings(cut, bare=True).verdicts) == {Verdict.ICMP_ERROR_HEADER}
    assert verdict_of(packets.icmp_error(router, client, quoted)) == Verdict.FORWARD


@both_families
def test_truncated(client: str, server: str, router: str) -> None:
    protocol = packets.ICMP if client == CLIENT else packets.ICMPV6
    for message in (packets.icmp_echo(client, server), packets.icmp_error(router, client, b"")):
        rest = message[-12:] if message[-4:] == b"ping" else message[-8:]
        cut = [packets.ip(client, server, protocol, rest[:length]) for length in range(8)]
        assert set(Readings(cut, bare=True).verdicts) == {Verdict.ICMP_HEADER}


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12])
def test_the_errors_of_icmp(kind: int) -> None:
    quoted = packets.udp(CLIENT, SERVER, 1, 2)
    assert read(packets.icmp_error(ROUTER, CLIENT, quoted, kind))[1]["icmp"] == ICMP_ERROR


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_the_errors_of_icmpv6(kind: int) -> None:
    quoted = packets.udp(CLIENT6, SERVER6, 1, 2)
    assert read(packets.icmp_error(ROUTER6, CLIENT6, quoted, kind))[1]["icmp"] == ICMP_ERROR


@pytest.mark.parametrize(
    ("source", "kind"),
    [(CLIENT, 9), (CLIENT, 13), (CLIENT, 128), (CLIENT6, 134), (CLIENT6, 135), (CLIENT6, 8)],
)
def test_other_messages_have_no_ports(source: str, kind: int) -> None:
    verdict, found = read(packets.icmp(source, source, kind, 0, b"\xff" * 12))
    assert verdict == Verdict.FORWARD
    assert (found["icmp"], found["sport"], found["dport"]) == (ICMP_OTHER, 0, 0)


def test_icmp_of_the_other_family_is_a_protocol_like_any_other() -> None:
    for packet in (
        packets.ip(CLIENT, SERVER, packets.ICMPV6, b"\x80\0\0\0\xff\xff"),
        packets.ip(CLIENT6, SERVER6, packets.ICMP, b"\x08\0\0\0\xff\xff"),
    ):
        verdict, found = read(packet)
        assert verdict == Verdict.FORWARD
        assert (found["icmp"], found["sport"], found["payload"]) == (ICMP_NONE, 0, 6)


@both_families
def test_an_error_to_somebody_who_did_not_send_what_it_quotes_is_refused(
    client: str, server: str, router: str
) -> None:
    quoted = packets.udp(client, server, 1, 2)
    assert verdict_of(packets.icmp_error(router, server, quoted)) == Verdict.ICMP_ERROR_HEADER


@both_families
def test_an_error_about_an_error_is_refused(client: str, server: str, router: str) -> None:
    first = packets.icmp_error(client, server, packets.udp(server, client, 1, 2))
    assert verdict_of(packets.icmp_error(router, client, first)) == Verdict.ICMP_ERROR_HEADER


@both_families
def test_an_error_about_a_later_fragment_is_refused(client: str, server: str, router: str) -> None:
    """There are no ports in it; an error about the first fragment has them."""
    first, later = packets.fragments(packets.udp(client, server, 1, 2, bytes(24)), 16)
    assert verdict_of(packets.icmp_error(router, client, later)) == Verdict.ICMP_ERROR_HEADER
    verdict, found = read(packets.icmp_error(router, client, first))
    assert verdict == Verdict.FORWARD
    assert (found["sport"], found["dport"]) == (2, 1)


@both_families
def test_an_error_in_fragments_is_refused(client: str, server: str, router: str) -> None:
    error = packets.icmp_error(router, client, packets.udp(client, server, 1, 2, bytes(200)))
    assert verdict_of(packets.fragments(error, 128)[0]) == Verdict.ICMP_ERROR_HEADER


@both_families
def test_an_error_that_quotes_something_else_than_ip_is_refused(
    client: str, server: str, router: str
) -> None:
    quoted = packets.udp(client, server, 1, 2, bytes(20))
    family = quoted[0] & 0xF0
    wrong = [0x00, 0x55, 0xA5, 0x45 if family == 0x60 else 0x65] + ([0x40, 0x44] if family == 0x40 else [])
    for first in wrong:
        error = packets.icmp_error(router, client, bytes([first]) + quoted[1:])
        assert verdict_of(error) == Verdict.ICMP_ERROR_HEADER


def test_a_quoted_header_changed_on_its_way_is_read_all_the_same() -> None:
    """Its checksum no longer fits a TTL of 0, and its length is that of the packet it was."""
    quoted = bytearray(packets.udp(CLIENT, SERVER, 1, 2, bytes(1000), ip_options=b"\1" * 8))
    quoted[8] = 0
    error = packets.icmp_error(ROUTER, CLIENT, bytes(quoted[:36]))
    assert read(error)[1]["dport"] == 1


def test_a_quoted_packet_with_extension_headers_is_read() -> None:
    chain = [packets.ipv6_options(0), packets.ipv6_authentication(), packets.ipv6_fragment(1, 0, True)]
    quoted = packets.tcp(CLIENT6, SERVER6, 1234, 80, extensions=chain)
    verdict, found = read(packets.icmp_error(ROUTER6, CLIENT6, quoted, 2))
    assert verdict == Verdict.FORWARD
    assert (found["sport"], found["dport"], found["fragment"]) == (80, 1234, 0)
    torn = packets.ipv6(CLIENT6, SERVER6, 6, bytes(20), extensions=[(60, bytes([0, 255]) + bytes(6))])
    assert verdict_of(packets.icmp_error(ROUTER6, CLIENT6, torn)) == Verdict.ICMP_ERROR_HEADER
