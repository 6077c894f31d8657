"""What the store must have, and when.

* A node that says that the store has all its sessions speaks the truth: each conversation that it has carried as
  established for longer than the flush window and one round trip has its record there. So after a kill nothing is lost
  that is older than that (async mode), and after a failure of the store nothing once it was made whole again.
* In strict mode a client's first answer is not let out before the record is there, or a counter says that it was.
  So of conversations that got their answer none may be without a record at any instant, but those whose record the
  store itself has lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from everwall.counters import Counter
from everwall.limits import STORE_FLUSH_NS
from everwall.sim.checkers import PromiseBroken
from everwall.sim.checkers.order import Order, StoreOrder
from everwall.sim.flows import Flow
from everwall.sim.hosts import Conversation, Phase, TcpConnection
from everwall.sim.loop import MS, SECOND, Loop
from everwall.sim.node import Node
from everwall.sim.packets import ACK, RST, SYN, TCP, Packet
from everwall.sim.storage import StoreServer

_SLACK = MS
"""Polls of the node, and what waits before a request in its connection."""


@dataclass
class _Carried:
    """A conversation at a node."""

    conversation: Conversation
    opened_here: bool
    answered: bool = False
    since: int | None = None
    """When it became worth storing, ns."""
    last: int = 0


class Records:
    """Watches the first packets of conversations, and knows which of them the store has to have."""

    def __init__(
        self,
        loop: Loop,
        server: StoreServer,
        order: StoreOrder,
        is_strict: Callable[[Flow], bool],
        idle: dict[int, int],
    ) -> None:
        """``is_strict``: by every rulebook so far. ``idle``: the shortest idle time-out by protocol, ns."""
        self.answered: set[Conversation] = set()
        """Strict conversations that got their first answer when the store had them."""
        self.lost_by_store: set[Conversation] = set()
        """Conversations whose record the store has lost and that it was not told again."""
        self.ever_lost: set[Conversation] = set()
        """The same, those included that it was told again."""
        self.demanded = 0
        """Conversations that the store had to have when their node failed."""
        self._loop = loop
        self._server = server
        self._order = order
        self._is_strict = is_strict
        self._idle = idle
        self._begun: dict[Conversation, int] = {}
        """Lower bound of the start that a record of this connection may have, ms of store time."""
        self._opened: dict[Conversation, tuple[Node, int]] = {}
        """Which node saw the first SYN of a connection last, and when."""
        self._early: dict[int, set[Conversation]] = {}
        """By node: conversations that were answered before the store had them."""
        self._carried: dict[tuple[int, Flow], _Carried] = {}

    # What is in the store ------------------------------------------------------------------------------------

    def _is_of(self, conversation: Conversation, order: Order | None) -> bool:
        """Whether it is the record of this conversation, not of an older one.

        A node whose clock was ahead when the connection began puts its start right when it writes it.
        """
        if conversation in self._opened:
            node, opened = self._opened[conversation]
            put_right = (node.store_time - self._loop.now + opened) // MS - 1
            self._begun[conversation] = min(put_right, self._begun[conversation])
        return order is not None and order.start >= self._begun.get(conversation, 0)

    def is_stored(self, conversation: Conversation) -> bool:
        """Whether the store holds its record now."""
        return self._is_of(conversation, self._order.held(conversation.flow.key))

    def was_acknowledged(self, conversation: Conversation) -> bool:
        """Whether the store has written its record once, whatever became of it."""
        return self._is_of(conversation, self._order.acknowledged.get(conversation.flow.key))

    def store_lost(self, before: set[Conversation]) -> set[Conversation]:
        """Which of those stored ``before`` are not any more."""
        lost = {one for one in before if not self.is_stored(one)}
        self.lost_by_store |= lost
        self.ever_lost |= lost
        return lost

    # Packets -------------------------------------------------------------------------------------------------

    def forwarded(self, node: Node, flow: Flow, packet: Packet, conversation: Conversation) -> None:
        """A node lets a packet of a conversation out; ``flow`` has its sender first."""
        from_client = flow == conversation.flow
        key = id(node), flow.key
        carried = self._carried.get(key)
        if carried is None or carried.conversation is not conversation:
            carried = self._carried[key] = _Carried(conversation, _opens(packet, conversation))
        carried.last = self._loop.now
        if isinstance(conversation, TcpConnection):
            self._segment(node, carried, packet, from_client)
        elif not from_client and not carried.answered:
            carried.answered = True
            if conversation.rounds == 0:
                self._answer(node, conversation)
        if packet.protocol != TCP and carried.since is None and carried.answered:
            carried.since = self._loop.now

    def _segment(self, node: Node, carried: _Carried, packet: Packet, from_client: bool) -> None:
        conversation = carried.conversation
        if _opens(packet, conversation) and from_client:
            begun = node.store_time // MS - 1
            self._begun[conversation] = min(begun, self._begun.get(conversation, begun))
            self._opened[conversation] = node, self._loop.now
            carried.since = None
        elif packet.flags & (SYN | ACK) == SYN | ACK:
            carried.answered = True
            self._answer(node, conversation)
        elif packet.flags & (SYN | RST) == 0 and carried.since is None:
            established = carried.answered and from_client if carried.opened_here else True
            carried.since = self._loop.now if established else None

    def _answer(self, node: Node, conversation: Conversation) -> None:
        """The first answer passes."""
        if not self._is_strict(conversation.flow):
            return
        if self.was_acknowledged(conversation):
            self.answered.add(conversation)
            return
        early = self._early.setdefault(id(node), set())
        early.add(conversation)
        counted = node.engine.counters[Counter.STRICT_UNACKNOWLEDGED.label]
        if len(early) > counted:
            raise PromiseBroken(
                f"{node.name} answered {conversation} before the store had it", conversation.flow
            )

    # Faults --------------------------------------------------------------------------------------------------

    def must_hold(self, node: Node, conversations: list[Conversation]) -> None:
        """A node is about to fail that carries these."""
        # What is slow now may have been slower a moment ago.
        served = self._server.serves(node.name) and node.is_whole
        bound = STORE_FLUSH_NS + 2 * self._server.longest_way + _SLACK
        for conversation in conversations:
            if self.is_stored(conversation):
                self.demanded += 1
                self.lost_by_store.discard(conversation)
                continue
            carried = self._carried.get((id(node), conversation.flow.key))
            if carried is None or carried.conversation is not conversation or self._may_be_over(carried):
                continue
            if conversation in self.answered and conversation not in self.lost_by_store:
                raise PromiseBroken(f"{conversation} was answered and has no record", conversation.flow)
            if conversation.phase is not Phase.OPEN or carried.since is None:
                continue
            if served and carried.since < self._loop.now - bound:
                raise PromiseBroken(
                    f"{node.name} said that the store has all its sessions, and {conversation}, "
                    f"established {(self._loop.now - carried.since) / MS:.1f} ms ago, is not there",
                    conversation.flow,
                )

    def must_not_have_lost(self, lost: list[Conversation], allowed: Callable[[Flow], bool]) -> None:
        """Of the conversations that broke and were excused, strict mode excuses what the store itself lost only."""
        for one in lost:
            if one in self.answered and one not in self.ever_lost and allowed(one.flow):
                raise PromiseBroken(f"{one} was answered in strict mode and is lost", one.flow)

    def _may_be_over(self, carried: _Carried) -> bool:
        """Whether the node may have ended the session because it was idle."""
        silent = self._loop.now - carried.last
        return silent > self._idle[carried.conversation.flow.protocol] - 2 * SECOND


def _opens(packet: Packet, conversation: Conversation) -> bool:
    """Whether it is the SYN of this very connection."""
    return (
        isinstance(conversation, TcpConnection)
        and packet.flags & (SYN | ACK | RST) == SYN
        and packet.sequence == conversation.client.style.initial
    )
