"""Packets go back the way they came: to the load balancer that sent them, from the address they were sent to."""

from __future__ import annotations

import itertools

import pytest

from everwall.limits import GENEVE_PORT
from tests.packets import geneve, icmp_echo, tcp, udp
from tests.regressions.appliance import (
    BALANCERS,
    FIREWALL,
    FIREWALL_TOO,
    Appliance,
    PortAppliance,
    returned,
    sent,
)

pytestmark = pytest.mark.kernel

CLIENT, SERVER = "10.1.0.5", "10.2.0.9"


def test_each_packet_goes_back_with_its_own_outer_source_port(firewall: Appliance) -> None:
    """A firewall that answers from a port of its own, or of the flow's first packet, breaks the load balancer's
    spreading over its paths: later packets of one flow may come with another port, and each keeps its own."""
    firewall.talks(geneve(udp(CLIENT, SERVER, 4000, 53)), geneve(udp(SERVER, CLIENT, 53, 4000)))
    for source_port in (50_001, 65_535, 50_001, 1024, 49_152):
        packet = sent(geneve(udp(CLIENT, SERVER, 4000, 53)), source_port=source_port)
        back = firewall.through(packet)
        assert back is not None
        assert (back.source_port, back.destination_port) == (source_port, GENEVE_PORT)
    assert firewall.cut_through_was_tried


def test_behind_two_load_balancers_each_gets_its_own_packets_back(firewall: Appliance) -> None:
    """One firewall registered with several load balancers: a return whose outer addresses are those of another
    load balancer's session, or of the one heard last, is refused there."""
    for number in (1, 2):
        there, back = udp(CLIENT, SERVER, 4000 + number, 53), udp(SERVER, CLIENT, 53, 4000 + number)
        firewall.talks(geneve(there, endpoint=number), geneve(back, endpoint=number))
    for balancer, number in itertools.product(BALANCERS, (1, 2, 1)):
        packet = sent(geneve(udp(CLIENT, SERVER, 4000 + number, 53), endpoint=number), balancer=balancer)
        assert firewall.passes(packet)
    assert firewall.cut_through_was_tried


def test_a_flow_whose_two_directions_come_by_two_load_balancers_answers_each(firewall: Appliance) -> None:
    """Across zones the client's side and the server's side of one flow may come by different load balancers. A
    return on the interface or to the address of the other side's never arrives."""
    there = sent(geneve(udp(CLIENT, SERVER, 4000, 53), cookie=1), balancer=BALANCERS[0])
    back = sent(geneve(udp(SERVER, CLIENT, 53, 4000), cookie=2), balancer=BALANCERS[1], source_port=50_777)
    for packet in (there, back, there, back):
        assert firewall.through(packet) == returned(packet)
    assert firewall.cut_through_was_tried


def test_the_outer_source_is_the_address_that_the_packet_was_sent_to(firewall: Appliance) -> None:
    """A data interface with two addresses: the load balancer knows one of them as its target, and takes packets
    from no other. The interface's first address is not good enough."""
    firewall.talks(geneve(udp(CLIENT, SERVER, 4000, 53)), geneve(udp(SERVER, CLIENT, 53, 4000)))
    for address in (FIREWALL_TOO, FIREWALL, FIREWALL_TOO):
        for inner in (icmp_echo(CLIENT, SERVER), udp(CLIENT, SERVER, 4000, 53)):
            back = firewall.through(sent(geneve(inner), to=address))
            assert back is not None
            assert back.source == address
    assert firewall.cut_through_was_tried


def test_two_flows_of_one_batch_do_not_share_an_outer_header(firewall: Appliance) -> None:
    """The outer header is each packet's, not the batch's and not the session's."""
    ways = [(balancer, port) for balancer in BALANCERS for port in (50_010, 50_011)]
    for (balancer, port), sport in itertools.product(ways, (4000, 4001)):
        assert firewall.passes(
            sent(geneve(tcp(CLIENT, SERVER, sport, 80)), balancer=balancer, source_port=port)
        )


@pytest.mark.parametrize("make", ["xdp", "cut-through"], indirect=True)
def test_frames_go_back_to_the_station_that_sent_them(firewall: Appliance) -> None:
    """A port that writes Ethernet headers itself has to swap those of the very frame: the next router may be
    another one for each packet, and a MAC address remembered for the load balancer is the wrong one soon."""
    assert isinstance(firewall, PortAppliance)
    there, back = geneve(udp(CLIENT, SERVER, 4000, 53)), geneve(udp(SERVER, CLIENT, 53, 4000))
    firewall.talks(there, back)
    for station in (b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02", b"\x02\0\0\0\0\x01"):
        for packet in (there, back):
            destination, source, own = firewall.frame_back(packet, station)
            assert (destination, source) == (station, own)
