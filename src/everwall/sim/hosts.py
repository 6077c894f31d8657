"""Clients and servers: conversations whose every round trip is known to the checkers.

A conversation is asked for one *round* at a time: so many bytes (or one datagram) in one direction and an
answer. It reports when a round begins and ends; whether it had to end is for ``checkers.liveness``.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

from everwall.sim import packets
from everwall.sim.flows import Flow, flow_of
from everwall.sim.loop import MS, Loop
from everwall.sim.packets import RST, TCP, UDP, Packet
from everwall.sim.tcp import Address, News, State, Style, TcpEnd

Enter = Callable[[int, bytes], None]
"""Puts a packet of a host on the way: endpoint, packet."""

RETRY = 700 * MS
"""A datagram without an answer is sent again after this."""


class Phase(Enum):
    """What an application thinks of its conversation."""

    OPENING = auto()
    OPEN = auto()
    CLOSING = auto()
    CLOSED = auto()
    BROKEN = auto()


class Witness(Protocol):
    """Who is told what happens to conversations."""

    def round_began(self, conversation: Conversation, push: bool) -> None: ...

    def round_ended(self, conversation: Conversation) -> None: ...

    def broke(self, conversation: Conversation, why: str) -> None: ...


class Conversation:
    """What TCP connections, UDP flows and pings have in common."""

    def __init__(self, flow: Flow, opened: int) -> None:
        self.flow = flow
        self.opened = opened
        self.phase = Phase.OPENING
        self.in_round = False
        self.rounds = 0
        """Round trips completed."""
        self.bytes = 0
        """Application bytes received and found right."""

    @property
    def live(self) -> bool:
        """Established, and nobody means to end it."""
        return self.phase is Phase.OPEN

    def begin_round(self, question: int, answer: int, push: bool = False) -> None:
        """Ask for so many bytes with so many; ``push``: the server speaks first."""
        raise NotImplementedError

    def receive(self, at_client: bool, packet: Packet) -> None:
        """A packet for one of the hosts."""
        raise NotImplementedError

    def forget(self) -> None:
        """Both hosts give up without a word."""

    def __str__(self) -> str:
        return f"{self.flow} ({self.phase.name.lower()}, {self.rounds} rounds)"


class TcpConnection(Conversation):
    """Both ends of a TCP connection and what is said over it."""

    def __init__(
        self, loop: Loop, flow: Flow, styles: tuple[Style, Style], enter: Enter, witness: Witness
    ) -> None:
        super().__init__(flow, loop.now)
        self.witness = witness
        client, server = Address(flow.client, flow.cport), Address(flow.server, flow.sport)

        def transmit(packet: bytes) -> None:
            enter(flow.endpoint, packet)

        self.client = TcpEnd(loop, client, server, styles[0], transmit, self._news)
        self.server = TcpEnd(loop, server, client, styles[1], transmit, self._news)
        self._asked = self._to_answer = self._client_wants = 0
        self.client_closed = False
        """Half-closed: only the server speaks."""
        self.client.open()

    @property
    def ends(self) -> tuple[TcpEnd, TcpEnd]:
        """Client and server."""
        return self.client, self.server

    def begin_round(self, question: int, answer: int, push: bool = False) -> None:
        assert not self.in_round
        self.in_round = True
        self.witness.round_began(self, push)
        self._client_wants += answer
        if push:
            self.server.write(answer)
        else:
            self._asked += question
            self._to_answer = answer
            self.client.write(question)

    def receive(self, at_client: bool, packet: Packet) -> None:
        (self.client if at_client else self.server).receive(packet)

    def close(self, by_client: bool) -> None:
        """Send FIN from one end; the other closes too as soon as it sees it."""
        self.phase = Phase.CLOSING
        (self.client if by_client else self.server).close()

    def half_close(self) -> None:
        """The client has nothing more to say; the server goes on until ``finish``."""
        self.client_closed = True
        self.client.close()

    def finish(self) -> None:
        """End a half-closed connection."""
        self.phase = Phase.CLOSING
        self.server.close()

    @property
    def over(self) -> bool:
        """Both hosts have forgotten it."""
        return self.client.state is State.DONE and self.server.state is State.DONE

    def abort(self, by_client: bool) -> None:
        """Reset the connection; the other end learns it by the packet, or by the answer to its next."""
        self.phase = Phase.CLOSED
        (self.client if by_client else self.server).abort()

    def forget(self) -> None:
        self.client.forget()
        self.server.forget()

    def _news(self, end: TcpEnd, news: News) -> None:
        if news is News.ESTABLISHED:
            if end is self.client and self.phase is Phase.OPENING:
                self.phase = Phase.OPEN
        elif news is News.DATA:
            self._data(end)
        elif news is News.PEER_CLOSED:
            if end is self.client or not self.client_closed:
                end.close()
        elif news is News.DONE:
            if self.phase is Phase.CLOSING:
                self.phase = Phase.CLOSED
        elif self.phase in (Phase.OPENING, Phase.OPEN) or news is News.CORRUPT:
            self.phase = Phase.BROKEN
            self.witness.broke(self, f"{'client' if end is self.client else 'server'}: {news.name.lower()}")
        elif self.phase is Phase.CLOSING:
            self.phase = Phase.CLOSED

    def _data(self, end: TcpEnd) -> None:
        if end is self.server:
            if self._to_answer and self.server.received >= self._asked:
                answer, self._to_answer = self._to_answer, 0
                self.server.write(answer)
        elif self.in_round and self.client.received >= self._client_wants:
            self.in_round = False
            self.rounds += 1
            self.bytes = self.client.received + self.server.received
            self.witness.round_ended(self)


class DatagramFlow(Conversation):
    """UDP request and reply, UDP push and acknowledgement, or ping."""

    def __init__(self, loop: Loop, flow: Flow, enter: Enter, witness: Witness) -> None:
        super().__init__(flow, loop.now)
        self.witness = witness
        self._loop = loop
        self._enter = enter
        self._round = 0
        self._question = self._answer = 0
        self._push = False

    def begin_round(self, question: int, answer: int, push: bool = False) -> None:
        assert not self.in_round
        self.in_round = True
        self.witness.round_began(self, push)
        self._round += 1
        self._question, self._answer, self._push = question, answer, push
        self._ask(self._round)

    def _ask(self, number: int) -> None:
        if number != self._round or not self.in_round or self.phase not in (Phase.OPENING, Phase.OPEN):
            return
        self._send(not self._push, b"?%d " % number + bytes(self._question))
        self._loop.after(RETRY, self._ask, number)

    def _send(self, from_client: bool, payload: bytes) -> None:
        source, sport, destination, dport = self.flow[2:] if from_client else self.flow.turned[2:]
        if self.flow.protocol == UDP:
            packet = packets.udp(source, sport, destination, dport, payload)
        else:
            packet = packets.echo(source, destination, sport, from_client, payload)
        self._enter(self.flow.endpoint, packet)

    def receive(self, at_client: bool, packet: Packet) -> None:
        text, _, filling = packet.payload.partition(b" ")
        number = int(text[1:])
        self.bytes += len(filling)
        if text[:1] == b"?":
            self._send(at_client, b"!%d " % number + bytes(self._answer))
        elif self.in_round and number == self._round:
            self.in_round = False
            self.rounds += 1
            if self.phase is Phase.OPENING:
                self.phase = Phase.OPEN
            self.witness.round_ended(self)

    def close(self) -> None:
        """Say nothing more."""
        self.phase = Phase.CLOSED


class Hosts:
    """All clients and servers: who gets a packet that the balancer lets out."""

    def __init__(self, enter: Enter) -> None:
        self.by_flow: dict[Flow, Conversation] = {}
        """The newest conversation of each flow, client first."""
        self.unreachable = 0
        """Packets that a firewall says it refused; nobody here acts on it."""
        self.unexpected = 0
        """Packets that belong to no conversation."""
        self._enter = enter

    def add(self, conversation: Conversation) -> None:
        """A new conversation; it takes the place of an older one of the same flow."""
        self.by_flow[conversation.flow] = conversation

    def receive(self, endpoint: int, packet: bytes) -> None:
        """A packet leaves the balancer at an endpoint."""
        if packets.quoted(packet) is not None:
            self.unreachable += 1
            return
        seen = packets.read(packet)
        flow = flow_of(endpoint, seen)
        conversation = self.by_flow.get(flow)
        if conversation is not None:
            conversation.receive(False, seen)
            return
        conversation = self.by_flow.get(flow.turned)
        if conversation is not None:
            conversation.receive(True, seen)
            return
        self.unexpected += 1
        if seen.protocol == TCP and not seen.flags & RST:
            self._enter(
                endpoint,
                packets.tcp(
                    flow.server, flow.sport, flow.client, flow.cport, RST, seen.acknowledgement, 0, 0
                ),
            )
