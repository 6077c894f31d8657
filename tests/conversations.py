"""A TCP connection that tests lead by the hand: every method is one segment, with the numbers a stack would write.

``client`` and ``server`` are the two ends; sequence numbers advance with what is sent, acknowledgements name
what the other end has sent so far. What a test wants wrong, it passes as a keyword.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests import packets

SEQUENCES = 1 << 32


@dataclass
class End:
    """One end of a connection."""

    address: str
    port: int
    next: int
    """Sequence number of the next byte it sends."""
    window: int = 65535
    scale: int | None = None
    """Window scale option in its SYN."""


class Connection:
    """Segments of one connection, in the order the methods are called."""

    def __init__(
        self,
        client: str = "10.0.0.1",
        server: str = "10.0.1.1",
        sport: int = 40_000,
        dport: int = 80,
        *,
        client_start: int = 1_000,
        server_start: int = 5_000_000,
        window: int = 65535,
        client_scale: int | None = None,
        server_scale: int | None = None,
    ) -> None:
        self.client = End(client, sport, client_start, window, client_scale)
        self.server = End(server, dport, server_start, window, server_scale)

    def other(self, end: End) -> End:
        return self.server if end is self.client else self.client

    def segment(
        self,
        end: End,
        flags: str,
        payload: bytes = b"",
        *,
        seq: int | None = None,
        ack: int | None = None,
        window: int | None = None,
        **fields: object,
    ) -> bytes:
        """Any segment; without ``seq`` the end's numbers advance by what it carries."""
        other = self.other(end)
        start = end.next if seq is None else seq % SEQUENCES
        if ack is None:
            ack = other.next if "A" in flags else 0
        options = b""
        if "S" in flags and end.scale is not None:
            options = bytes([1, 3, 3, end.scale])
        if seq is None:
            end.next = (start + len(payload) + ("S" in flags) + ("F" in flags)) % SEQUENCES
        return packets.tcp(
            end.address,
            other.address,
            end.port,
            other.port,
            flags,
            start,
            ack % SEQUENCES,
            end.window if window is None else window,
            payload,
            options,
            **fields,
        )

    def syn(self) -> bytes:
        return self.segment(self.client, "S")

    def syn_ack(self) -> bytes:
        return self.segment(self.server, "SA")

    def ack(self, end: End | None = None) -> bytes:
        return self.segment(end or self.client, "A")

    def data(self, end: End | None = None, size: int = 100) -> bytes:
        return self.segment(end or self.client, "PA", b"d" * size)

    def fin(self, end: End | None = None) -> bytes:
        return self.segment(end or self.client, "FA")

    def rst(self, end: End | None = None) -> bytes:
        return self.segment(end or self.client, "R", seq=(end or self.client).next)

    def handshake(self) -> list[bytes]:
        return [self.syn(), self.syn_ack(), self.ack()]

    def exchange(self, times: int = 1) -> list[bytes]:
        """Request and answer, so often."""
        segments = []
        for _ in range(times):
            segments += [self.data(self.client), self.data(self.server, 300)]
        return segments

    def goodbye(self) -> list[bytes]:
        """The client closes, then the server."""
        return [self.fin(self.client), self.fin(self.server), self.ack(self.client)]

    def whole_life(self, exchanges: int = 2) -> list[bytes]:
        return self.handshake() + self.exchange(exchanges) + self.goodbye()
