"""What the lab's connections say to each other: exchanges over two streams whose every byte is known.

Each connection has two endless pseudo-random streams, one for each direction. A request carries
the next piece of the upward stream, its answer the next piece of the downward one. Both ends know
where they are in both streams, so every byte is compared with the byte that belongs there: an
altered, missing, repeated or misdirected byte is seen at once.

Frame: connection, sequence number, length of the payload, length of the wanted answer (0 in an
answer), each 4 bytes big-endian, then the payload.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

HEADER = struct.Struct("!IIII")
PAYLOAD_BYTES_MAX = 1 << 16

# A prime length: no power of two, no segment size and no window divides it, so a gap of any
# natural size lands on other bytes.
_PERIOD = 1_048_573
_BYTES = random.Random(20_241_122).randbytes(_PERIOD)
_BLOCK = _BYTES + _BYTES[:PAYLOAD_BYTES_MAX]

UP = "up"
DOWN = "down"


class Corrupt(Exception):
    """The peer's bytes are not the ones that belong here; the message says what differs."""


class Stream:
    """One direction of one connection, with its running position."""

    __slots__ = ("_offset", "position")

    def __init__(self, connection: int, direction: str) -> None:
        seed = blake2b(f"{connection}/{direction}".encode(), digest_size=8).digest()
        self._offset = int.from_bytes(seed, "big") % _PERIOD
        self.position = 0

    def take(self, length: int) -> bytes:
        """The next ``length`` bytes (at most PAYLOAD_BYTES_MAX)."""
        start = (self._offset + self.position) % _PERIOD
        self.position += length
        return _BLOCK[start : start + length]

    def verify(self, payload: bytes) -> None:
        """Compare ``payload`` with what belongs here; raises Corrupt."""
        at = self.position
        if payload != self.take(len(payload)):
            self.position = at
            raise Corrupt(f"{len(payload)} bytes at position {at} are not the ones that were sent")


@dataclass(frozen=True, slots=True)
class Frame:
    connection: int
    sequence: int
    payload: bytes
    answer_length: int


def frame(connection: int, sequence: int, payload: bytes, answer_length: int) -> bytes:
    """The bytes of one frame."""
    return HEADER.pack(connection, sequence, len(payload), answer_length) + payload


class Frames:
    """Cuts received bytes into frames."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting = bytearray()

    def feed(self, received: bytes) -> Iterator[Frame]:
        """Yield every frame that is complete now; raises Corrupt for lengths that nobody sends."""
        waiting = self._waiting
        waiting += received
        start = 0
        try:
            while len(waiting) - start >= HEADER.size:
                connection, sequence, length, answer = HEADER.unpack_from(waiting, start)
                if length > PAYLOAD_BYTES_MAX or answer > PAYLOAD_BYTES_MAX:
                    raise Corrupt(f"a frame of {length} bytes, answered by {answer}")
                end = start + HEADER.size + length
                if len(waiting) < end:
                    break
                yield Frame(
                    connection,
                    sequence,
                    bytes(waiting[start + HEADER.size : end]),
                    answer,
                )
                start = end
        finally:
            del waiting[:start]
