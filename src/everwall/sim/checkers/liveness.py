"""No established session is lost.

Every round trip of a live conversation has to end within ``BOUND`` of its beginning, or of the moment at
which the cluster was whole again, where a fault came between. A live connection may not be reset or given up.
Excused is only

* a conversation whose node died, hung or was cut off when the store had no record of it (``records.py`` says when it
  must have one);
* one whose record the store lost while its node was away: nobody has it then;
* one that a rulebook in force somewhere does not allow any more.

A fault of the store alone excuses nothing: traffic goes on without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from everwall.sim.checkers import PromiseBroken
from everwall.sim.flows import Flow
from everwall.sim.hosts import Conversation, Phase
from everwall.sim.loop import SECOND, Loop
from everwall.sim.node import Node

BOUND = 12 * SECOND
"""Five retransmissions at the slowest pace and more; packets are lost at random as well."""


@dataclass
class Disturbance:
    """From a fault to the moment when the balancer knew of it and the store was there."""

    begin: int
    end: int


class Liveness:
    """Waits for the end of every round."""

    def __init__(
        self,
        loop: Loop,
        is_stored: Callable[[Conversation], bool],
        carriers: dict[Flow, Node],
        allowed: Callable[[Flow], bool],
    ) -> None:
        self.excused: dict[Conversation, str] = {}
        self.refused = 0
        """Conversations that no rulebook ever allowed, and that did not come about."""
        self.lost: list[Conversation] = []
        """Conversations that broke and were excused."""
        self.disturbances: list[Disturbance] = []
        self.rounds = 0
        self.is_stored = is_stored
        self._loop = loop
        self._carriers = carriers
        self._allowed = allowed
        self._current: dict[Conversation, int] = {}

    # Told by conversations -----------------------------------------------------------------------------------

    def round_began(self, conversation: Conversation, push: bool) -> None:
        """From now on an answer is owed."""
        self._current[conversation] = self._loop.now
        self._loop.after(BOUND, self._owed, conversation, self._loop.now)

    def round_ended(self, conversation: Conversation) -> None:
        """It came."""
        self.rounds += 1
        self._current.pop(conversation, None)

    def broke(self, conversation: Conversation, why: str) -> None:
        """A host gave the conversation up, or found it reset."""
        self._current.pop(conversation, None)
        self._judge(conversation, why)

    # Told by faults --------------------------------------------------------------------------------------------

    def carried(self, conversations: list[Conversation], node: Node) -> list[Conversation]:
        """Those of the conversations whose last packet this node let out."""
        return [one for one in conversations if self._carriers.get(one.flow.key) is node]

    def struck(self, conversations: list[Conversation], node: Node, until: int) -> None:
        """A fault hits a node; at ``until`` all is well again as far as others are concerned."""
        self.disturbances.append(Disturbance(self._loop.now, until))
        for conversation in self.carried(conversations, node):
            if not self.is_stored(conversation):
                self.excused.setdefault(conversation, f"not acknowledged when {node.name} failed")

    def store_lost(self, conversations: set[Conversation], well: Callable[[Node], bool]) -> None:
        """The store has lost the records of these; who has a node that is well is in its table still."""
        for conversation in conversations:
            carrier = self._carriers.get(conversation.flow.key)
            if carrier is None or not well(carrier):
                self.excused.setdefault(conversation, "the store lost it while its node was away")

    # Judging ---------------------------------------------------------------------------------------------------

    def _deadline(self, began: int) -> int:
        base = began
        for disturbance in self.disturbances:
            if disturbance.begin <= base + BOUND and disturbance.end > base:
                base = disturbance.end
        return base + BOUND

    def _owed(self, conversation: Conversation, began: int) -> None:
        if self._current.get(conversation) != began:
            return
        if conversation.phase not in (Phase.OPEN, Phase.OPENING):
            return
        deadline = self._deadline(began)
        if deadline > self._loop.now:
            self._loop.at(deadline, self._owed, conversation, began)
            return
        self._judge(conversation, f"no round trip in {(self._loop.now - began) / SECOND:.1f} s")

    def _judge(self, conversation: Conversation, why: str) -> None:
        if "corrupt" not in why:
            if conversation.phase is Phase.OPENING and not self._allowed(conversation.flow):
                self.refused += 1
                conversation.phase = Phase.BROKEN
                conversation.forget()
                return
            if not self._allowed(conversation.flow):
                self.excused.setdefault(conversation, "not allowed")
            if conversation in self.excused:
                conversation.phase = Phase.BROKEN
                self.lost.append(conversation)
                conversation.forget()
                return
        raise PromiseBroken(f"{conversation} was lost: {why}", conversation.flow)
