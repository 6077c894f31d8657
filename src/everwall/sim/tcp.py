"""One end of a TCP connection: as much of RFC 9293 as it takes to be easily hurt by a bad firewall.

Positions in a stream are counted from 0 (the SYN) without wrapping; only packets carry sequence numbers.
Every byte sent is a function of its stream and position, so the receiver knows whether it is right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from everwall.sim import packets
from everwall.sim.loop import MS, SECOND, Loop
from everwall.sim.packets import ACK, FIN, PSH, RST, SYN, Packet

RTO = 200 * MS
RTO_MAX = 1600 * MS
"""Lower than real stacks go, so that a fault and its mending fit into a few simulated seconds."""
TRIES_MAX = 24
BURST_SEGMENTS = 10
TIME_WAIT = SECOND
_PATTERN = bytes((7 * i * i + 13 * i) % 251 for i in range(251))
_MASK = 0xFFFFFFFF


class State(Enum):
    """Where an end is in its life."""

    LISTEN = auto()
    SYN_SENT = auto()
    SYN_RECEIVED = auto()
    ESTABLISHED = auto()
    TIME_WAIT = auto()
    DONE = auto()


class News(Enum):
    """What an end tells the application."""

    ESTABLISHED = auto()
    DATA = auto()
    PEER_CLOSED = auto()
    DONE = auto()
    """Both directions were closed in order."""
    RESET = auto()
    REFUSED = auto()
    GAVE_UP = auto()
    CORRUPT = auto()


@dataclass(frozen=True)
class Style:
    """How a host speaks TCP."""

    initial: int
    """Initial sequence number."""
    segment: int
    window: int
    """As in the header; kept the same all the time."""
    scale: int
    """Offered in the SYN, -1 for no option."""


@dataclass(frozen=True)
class Address:
    """One end as packets name it."""

    host: bytes
    port: int


class TcpEnd:
    """One end; ``transmit`` takes packets, ``tell`` news."""

    def __init__(
        self,
        loop: Loop,
        own: Address,
        peer: Address,
        style: Style,
        transmit: Callable[[bytes], None],
        tell: Callable[[TcpEnd, News], None],
    ) -> None:
        self.state = State.LISTEN
        self.received = 0
        """Bytes that arrived in order."""
        self.peer_closed = False
        self.style = style
        self._loop = loop
        self._own, self._peer = own, peer
        self._transmit, self._tell = transmit, tell
        self._peer_initial = 0
        self._peer_window = 0xFFFF
        self._peer_scale = 0
        self._scaling = False
        self._una = self._next = self._highest = 0
        self._written = 0
        self._closing = False
        self._expected = 0  # position of the next byte from the peer
        self._islands: dict[int, tuple[bytes, bool]] = {}
        self._burst = BURST_SEGMENTS
        self._rto, self._tries, self._duplicates = RTO, 0, 0
        self._timer = 0
        self._answered = False

    # What the application does -------------------------------------------------------------------------

    def open(self) -> None:
        """Connect."""
        self.state = State.SYN_SENT
        self._send_new()

    def write(self, count: int) -> None:
        """Send ``count`` more bytes."""
        self._written += count
        self._send_new()

    def close(self) -> None:
        """No more bytes will come."""
        self._closing = True
        self._send_new()

    def abort(self) -> None:
        """Reset the connection."""
        if self.state is not State.DONE:
            self._segment(self._highest, RST | ACK)
            self.forget()

    def forget(self) -> None:
        """Be gone without a word."""
        self.state = State.DONE
        self._timer += 1

    @property
    def unanswered(self) -> bool:
        """Something sent was not acknowledged yet."""
        return self._una < self._highest

    @property
    def expects(self) -> int:
        """Sequence number of the next byte from the peer: what somebody who listens knows."""
        return (self._peer_initial + self._expected) & _MASK

    # Sending ----------------------------------------------------------------------------------------------

    @property
    def _fin_at(self) -> int:
        return 1 + self._written

    def _segment(self, position: int, flags: int, payload: bytes = b"", scale: int = -1) -> None:
        self._answered = True
        acknowledged = self._peer_initial + self._expected if flags & ACK else 0
        self._transmit(
            packets.tcp(
                self._own.host,
                self._own.port,
                self._peer.host,
                self._peer.port,
                flags,
                self.style.initial + position,
                acknowledged,
                self.style.window,
                payload,
                scale,
            )
        )

    def _send_new(self) -> None:
        if self.state is State.SYN_SENT or self.state is State.SYN_RECEIVED:
            if self._next == 0:
                self._send_one()
        elif self.state is State.ESTABLISHED:
            limit = self._una + min(self._peer_window, self._burst * self.style.segment)
            last = self._fin_at + int(self._closing)
            while self._next < last and self._next < limit:
                self._send_one()
        if self._una < self._next and self._timer & 1 == 0:
            self._arm()

    def _send_one(self) -> None:
        """The segment at ``_next``."""
        at = self._next
        if at == 0:
            flags = SYN if self.state is State.SYN_SENT else SYN | ACK
            scale = self.style.scale if flags == SYN or self._scaling else -1
            self._segment(0, flags, scale=scale)
            self._next = 1
        elif at < self._fin_at:
            size = min(self.style.segment, self._fin_at - at, self._peer_window)
            self._segment(at, ACK | PSH, _content(self.style.initial, at, size))
            self._next = at + size
        else:
            self._segment(at, ACK | FIN)
            self._next = at + 1
        self._highest = max(self._highest, self._next)

    def _arm(self) -> None:
        # Odd while a timer runs; every change makes timers under way void.
        self._timer += 1 + (self._timer & 1)
        self._loop.after(self._rto, self._expire, self._timer)

    def _disarm(self) -> None:
        self._timer += self._timer & 1

    def _expire(self, timer: int) -> None:
        if timer != self._timer or self.state is State.DONE:
            return
        self._timer += 1
        if self._una >= self._highest:
            return
        self._tries += 1
        if self._tries > TRIES_MAX:
            self.forget()
            self._tell(self, News.GAVE_UP)
            return
        self._rto = min(2 * self._rto, RTO_MAX)
        self._burst = 1
        self._next = self._una
        self._send_one()
        self._arm()

    # Receiving --------------------------------------------------------------------------------------------

    def receive(self, packet: Packet) -> None:
        """A segment for this end."""
        if self.state is State.LISTEN:
            self._listen(packet)
        elif self.state is State.SYN_SENT:
            self._await_answer(packet)
        elif self.state is State.DONE:
            self._refuse(packet)
        else:
            self._synchronized(packet)

    def _refuse(self, packet: Packet) -> None:
        if packet.flags & RST:
            return
        if packet.flags & ACK:
            sequence, acknowledged, flags = packet.acknowledgement, 0, RST
        else:
            sequence, acknowledged, flags = 0, packet.sequence + len(packet.payload) + 1, RST | ACK
        self._transmit(
            packets.tcp(
                self._own.host,
                self._own.port,
                self._peer.host,
                self._peer.port,
                flags,
                sequence,
                acknowledged,
                0,
            )
        )

    def _meet(self, packet: Packet) -> None:
        """Learn from the peer's SYN or SYN-ACK."""
        self._peer_initial = packet.sequence
        self._expected = 1
        self._scaling = self.style.scale >= 0 and packet.scale >= 0
        self._peer_scale = packet.scale if self._scaling else 0
        self._peer_window = packet.window

    def _listen(self, packet: Packet) -> None:
        if packet.flags & (SYN | ACK | RST) != SYN:
            self._refuse(packet)
            return
        self._meet(packet)
        self.state = State.SYN_RECEIVED
        self._send_new()

    def _await_answer(self, packet: Packet) -> None:
        acceptable = packet.flags & ACK and packet.acknowledgement == (self.style.initial + 1) & _MASK
        if packet.flags & ACK and not acceptable:
            self._refuse(packet)
            return
        if packet.flags & RST:
            if acceptable:
                self.forget()
                self._tell(self, News.REFUSED)
            return
        if not acceptable or not packet.flags & SYN:
            return
        self._meet(packet)
        self._una = 1
        self._establish()
        if not self._answered:
            self._segment(self._highest, ACK)

    def _establish(self) -> None:
        self.state = State.ESTABLISHED
        self._progress()
        self._answered = False
        self._tell(self, News.ESTABLISHED)
        self._send_new()

    def _progress(self) -> None:
        self._rto, self._tries, self._duplicates = RTO, 0, 0
        self._burst = min(self._burst + 1, BURST_SEGMENTS)
        self._next = max(self._next, self._una)
        self._disarm()

    def _synchronized(self, packet: Packet) -> None:
        position = _unwrap(packet.sequence - self._peer_initial, self._expected)
        if packet.flags & RST:
            if position == self._expected:
                self.forget()
                self._tell(self, News.RESET)
            elif 0 < position - self._expected < 0x10000:
                self._segment(self._highest, ACK)  # RFC 5961 section 3.2
            return
        if packet.flags & SYN:
            if self.state is State.SYN_RECEIVED and position == 0:
                self._next = 0
                self._send_one()
            else:
                self._segment(self._highest, ACK)  # RFC 5961 section 4.2
            return
        if not packet.flags & ACK:
            return
        acknowledged = _unwrap(packet.acknowledgement - self.style.initial, self._una)
        if acknowledged > self._highest:
            self._segment(self._highest, ACK)
            return
        self._answered = False
        if self.state is State.SYN_RECEIVED:
            if acknowledged < 1:
                return
            self._una = 1
            self._establish()
        self._peer_window = packet.window << self._peer_scale
        self._acknowledge(packet, acknowledged)
        occupies = len(packet.payload) + (packet.flags & FIN)
        if occupies:
            self._answered = False
            self._take(position, packet.payload, bool(packet.flags & FIN))
        if self.state is State.ESTABLISHED or self.state is State.TIME_WAIT:
            self._send_new()
            if occupies and not self._answered:
                self._segment(self._highest, ACK)
        self._finish()

    def _acknowledge(self, packet: Packet, acknowledged: int) -> None:
        if acknowledged > self._una:
            self._una = acknowledged
            self._progress()
        elif acknowledged == self._una < self._highest and not packet.payload and not packet.flags & FIN:
            self._duplicates += 1
            if self._duplicates == 3:
                self._next = self._una
                self._send_one()
                self._next = max(self._next, self._highest)

    def _take(self, position: int, payload: bytes, fin: bool) -> None:
        """Keep what arrived, hand over what is in order."""
        if position > self._expected:
            self._islands[position] = (payload, fin)
            return
        before = self.received
        while True:
            fresh = payload[self._expected - position :]
            if fresh and not self.peer_closed:
                if fresh != _content(self._peer_initial, self._expected, len(fresh)):
                    self._tell(self, News.CORRUPT)
                self._expected += len(fresh)
                self.received += len(fresh)
            if fin and not self.peer_closed and position + len(payload) == self._expected:
                self._expected += 1
                self.peer_closed = True
            for start in [start for start in self._islands if start <= self._expected]:
                position, (payload, fin) = start, self._islands.pop(start)
                break
            else:
                break
        if self.received > before:
            self._tell(self, News.DATA)
        if self.peer_closed and self.state is State.ESTABLISHED:
            self._tell(self, News.PEER_CLOSED)

    def _finish(self) -> None:
        """Be done when both directions are closed; who closed first lingers to acknowledge again."""
        if self.state is not State.ESTABLISHED or not self.peer_closed or not self._closing:
            return
        if self._una == self._fin_at + 1:
            self.state = State.TIME_WAIT
            self._disarm()
            self._loop.after(TIME_WAIT, self._end_time_wait)

    def _end_time_wait(self) -> None:
        if self.state is State.TIME_WAIT:
            self.forget()
            self._tell(self, News.DONE)


def _unwrap(number: int, near: int) -> int:
    """The position whose low 32 bits are those of ``number`` and that is nearest to ``near``."""
    return near + ((number - near + 0x80000000) & _MASK) - 0x80000000


def _content(initial: int, position: int, size: int) -> bytes:
    """The bytes of a stream, which is named by its initial sequence number."""
    at = (initial + position) % 251
    return (_PATTERN * (size // 251 + 2))[at : at + size]
