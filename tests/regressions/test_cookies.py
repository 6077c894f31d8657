"""The flow cookie and all other options go back as they came with that very packet."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.balancer.gateways import Story, cookie_of
from tests.balancer.gateways import returned as returned_by
from tests.conversations import Connection
from tests.packets import (
    attachment_option,
    cookie_option,
    endpoint_option,
    geneve,
    option,
    tcp,
    udp,
)
from tests.regressions.appliance import Appliance, returned, sent

pytestmark = pytest.mark.kernel

CLIENT, SERVER = "10.1.0.5", "10.2.0.9"


def test_every_packet_goes_back_with_the_cookie_it_came_with(firewall: Appliance) -> None:
    """A cookie kept with the session instead of the packet is wrong as soon as the load balancer changes it, and a
    return with a wrong cookie is dropped there."""
    firewall.talks(geneve(udp(CLIENT, SERVER, 4000, 53)), geneve(udp(SERVER, CLIENT, 53, 4000)))
    for cookie in (1, 2, 0, 0xFFFFFFFF, 2):
        assert firewall.passes(sent(geneve(udp(CLIENT, SERVER, 4000, 53), cookie=cookie)))
    assert firewall.cut_through_was_tried


def test_a_tuple_used_again_goes_back_with_the_new_cookie_from_the_first_packet_on(
    firewall: Appliance,
) -> None:
    """A client that uses its port again within the idle time-out has a new flow, with a new cookie, at the load
    balancer, while the firewall still knows the old session. A SYN-ACK with the old cookie is lost, and the
    connection waits for its retransmission."""
    old = Connection(CLIENT, SERVER, 40_000)
    for inner in old.whole_life():
        assert firewall.passes(sent(geneve(inner, cookie=0xAAAA)))
    assert firewall.cut_through_was_tried
    new = Connection(CLIENT, SERVER, 40_000, client_start=900_000, server_start=77)
    for inner in new.handshake():
        assert firewall.passes(sent(geneve(inner, cookie=0xBBBB)))


def test_the_two_directions_keep_cookies_of_their_own(firewall: Appliance) -> None:
    """Whether both directions of a flow have one cookie is the load balancer's affair: with overlay routing a
    session that remembers a single one returns the wrong one."""
    talk = Connection(CLIENT, SERVER)
    for inner in talk.whole_life():
        from_client = inner[12:16] == bytes([10, 1, 0, 5])
        assert firewall.passes(sent(geneve(inner, cookie=0xC1 if from_client else 0x5E)))
    assert firewall.cut_through_was_tried


@pytest.mark.parametrize(
    "order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=["as sent", "reversed", "endpoint last"]
)
def test_options_go_back_in_their_order_with_strangers_among_them(
    firewall: Appliance, order: tuple[int, ...]
) -> None:
    """Byte for byte: the load balancer may add options, and put them in any order, without asking the firewall."""
    three = [endpoint_option(7), attachment_option(8), cookie_option(9)]
    stranger = option(0x0104, 0x42, b"somebody else's.", reserved=5)
    options = [three[i] for i in order]
    there, back = udp(CLIENT, SERVER, 1, 2), udp(SERVER, CLIENT, 2, 1)
    firewall.talks(geneve(there, options=options), geneve(back, options=options))
    for listed in (options, [stranger, *options], [*options, stranger]):
        assert firewall.passes(sent(geneve(there, options=listed)))
    assert firewall.cut_through_was_tried


def test_a_packet_that_waited_for_the_store_goes_back_with_its_own_cookie(
    make: Callable[..., Appliance],
) -> None:
    """Between its arrival and its release other packets came, with other cookies, ports and load balancers."""
    former, firewall = Appliance(), make()
    talk = Connection(CLIENT, SERVER)
    for inner in talk.handshake():
        assert former.passes(sent(geneve(inner)))
    (record,) = former.engine.outbox()
    waiting = [
        sent(geneve(talk.data(), cookie=0xA1), source_port=50_001),
        sent(geneve(talk.data(), cookie=0xA2), source_port=50_002),
    ]
    assert [firewall.through(packet) for packet in waiting] == [None, None]
    other = sent(geneve(tcp(CLIENT, SERVER, 41_000, 80), cookie=0xBB), source_port=50_003)
    assert firewall.passes(other)
    assert firewall.answer(True, record) == [returned(packet) for packet in waiting]


def test_our_load_balancer_gives_a_tuple_used_again_a_new_cookie_and_refuses_the_old_one() -> None:
    """The other side of the same story: what a firewall that keeps cookies would run into."""
    balancer = Story()
    first = tcp(CLIENT, SERVER, 40_000, 80, "S", seq=1)
    name, old = balancer.sent(first)
    balancer.wait(351)
    name, new = balancer.sent(tcp(CLIENT, SERVER, 40_000, 80, "S", seq=99))
    assert cookie_of(new) != cookie_of(old)
    answer = tcp(SERVER, CLIENT, 80, 40_000, "SA")
    assert balancer.back(name, returned_by(answer, old))[1] == b""
    assert balancer.dropped() == {"invalid-gwlb-flow-cookie": 1}
    assert balancer.back(name, returned_by(answer, new))[1] == answer
