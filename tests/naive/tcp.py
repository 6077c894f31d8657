"""TCP as a firewall in the middle sees it, in plain Python: what the kernel is held to.

Written from the rules: who may send what in which state; four bounds on sequence and
acknowledgement; care with RST; learning anew after a takeover. It shares no code with the kernel, only the numbers
by which states and verdicts are called.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from everwall.session import tcp as names
from everwall.verdict import Verdict

FIN, SYN, RST, ACK = 1, 2, 4, 16
MODULUS = 1 << 32
SLACK = 66_000

DROP = "drop"
RESTART = "restart"


def is_after(a: int, b: int) -> bool:
    """a comes after b on the circle of sequence numbers."""
    distance = (a - b) % MODULUS
    return 0 < distance < MODULUS // 2


@dataclass
class Segment:
    """What of a segment matters here."""

    from_client: bool
    flags: int
    seq: int
    ack: int
    window: int
    payload: int = 0
    scale: int | None = None
    """Window scale option, where there is one."""

    @property
    def end(self) -> int:
        return (self.seq + self.payload + bool(self.flags & SYN) + bool(self.flags & FIN)) % MODULUS

    @property
    def kind(self) -> str:
        if self.flags & RST:
            return "RST"
        if self.flags & SYN:
            return "SYN-ACK" if self.flags & ACK else "SYN"
        if not self.flags & ACK:
            return "nothing"
        return "FIN" if self.flags & FIN else "ACK"


@dataclass
class Side:
    """What is known of one end."""

    known: bool = False
    sent: int = 0
    """Sequence after the last byte it sent."""
    allowed: int = 0
    """Sequence up to which the other end lets it send."""
    offered: int = 0
    """Largest window it advertised, in bytes."""
    scale: int = 0


@dataclass
class Session:
    """One connection; ``judge`` says what becomes of a segment and remembers what it taught."""

    state: int = names.TCP_INIT
    client: Side = field(default_factory=Side)
    server: Side = field(default_factory=Side)
    client_can_scale: bool = True
    relearning: bool = False
    syn_inside: int | None = None
    """Acknowledgement that would answer a SYN seen in the middle of the connection, or of the handshake."""

    @classmethod
    def opened_by(cls, syn: Segment) -> Session:
        session = cls()
        session._begin(syn)
        return session

    @classmethod
    def reopened_by(cls, syn_ack: Segment) -> Session:
        """The SYN was passed on unread; its window and scale are taken as large as may be."""
        session = cls(names.TCP_HANDSHAKE)
        scaling = syn_ack.scale is not None
        allowed = (syn_ack.ack + max(syn_ack.window, 1)) % MODULUS
        session.client = Side(True, syn_ack.ack, allowed, 0xFFFF, 14 if scaling else 0)
        session.server = Side(True, syn_ack.end, syn_ack.end, max(syn_ack.window, 1), syn_ack.scale or 0)
        return session

    def taken_over(self) -> Session:
        """As another node restores it: what the record holds, and nothing about sequences."""
        return Session(
            self.state if self.state != names.TCP_UNVERIFIED_RST else names.TCP_ESTABLISHED,
            Side(scale=self.client.scale),
            Side(scale=self.server.scale),
            self.client_can_scale,
            relearning=True,
        )

    def _begin(self, syn: Segment) -> None:
        self.client.known = True
        self.client.sent = self.client.allowed = syn.end
        self.client.offered = max(syn.window, 1)
        self.client.scale = syn.scale or 0
        self.server.scale = 0
        self.client_can_scale = syn.scale is not None

    def judge(self, segment: Segment) -> tuple[int, int | str]:
        """(verdict, next state); RESTART where the segment begins a new connection."""
        follows = self._by_state(segment)
        if follows == DROP:
            return Verdict.TCP_STATE, self.state
        if follows == RESTART:
            return Verdict.FORWARD, RESTART
        if segment.kind == "RST":
            return self._judge_rst(segment)
        opening = self.state in (names.TCP_INIT, names.TCP_HANDSHAKE)
        if segment.kind == "SYN" and (not opening or self._begins_again(segment)):
            self.syn_inside = segment.end
            return Verdict.FORWARD, self.state
        answers = segment.kind == "SYN-ACK" and segment.ack == self.syn_inside
        if answers and not (opening and segment.from_client):
            return Verdict.FORWARD, RESTART
        if segment.kind == "SYN-ACK" and not opening:
            return Verdict.FORWARD, self.state
        if self.state == names.TCP_INIT and segment.from_client:
            self._begin(segment)
            return Verdict.FORWARD, self.state
        if not segment.from_client and segment.flags & SYN and not self.server.known:
            return self._answered(segment, follows)
        if self.state == names.TCP_INIT:
            return Verdict.FORWARD, follows
        if self.client.known and self.server.known and not self._fits(segment):
            if not self.relearning:
                return Verdict.TCP_WINDOW, self.state
            if self.client.offered and self.server.offered:
                self._learn_anew(segment)
                return Verdict.FORWARD, follows
        self._learn(segment)
        return Verdict.FORWARD, follows

    def _begins_again(self, syn: Segment) -> bool:
        """A client whose first SYN was answered sends one of another sequence."""
        certain = self.client.known and not self.relearning
        return (
            syn.from_client and self.state == names.TCP_HANDSHAKE and certain and syn.end != self.client.sent
        )

    # Who may send what, when ------------------------------------------------------------------------

    def _by_state(self, segment: Segment) -> int | str:
        return {
            "SYN": self._on_syn,
            "SYN-ACK": self._on_syn_ack,
            "FIN": self._on_fin,
            "RST": lambda client: names.TCP_CLOSED,
            "ACK": self._on_ack,
            "nothing": lambda client: DROP,
        }[segment.kind](segment.from_client)

    def _on_syn(self, client: bool) -> int | str:
        if self.state in (names.TCP_TIME_WAIT, names.TCP_CLOSED):
            return RESTART
        if self.state == names.TCP_INIT and not client:
            return names.TCP_HANDSHAKE
        half_closed = self.state in (names.TCP_HALF_CLOSED_CLIENT, names.TCP_HALF_CLOSED_SERVER)
        return DROP if half_closed and not client else self.state

    def _on_syn_ack(self, client: bool) -> int | str:
        if self.state in (names.TCP_TIME_WAIT, names.TCP_CLOSED):
            return DROP
        if client:
            return self.state if self.state == names.TCP_HANDSHAKE else DROP
        return names.TCP_HANDSHAKE if self.state == names.TCP_INIT else self.state

    def _on_fin(self, client: bool) -> int | str:
        if self.state in (names.TCP_INIT, names.TCP_CLOSED):
            return DROP
        mine = names.TCP_HALF_CLOSED_CLIENT if client else names.TCP_HALF_CLOSED_SERVER
        if self.state in (names.TCP_HANDSHAKE, names.TCP_ESTABLISHED, names.TCP_UNVERIFIED_RST, mine):
            return mine
        return names.TCP_TIME_WAIT

    def _on_ack(self, client: bool) -> int | str:
        if self.state == names.TCP_CLOSED or (self.state == names.TCP_INIT and client):
            return DROP
        if self.state == names.TCP_UNVERIFIED_RST or (self.state == names.TCP_HANDSHAKE and client):
            return names.TCP_ESTABLISHED
        return self.state

    # RST --------------------------------------------------------------------------------------------

    def _judge_rst(self, segment: Segment) -> tuple[int, int]:
        sender, receiver = self._sides(segment)
        exact = Verdict.FORWARD, names.TCP_CLOSED
        outside = Verdict.TCP_RST_WINDOW, self.state
        doubtful = names.TCP_UNVERIFIED_RST if self.state == names.TCP_ESTABLISHED else self.state
        if self.state == names.TCP_CLOSED:
            return exact
        if self.state == names.TCP_INIT and not segment.from_client:
            return exact if self.relearning or segment.ack == receiver.sent else outside
        if not sender.known:
            return Verdict.FORWARD, doubtful
        if segment.seq == sender.sent:
            return exact
        if not self.relearning:
            too_far = is_after(segment.seq, sender.allowed)
            too_old = is_after(sender.sent - max(receiver.offered, 1), segment.seq)
            if too_far or too_old:
                return outside
        return Verdict.FORWARD, doubtful

    # Windows ----------------------------------------------------------------------------------------

    def _sides(self, segment: Segment) -> tuple[Side, Side]:
        return (self.client, self.server) if segment.from_client else (self.server, self.client)

    def _answered(self, segment: Segment, follows: int | str) -> tuple[int, int | str]:
        """The server's first SYN, with or without ACK."""
        if segment.kind == "SYN-ACK" and self.client.known and segment.ack != self.client.sent:
            return Verdict.TCP_WINDOW, self.state
        if self.client_can_scale and segment.scale is not None:
            self.server.scale = segment.scale
        else:
            self.client.scale = self.server.scale = 0
        self._learn(segment)
        return Verdict.FORWARD, follows

    def _fits(self, segment: Segment) -> bool:
        sender, receiver = self._sides(segment)
        if is_after(segment.seq, sender.allowed + 1):
            return False
        if is_after(sender.sent - max(receiver.offered, 1), segment.end):
            return False
        if not segment.flags & ACK:
            return True
        behind = max(SLACK, sender.offered)
        return not is_after(segment.ack, receiver.sent) and not is_after(receiver.sent - behind, segment.ack)

    def _learn_anew(self, segment: Segment) -> None:
        """Two segments contradict each other while it learns: the later one is believed."""
        sender, receiver = self._sides(segment)
        sender.sent = segment.end
        sender.allowed = (segment.end + receiver.offered) % MODULUS
        window = segment.window if segment.flags & SYN else segment.window << sender.scale
        sender.offered = max(sender.offered, window)
        receiver.sent = segment.ack
        receiver.allowed = (segment.ack + max(window, 1)) % MODULUS

    def _learn(self, segment: Segment) -> None:
        sender, receiver = self._sides(segment)
        if not sender.known:
            sender.known = True
            sender.sent = sender.allowed = segment.end
        elif is_after(segment.end, sender.sent):
            sender.sent = segment.end
        window = segment.window if segment.flags & SYN else segment.window << sender.scale
        sender.offered = max(sender.offered, window)
        if not segment.flags & ACK:
            return
        allowed = (segment.ack + max(window, 1)) % MODULUS
        if not receiver.known:
            if self.relearning:  # what is acknowledged was sent
                receiver.known, receiver.sent, receiver.allowed = True, segment.ack, allowed
            return
        if is_after(allowed, receiver.allowed):
            receiver.allowed = allowed
        if self.relearning and is_after(segment.ack, receiver.sent):
            receiver.sent = segment.ack
