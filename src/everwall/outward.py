"""How a node reaches what it manages itself with: through the management interface, by the DNS servers it was given.

Sockets are bound to the *interface* (SO_BINDTODEVICE), not only to its address. A source address does not choose the
way: with two interfaces the routing table would send management's packets out of the data interface, where a cloud
drops them because their source is not that interface's. What is on this machine itself is reached without binding:
such packets travel over loopback, whatever they are bound to.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Any

from everwall.limits import DNS_TIMEOUT_S

Place = tuple[int, tuple[Any, ...]]
"""The family of an address, and the address as sockets want it."""


class NoSuchName(OSError):
    """DNS servers answered, and there is no address of that name."""


@dataclass(frozen=True)
class Outward:
    """The way out; without anything said, the machine's routing table and its resolver."""

    device: str | None = None
    """The interface that sockets are bound to."""
    nameservers: tuple[str, ...] = ()
    """Addresses of DNS servers, asked in order; none: the machine's own resolver."""
    nameserver_port: int = 53

    def connect(self, host: str, port: int, timeout_s: float) -> socket.socket:
        """A TCP connection to the first address of ``host`` that takes one, without Nagle's delay.

        Raises OSError: that of the last address, or why the name has none.
        """
        failed: OSError | None = None
        for family, place in self.places(host, port):
            made = socket.socket(family, socket.SOCK_STREAM)
            try:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.bind(made, str(place[0]))
                made.settimeout(timeout_s)
                made.connect(place)
                return made
            except OSError as error:
                made.close()
                failed = error
        raise failed or NoSuchName(f"{host} has no address")

    def bind(self, unbound: socket.socket, peer: str) -> None:
        """Let what is said to ``peer`` leave by the interface. Raises OSError, with the interface's name."""
        if self.device is None or _is_here(peer):
            return
        try:
            unbound.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.device.encode() + b"\0")
        except OSError as error:
            raise OSError(error.errno, f"cannot use the interface {self.device}: {error.strerror}") from None

    def places(self, host: str, port: int) -> list[Place]:
        """Family and socket address of each address that a name has, or of the one that it is. Raises OSError."""
        if not self.nameservers or _is_address(host) or host.lower().rstrip(".") == "localhost":
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return [(family, place) for family, _, _, _, place in found]
        first = [(socket.AF_INET, (address, port)) for address in self._ask(host, "A")]
        return [*first, *((socket.AF_INET6, (address, port)) for address in self._ask(host, "AAAA"))]

    def addresses(self, name: str) -> list[str]:
        """The addresses of both families of a full name. Raises OSError."""
        # The dot at the end keeps search lists out.
        return [str(place[0]) for _, place in self.places(f"{name}.", 0)]

    def _ask(self, host: str, kind: str) -> list[str]:
        """What the first server that answers says; a server that does not, or refuses, is passed over."""
        import dns.exception  # slow to import, and most nodes have no DNS servers of their own
        import dns.message
        import dns.rcode

        query = dns.message.make_query(host.rstrip(".") + ".", kind)
        why = ""
        for server in self.nameservers:
            try:
                answer = self._exchange(query, server)
                if answer.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                    raise OSError(dns.rcode.to_text(answer.rcode()))
                records = answer.resolve_chaining().answer or ()
            except (OSError, dns.exception.DNSException) as error:
                why = f"{server}: {error or type(error).__name__}"
                continue
            return [record.address for record in records]
        raise OSError(f"no DNS server answers for {host} ({why})")

    def _exchange(self, query: Any, server: str) -> Any:
        """Over UDP, and over TCP where the answer does not fit."""
        import dns.query

        with socket.socket(_family(server), socket.SOCK_DGRAM) as own:
            self.bind(own, server)
            own.setblocking(False)
            try:
                return dns.query.udp(
                    query, server, DNS_TIMEOUT_S, self.nameserver_port, sock=own, raise_on_truncation=True
                )
            except dns.message.Truncated:
                pass
        with self.connect(server, self.nameserver_port, DNS_TIMEOUT_S) as stream:
            stream.setblocking(False)
            return dns.query.tcp(query, server, DNS_TIMEOUT_S, self.nameserver_port, sock=stream)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _is_here(peer: str) -> bool:
    """Whether the address is one of this machine's: it can be bound to."""
    if ipaddress.ip_address(peer).is_loopback:
        return True
    with socket.socket(_family(peer), socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((peer, 0))
        except OSError:
            return False
    return True
