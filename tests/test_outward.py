"""Management's way out: by its own interface whatever the routing table prefers, by its own DNS servers."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import dns.query
import dns.rcode
import pytest

from everwall import outward
from everwall.outward import Outward
from tests import needs
from tests.nameserver import Nameserver, Reply, records
from tests.two_interfaces import DATA, ELSEWHERE, MANAGEMENT, TwoInterfaces

PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server is passed over because this machine stood still."""
    monkeypatch.setattr(outward, "DNS_TIMEOUT_S", PATIENCE_S)


@pytest.fixture
def serve() -> Iterator[Callable[[Reply], Nameserver]]:
    served: list[Nameserver] = []

    def begin(reply: Reply) -> Nameserver:
        served.append(Nameserver(reply))
        return served[-1]

    yield begin
    for each in served:
        each.close()


def own(server: Nameserver, *others: str) -> Outward:
    return Outward(nameservers=(*others, "127.0.0.1"), nameserver_port=server.port)


def addresses(way: Outward, host: str) -> list[str]:
    return [str(place[0]) for _, place in way.places(host, 6379)]


def test_a_name_is_asked_of_the_servers_that_were_given(serve: Callable[[Reply], Nameserver]) -> None:
    server = serve(records("redis.example.com. A 10.0.0.5", "redis.example.com. AAAA 2001:db8::5"))
    assert addresses(own(server), "redis.example.com") == ["10.0.0.5", "2001:db8::5"]
    assert server.asked == ["udp redis.example.com. IN A", "udp redis.example.com. IN AAAA"]


def test_an_alias_is_followed(serve: Callable[[Reply], Nameserver]) -> None:
    server = serve(records("a.example.com. CNAME b.example.net.", "b.example.net. A 10.0.0.6"))
    assert addresses(own(server), "a.example.com.") == ["10.0.0.6"]


def test_an_answer_that_does_not_fit_is_fetched_over_tcp(serve: Callable[[Reply], Nameserver]) -> None:
    server = serve(records("a.example.com. A 10.0.0.7", truncated=True))
    assert addresses(own(server), "a.example.com") == ["10.0.0.7"]
    assert server.asked[:2] == ["udp a.example.com. IN A", "tcp a.example.com. IN A"]


def test_a_server_that_does_not_answer_or_refuses_is_passed_over(
    serve: Callable[[Reply], Nameserver], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = dns.query.udp

    def soon_of_one(query: Any, server: str, timeout: float, *rest: Any, **named: Any) -> Any:
        return ask(query, server, 0.1 if server == "127.0.0.99" else timeout, *rest, **named)

    monkeypatch.setattr(dns.query, "udp", soon_of_one)
    good = serve(records("a.example.com. A 10.0.0.8"))
    assert addresses(own(good, "127.0.0.99"), "a.example.com") == ["10.0.0.8"]
    bad = serve(records(rcode=dns.rcode.SERVFAIL))
    with pytest.raises(
        OSError, match=r"no DNS server answers for a\.example\.com \(127\.0\.0\.1: SERVFAIL\)"
    ):
        addresses(own(bad), "a.example.com")


def test_a_name_that_does_not_exist_has_no_address(serve: Callable[[Reply], Nameserver]) -> None:
    server = serve(records(rcode=dns.rcode.NXDOMAIN))
    assert addresses(own(server), "a.example.com") == []
    with pytest.raises(OSError, match=r"a\.example\.com has no address"):
        own(server).connect("a.example.com", 6379, 0.5)


def test_addresses_and_localhost_are_asked_of_nobody(serve: Callable[[Reply], Nameserver]) -> None:
    server = serve(records())
    assert addresses(own(server), "2001:db8::1") == ["2001:db8::1"]
    assert "127.0.0.1" in addresses(own(server), "localhost")
    assert server.asked == []


def test_the_next_address_is_tried_where_one_takes_no_connection(
    serve: Callable[[Reply], Nameserver],
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener:
        port = listener.getsockname()[1]
        server = serve(records("a.example.com. A 127.0.0.98", "a.example.com. A 127.0.0.1"))
        with own(server).connect("a.example.com", port, PATIENCE_S) as made:
            assert made.getpeername() == ("127.0.0.1", port)
            assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert made.gettimeout() == PATIENCE_S


# Interfaces -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place() -> Iterator[TwoInterfaces]:
    needs.namespaces()
    made = TwoInterfaces()
    yield made
    made.close()


def seen_from(place: TwoInterfaces, way: Outward, host: str) -> str:
    """The address from which a connection to ``host`` arrives."""
    with place.router.entered():
        listener = socket.create_server((ELSEWHERE, 0))
    with listener, place.machine.entered():
        local = socket.create_server((host, 0)) if host != ELSEWHERE else listener
        with local, way.connect(host, local.getsockname()[1], PATIENCE_S):
            return str(local.accept()[1][0])


def test_management_leaves_by_its_interface_although_the_routing_table_prefers_the_other(
    place: TwoInterfaces,
) -> None:
    assert seen_from(place, Outward(), ELSEWHERE) == DATA
    assert seen_from(place, Outward(device="eth1"), ELSEWHERE) == MANAGEMENT


@pytest.mark.parametrize("host", ["127.0.0.1", DATA, MANAGEMENT])
def test_what_is_on_the_machine_itself_is_reached_all_the_same(place: TwoInterfaces, host: str) -> None:
    assert seen_from(place, Outward(device="eth1"), host) == host


def test_an_interface_that_is_not_there_is_named(place: TwoInterfaces) -> None:
    with place.machine.entered(), pytest.raises(OSError, match="cannot use the interface eth7"):
        Outward(device="eth7").connect(ELSEWHERE, 6379, 1.0)


def test_the_addresses_of_a_full_name_are_looked_for_in_no_search_list(
    serve: Callable[[Reply], Nameserver], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(records("api.example.com. A 192.0.2.1", "api.example.com. AAAA 2001:db8::1"))
    assert own(server).addresses("api.example.com") == ["192.0.2.1", "2001:db8::1"]
    asked = []

    def getaddrinfo(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        asked.append(host)
        return [(2, 1, 6, "", ("192.0.2.1", 0)), (10, 1, 6, "", ("2001:db8::1", 0, 0, 0))]

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    assert Outward().addresses("api.example.com") == ["192.0.2.1", "2001:db8::1"]
    assert asked == ["api.example.com."]
