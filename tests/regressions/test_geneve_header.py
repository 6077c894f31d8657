"""No outer header stops a firewall: whatever it says, the next packet passes as if nothing had been."""

from __future__ import annotations

import random

import pytest

from tests.packets import (
    attachment_option,
    cookie_option,
    endpoint_option,
    geneve,
    option,
    udp,
)
from tests.regressions.appliance import Appliance, sent

pytestmark = pytest.mark.kernel

CLIENT, SERVER = "10.1.0.5", "10.2.0.9"
INNER = udp(CLIENT, SERVER, 4000, 53, b"payload")
GOOD = sent(geneve(INNER))


@pytest.fixture
def talking(firewall: Appliance) -> Appliance:
    """A firewall that knows the flow already, so that a program in the kernel may answer for it."""
    firewall.talks(GOOD.geneve, geneve(udp(SERVER, CLIENT, 53, 4000)))
    return firewall


def lives(firewall: Appliance) -> bool:
    return firewall.passes(GOOD) and firewall.cut_through_was_tried


@pytest.mark.parametrize("bit", range(6))
def test_a_reserved_bit_of_the_header_is_nobodys_business(talking: Appliance, bit: int) -> None:
    """RFC 8926 says to ignore them on receipt. A firewall that falls over takes all its sessions with it; one that
    drops loses a path for as long as somebody sets the bit."""
    packet = sent(geneve(INNER, reserved=1 << bit, reserved_last=0xFF))
    assert talking.passes(packet), "and they go back as they came"
    assert lives(talking)


@pytest.mark.parametrize("reserved", range(1, 8))
def test_reserved_bits_of_an_option_are_not_part_of_its_length(talking: Appliance, reserved: int) -> None:
    """The length of an option is the low five bits; reading more of the byte runs past the header."""
    marked = option(0x0108, 1, (77).to_bytes(8, "big"), reserved=reserved)
    assert talking.passes(sent(geneve(INNER, options=[marked, attachment_option(1), cookie_option(2)])))
    assert lives(talking)


def test_an_unknown_option_passes_and_an_unknown_critical_one_is_dropped(talking: Appliance) -> None:
    """RFC 8926 section 3.5: who does not know a critical option must drop; any other must not matter."""
    usual = [endpoint_option(1), attachment_option(2), cookie_option(3)]
    for kind in (0x00, 0x42, 0x7F):
        assert talking.passes(sent(geneve(INNER, options=[*usual, option(0x0104, kind, b"1234")])))
    for kind in (0x80, 0xC2, 0xFF):
        critical = option(0x0104, kind, b"1234")
        assert not talking.passes(sent(geneve(INNER, options=[*usual, critical], critical=True)))
        assert talking.engine.verdicts["geneve-critical-option"] > 0
    assert lives(talking)


@pytest.mark.parametrize(
    ("kind", "length"),
    [(kind, length) for kind in (1, 2, 3) for length in (0, 4, 12, 124) if (kind, length) != (3, 4)],
)
def test_an_option_of_ours_with_an_odd_length_is_dropped_by_name(
    talking: Appliance, kind: int, length: int
) -> None:
    """An endpoint of 4 bytes, a cookie of none: to read it as if it had its usual length is to read its neighbour."""
    whole = {1: endpoint_option(1), 2: attachment_option(2), 3: cookie_option(3)}
    odd = whole | {kind: option(0x0108, kind, bytes(length))}
    came = talking.passes(sent(geneve(INNER, options=list(odd.values()))))
    assert came == (kind == 2), "of the attachment nothing is read, so it may be anything"
    assert lives(talking)


def test_a_header_cut_anywhere_is_dropped_by_name(talking: Appliance) -> None:
    """Truncated within the fixed header, within an option, between options, within the inner packet."""
    whole = geneve(INNER)
    before = sum(talking.engine.verdicts.values()), talking.engine.verdicts["forward"]
    for length in range(1, len(whole)):
        assert not talking.passes(sent(whole[:length])), f"{length} bytes of {len(whole)}"
    assert sum(talking.engine.verdicts.values()) - before[0] == len(whole) - 1, "each of them, under its name"
    assert talking.engine.verdicts["forward"] == before[1]
    assert talking.bounced == 0
    assert lives(talking)


def test_an_option_length_that_lies_is_dropped_by_name(talking: Appliance) -> None:
    """The length of all options says more, or less, than there is."""
    for words in [*range(8), *range(9, 64)]:
        assert not talking.passes(sent(geneve(INNER, option_words=words)))
    assert lives(talking)


def test_no_altered_header_makes_the_next_packet_fail(talking: Appliance) -> None:
    """Every byte of the outer header set to what it should not be, and a few thousand at random: no crash, no
    state left behind, and what does come back is what was sent."""
    rng = random.Random(189)
    whole = bytearray(geneve(INNER))
    altered = [(at, value) for at in range(40) for value in (0x00, 0x80, 0xFF)]
    altered += [(rng.randrange(len(whole)), rng.randrange(256)) for _ in range(300)]
    for at, value in altered:
        changed = bytearray(whole)
        changed[at] = value
        talking.passes(sent(bytes(changed)))
    assert lives(talking)
