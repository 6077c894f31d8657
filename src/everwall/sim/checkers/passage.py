"""Nothing passes that policy would not pass.

For every packet that a node lets out there has to be a reason in the rulebooks, read in plain Python:

* the node let the flow in while a rulebook that allows it was in force there, between the flow's first
  packet at this node and now; a flow that was silent for longer than its idle time-out, or whose client
  begins a new connection, has to be let in again;
* a TCP flow is let in by its client's SYN, or because the store held a record of it;
* a datagram flow may also be let in from its server's side, where the rulebook allows that.

What a node let in it may carry on after a change of policy; another node may not.

And what a node says itself, it says about a flow that a rule in force there refuses, and one that answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from everwall.sim import packets
from everwall.sim.checkers import PromiseBroken
from everwall.sim.flows import Flow, flow_of
from everwall.sim.hosts import Conversation, TcpConnection
from everwall.sim.loop import SECOND, Loop
from everwall.sim.node import Node
from everwall.sim.packets import ACK, RST, SYN, TCP, UDP, Packet

_SLACK = 2 * SECOND
"""Ageing comes round once a second, and a node has its own timer."""


@dataclass
class _Stay:
    """A flow at a node."""

    arrived: int
    """Since when the flow's packets ask for being let in, ns."""
    admitted: bool = False
    passed: int = 0
    """When the last packet was let out, ns."""
    initial: int | None = None
    """Initial sequence number of the connection that was let in by its SYN."""


class Passage:
    """Judges what each node lets out."""

    def __init__(
        self,
        loop: Loop,
        conversation: Callable[[Flow], Conversation | None],
        stored: Callable[[Flow], bool],
        idle: dict[int, int],
    ) -> None:
        """``conversation``: the newest of a flow, client first. ``stored``: whether there ever was a record.
        ``idle``: the longest idle time-out by protocol, ns."""
        self.judged = 0
        self.answers = 0
        """Packets that nodes made themselves."""
        self.refused_after_change = 0
        """Packets of flows that a former rulebook allowed and that a node did not let in."""
        self.carriers: dict[Flow, Node] = {}
        """The node that last let a packet of the flow out, by flow key."""
        self._loop = loop
        self._conversation = conversation
        self._stored = stored
        self._idle = idle
        self._stays: dict[tuple[int, Flow], _Stay] = {}
        self._nodes: list[Node] = []

    def _stay(self, node: Node, key: Flow) -> _Stay:
        found = self._stays.get((id(node), key))
        if found is None:
            if node not in self._nodes:
                self._nodes.append(node)  # so that no other node gets its id
            found = self._stays[id(node), key] = _Stay(self._loop.now)
        return found

    def _read(self, outer: bytes) -> tuple[Flow, Packet]:
        packet = packets.read(packets.inner_of(outer))
        return flow_of(int.from_bytes(outer[12:20], "big"), packet), packet

    def arrived(self, node: Node, outer: bytes) -> None:
        """A node takes a packet in."""
        flow, _ = self._read(outer)
        stay = self._stay(node, flow.key)
        silent = self._loop.now - max(stay.passed, stay.arrived)
        if silent > self._idle[flow.protocol] + _SLACK:
            stay.arrived, stay.admitted = self._loop.now, False

    def forwarded(self, node: Node, outer: bytes) -> None:
        """A node lets a packet out."""
        self.judged += 1
        flow, packet = self._read(outer)
        stay = self._stay(node, flow.key)
        conversation = self._conversation(flow) or self._conversation(flow.turned)
        if conversation is None:
            raise PromiseBroken(f"{node.name} let out {flow} flags {packet.flags:#x}: nobody began it", flow)
        opens = packet.protocol == TCP and packet.flags & (SYN | ACK | RST) == SYN
        if opens and isinstance(conversation, TcpConnection) and flow == conversation.flow:
            initial = conversation.client.style.initial
            if packet.sequence == initial and stay.initial != initial:
                stay.initial, stay.admitted = initial, False
                stay.arrived = max(stay.arrived, conversation.opened)
        if not stay.admitted:
            self._admit(node, stay, conversation, flow, opens)
        stay.admitted, stay.passed = True, self._loop.now
        self.carriers[flow.key] = node

    def made(self, node: Node, outer: bytes) -> None:
        """A node lets out a packet of its own."""
        inner = packets.inner_of(outer)
        quoted = packets.quoted(inner)
        packet = packets.read(quoted or inner)
        if quoted is None and not packet.flags & RST:
            raise PromiseBroken(f"{node.name} made a packet that is neither RST nor unreachable: {packet}")
        flow = flow_of(int.from_bytes(outer[12:20], "big"), packet)
        if not any(book.answers(one) for _, book in node.rulebooks for one in (flow, flow.turned)):
            raise PromiseBroken(f"{node.name} answered {flow}, about which no rule says so", flow)
        self.answers += 1

    def _admit(self, node: Node, stay: _Stay, conversation: Conversation, flow: Flow, opens: bool) -> None:
        asked = conversation.flow
        allowed = self._allowed(node, asked, stay.arrived)
        if not allowed and flow != asked and flow.protocol == UDP:
            allowed = self._allowed(node, flow, stay.arrived)
        if not allowed:
            raise PromiseBroken(f"{node.name} let {asked} in, which policy does not allow", flow)
        if flow.protocol == TCP and not opens and not self._stored(flow.key):
            raise PromiseBroken(f"{node.name} let {asked} in without SYN, and the store never had it", flow)

    def _allowed(self, node: Node, flow: Flow, since: int) -> bool:
        """Whether a rulebook that was in force at the node between ``since`` and now allows the flow."""
        books = node.rulebooks
        for i, (_, book) in enumerate(books):
            replaced = books[i + 1][0] if i + 1 < len(books) else None
            if (replaced is None or replaced >= since) and book.allows(flow):
                return True
        return False
