"""The kinds of connections that the lab mixes, and the ports both ends agree on."""

from __future__ import annotations

from dataclasses import dataclass

TCP_PORT = 5001
UDP_PORT = 5002

UDP_INTERVAL_S = 0.010
UDP_SLOW_INTERVAL_S = 0.100
ICMP_INTERVAL_S = 0.100
GREETING_EXCHANGES = 12
GREETING_INTERVAL_S = 0.08
GREETING_BYTES = 64
"""Every connection begins with a short dialogue, as a log-in is one. It also gives the kernels of both ends
enough round trips to know the path: the retransmission timer of a connection that was opened in a crowd and
has hardly spoken since begins far above its minimum of 200 ms."""
PROBE_BYTES = 48
"""A probe after the event: a small exchange on every connection, whatever its kind."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How one kind of connection behaves."""

    name: str
    interval_s: float
    """Mean time between exchanges at pace 1."""
    up_bytes: int
    down_bytes: int
    window: int
    """Exchanges that may be under way at once."""
    paced: bool
    """Whether the pace of the machine changes the interval."""


IDLE = Kind("idle", 3.0, 64, 64, 1, False)
REQUEST = Kind("request", 0.3, 200, 2_000, 1, True)
BULK = Kind("bulk", 0.2, 8_192, 8_192, 3, True)

_MIX = (IDLE, IDLE, IDLE, IDLE, REQUEST, REQUEST, REQUEST, BULK, BULK, BULK)


def kind_of(connection: int) -> Kind:
    """The kind of the connection with that number: 4 idle, 3 request, 3 bulk of ten."""
    return _MIX[connection % len(_MIX)]
