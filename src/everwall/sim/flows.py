"""Who talks to whom: the name of a flow for hosts and checkers, client first."""

from __future__ import annotations

from typing import NamedTuple

from everwall.sim.packets import ICMP, ICMPV6, TCP, UDP, Packet

_NAMES = {ICMP: "icmp", ICMPV6: "icmpv6", TCP: "tcp", UDP: "udp"}


class Flow(NamedTuple):
    """Client and server of a conversation behind one endpoint of the load balancer."""

    endpoint: int
    protocol: int
    client: bytes
    cport: int
    server: bytes
    sport: int

    @property
    def turned(self) -> Flow:
        """The same with the ends exchanged."""
        return Flow(self.endpoint, self.protocol, self.server, self.sport, self.client, self.cport)

    @property
    def key(self) -> Flow:
        """One name for both directions."""
        return min(self, self.turned)

    def __str__(self) -> str:
        ends = (f"{_text(self.client)}:{self.cport}", f"{_text(self.server)}:{self.sport}")
        return f"{_NAMES[self.protocol]} {' > '.join(ends)} @{self.endpoint}"


def flow_of(endpoint: int, packet: Packet) -> Flow:
    """The flow of a packet, its source as client."""
    return Flow(endpoint, packet.protocol, packet.source, packet.sport, packet.destination, packet.dport)


def _text(address: bytes) -> str:
    if len(address) == 4:
        return ".".join(str(byte) for byte in address)
    return "[" + ":".join(f"{address[i]:02x}{address[i + 1]:02x}" for i in range(0, 16, 2)) + "]"
