"""Who talks in a run, when, and how conversations end; all drawn from the seed."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from random import Random

from everwall.sim import packets
from everwall.sim.checkers.liveness import Liveness
from everwall.sim.flows import Flow
from everwall.sim.hosts import Conversation, DatagramFlow, Hosts, Phase, TcpConnection
from everwall.sim.loop import MS, SECOND, Loop
from everwall.sim.packets import ACK, FIN, ICMP, ICMPV6, PSH, RST, SYN, TCP, UDP
from everwall.sim.plan import (
    ALT,
    CLIENT_NETWORKS,
    CLOSED_TCP,
    CLOSED_UDP,
    DNS,
    PUSH,
    SERVER_NETWORKS,
    SPARE_FIRST,
    WEB,
    Plan,
)
from everwall.sim.tcp import Style

_FAR_AWAY = "10.9.9.9"
"""A server that no rule names."""


class Pace:
    """How long a conversation is silent between two rounds, and how much it says in one."""

    def __init__(self, silence: tuple[int, int], most: int, push: bool = False) -> None:
        self.silence = silence
        self.most = most
        self.push = push


class Traffic:
    """Begins conversations and rounds, and passes on to the checker what becomes of them."""

    def __init__(
        self,
        loop: Loop,
        plan: Plan,
        hosts: Hosts,
        enter: Callable[[int, bytes], None],
        liveness: Liveness,
        forge: Callable[[Flow, Random], None],
    ) -> None:
        self.conversations: list[Conversation] = []
        self.strays = 0
        self._loop = loop
        self._plan = plan
        self._hosts = hosts
        self._enter = enter
        self._liveness = liveness
        self._forge = forge
        self._random = Random(f"{plan.seed}/traffic")
        self._pace: dict[Conversation, Pace] = {}
        self._left: dict[Conversation, int] = {}
        """Rounds until a passing connection ends."""
        self._stopped = False
        self._next_port = 20_000

    # Witness -------------------------------------------------------------------------------------------------

    def round_began(self, conversation: Conversation, push: bool) -> None:
        self._liveness.round_began(conversation, push)

    def round_ended(self, conversation: Conversation) -> None:
        self._liveness.round_ended(conversation)
        if self._stopped or not conversation.live:
            return
        if conversation in self._left:
            self._left[conversation] -= 1
            if self._left[conversation] <= 0:
                assert isinstance(conversation, TcpConnection)
                self._end(conversation)
                return
        self._loop.after(self._random.randint(*self._pace[conversation].silence), self._speak, conversation)

    def broke(self, conversation: Conversation, why: str) -> None:
        if conversation.phase is not Phase.CLOSED:
            self._liveness.broke(conversation, why)

    # Beginning and ending --------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Plan all conversations of the run."""
        random, plan = self._random, self._plan
        for _ in range(plan.steady):
            flow = self._flow(TCP, random.choice((WEB, WEB, ALT, SPARE_FIRST)))
            self._loop.after(random.randint(0, 3 * SECOND), self._connect, flow, self._steady_pace(), 0)
        for _ in range(plan.passing):
            flow = self._flow(TCP, random.choice((WEB, ALT)))
            self._loop.after(random.randint(0, plan.duration // 2), self._pass_by, flow)
        for i in range(plan.datagrams):
            push = i == 0 or random.random() < 0.4
            flow = self._flow(UDP, PUSH if push else DNS)
            pace = Pace((2 * SECOND, 15 * SECOND), 300, push)
            self._loop.after(random.randint(0, 3 * SECOND), self._exchange, flow, pace)
        for _ in range(plan.pings):
            flow = self._flow(ICMP, 0)
            begin = max(0, plan.faults[0].at - 6 * SECOND)
            self._loop.after(
                random.randint(begin, begin + 3 * SECOND),
                self._exchange,
                flow,
                Pace((SECOND, 4 * SECOND), 56),
            )
        for _ in range(2):
            self._loop.after(random.randint(0, plan.duration), self._try_closed)
        for _ in range(6):
            self._loop.after(random.randint(0, plan.duration), self._stray)
        for _ in range(0 if plan.long else plan.intrusions):
            self._loop.after(random.randint(0, plan.duration), self._intrude)

    def last_words(self) -> None:
        """Nobody begins anything new, but every live conversation has to manage one more round trip."""
        self._stopped = True
        for conversation in self.live:
            if not conversation.in_round:
                self._begin_round(conversation)

    def stop(self) -> None:
        """Nobody says anything more."""
        self._stopped = True
        for conversation in self.conversations:
            conversation.phase = Phase.CLOSED
            conversation.forget()

    def probe(self) -> None:
        """Most live conversations have something to say in the next seconds, as after a fault."""
        for conversation in self.conversations:
            if conversation.live and self._random.random() < 0.75:
                self._loop.after(self._random.randint(0, 2 * SECOND), self._speak, conversation)

    @property
    def live(self) -> list[Conversation]:
        """Conversations that nobody ended and nothing broke, those being opened included."""
        return [one for one in self.conversations if one.phase in (Phase.OPENING, Phase.OPEN)]

    def _steady_pace(self) -> Pace:
        random = self._random
        most = random.choice((200, 1_000, 5_000))
        if not self._plan.long:
            return Pace((500 * MS, random.choice((2, 4, 9)) * SECOND), most)
        # Keep-alives of an idle connection, well inside the idle time-outs of firewall and load balancer.
        timeout = max(self._plan.timeouts.values())
        longest = min(timeout, 350 * SECOND) * 8 // 10
        return Pace((longest // 3, longest), min(most, 2_000))

    def _flow(self, protocol: int, port: int, server: str = "") -> Flow:
        """A flow that was never used: client port and addresses are drawn until one is new."""
        random = self._random
        six = int(random.random() < 0.25 and not server)
        client = ipaddress.ip_network(CLIENT_NETWORKS[six])[random.randint(1, 60)].packed
        if server:
            target = ipaddress.ip_address(server).packed
        else:
            target = ipaddress.ip_network(SERVER_NETWORKS[six])[random.randint(1, 9)].packed
        self._next_port += random.randint(1, 30)
        endpoint = random.choice(self._plan.endpoints)
        if protocol == ICMP:
            identifier = self._next_port
            return Flow(endpoint, ICMPV6 if six else ICMP, client, identifier, target, identifier)
        return Flow(endpoint, protocol, client, self._next_port, target, port)

    def _style(self) -> Style:
        random = self._random
        return Style(
            initial=random.choice((random.getrandbits(32), 0xFFFFFFFF - random.randint(0, 3_000))),
            segment=random.choice((400, 700, 1_300)),
            window=random.choice((2_048, 8_192, 65_535)),
            scale=random.choice((-1, 0, 2, 7)),
        )

    def _connect(self, flow: Flow, pace: Pace, rounds: int) -> None:
        """Open a connection; with ``rounds`` it ends after so many."""
        if self._stopped:
            return
        styles = self._style(), self._style()
        connection = TcpConnection(self._loop, flow, styles, self._enter, self)
        self._enlist(connection, pace)
        if rounds:
            self._left[connection] = rounds
        self._speak(connection)

    def _exchange(self, flow: Flow, pace: Pace) -> None:
        conversation = DatagramFlow(self._loop, flow, self._enter, self)
        self._enlist(conversation, pace)
        self._speak(conversation)

    def _enlist(self, conversation: Conversation, pace: Pace) -> None:
        self._hosts.add(conversation)
        self.conversations.append(conversation)
        self._pace[conversation] = pace

    def _pass_by(self, flow: Flow) -> None:
        pace = Pace((50 * MS, 2 * SECOND), self._random.choice((300, 3_000)))
        self._connect(flow, pace, self._random.randint(1, 6))

    def _speak(self, conversation: Conversation) -> None:
        """Begin a round, unless one is under way."""
        opening = conversation.phase is Phase.OPENING
        if not self._stopped and not conversation.in_round and (conversation.live or opening):
            self._begin_round(conversation)

    def _begin_round(self, conversation: Conversation) -> None:
        opening = conversation.phase is Phase.OPENING
        random, pace = self._random, self._pace[conversation]
        half_closed = isinstance(conversation, TcpConnection) and conversation.client_closed
        push = half_closed or (pace.push and not opening and random.random() < 0.8)
        question, answer = random.randint(1, min(pace.most, 1_500)), random.randint(1, pace.most)
        if isinstance(conversation, DatagramFlow):
            question = min(question, 500)
            answer = min(answer, 500)
        conversation.begin_round(question, answer, push)

    def _end(self, connection: TcpConnection) -> None:
        """One of the ways in which connections end."""
        random = self._random
        way = random.choice(("client", "server", "half", "abort-client", "abort-server"))
        if way == "half" and not connection.client_closed:
            # The server goes on speaking for a while.
            self._left[connection] = random.randint(1, 4)
            connection.half_close()
            self._loop.after(random.randint(100 * MS, SECOND), self._speak, connection)
            return
        if connection.client_closed:
            connection.finish()
        elif way.startswith("abort"):
            connection.abort(way == "abort-client")
        else:
            connection.close(way != "server")
        if random.random() < 0.7:
            again = random.choice((3 * SECOND, 5 * SECOND, 25 * SECOND))
            self._loop.after(again + random.randint(0, SECOND), self._reuse, connection)

    def _reuse(self, connection: TcpConnection) -> None:
        """The same tuple once more, when its first connection is over at both hosts."""
        if self._stopped:
            return
        if not connection.over:
            connection.forget()
        self._pass_by(connection.flow)

    # What must not pass ----------------------------------------------------------------------------------------

    def _try_closed(self) -> None:
        """A conversation that policy does not allow."""
        random = self._random
        choice = random.randint(0, 2)
        if choice == 0:
            self._connect(self._flow(TCP, CLOSED_TCP), Pace((SECOND, SECOND), 10), 0)
        elif choice == 1:
            self._connect(self._flow(TCP, WEB, _FAR_AWAY), Pace((SECOND, SECOND), 10), 0)
        elif not self._stopped:
            self._exchange(self._flow(UDP, CLOSED_UDP), Pace((SECOND, SECOND), 10))

    def _stray(self) -> None:
        """A segment out of nowhere; for some of them somebody has forged a record in the store."""
        random = self._random
        flow = self._flow(TCP, random.choice((WEB, SPARE_FIRST)))
        if random.random() < 0.5:
            flow = flow.turned
        if random.random() < 0.5:
            self._forge(flow, random)
        self.strays += 1
        flags = random.choice((ACK, ACK | PSH, ACK | FIN, RST, RST | ACK))
        numbers = random.getrandbits(32), random.getrandbits(32)
        packet = packets.tcp(*flow[2:], flags, *numbers, 4_096)
        self._enter(flow.endpoint, packet)

    def _intrude(self) -> None:
        """Somebody who is not on the way, but guesses well, speaks into a live connection (RFC 5961).

        Not into idle ones: an RST inside the window leaves a session 30 s for the answer of a live host.
        """
        random = self._random
        chosen = [one for one in self.conversations if isinstance(one, TcpConnection) and one.live]
        if self._stopped or not chosen:
            return
        connection = random.choice(chosen)
        to_client = random.random() < 0.5
        victim = connection.client if to_client else connection.server
        flow = connection.flow.turned if to_client else connection.flow
        near, far = victim.expects + random.randint(1, 1_500), random.getrandbits(32)
        kind = random.choice(("near", "near", "far", "syn", "data"))
        if kind == "data":
            far = victim.expects + random.randint(1 << 24, 1 << 30)
            packet = packets.tcp(*flow[2:], ACK | PSH, far, random.getrandbits(32), 4_096, b"not from here")
        elif kind == "syn":
            packet = packets.tcp(*flow[2:], SYN, far, 0, 4_096)
        else:
            flags = random.choice((RST, RST | ACK))
            packet = packets.tcp(*flow[2:], flags, near if kind == "near" else far, random.getrandbits(32), 0)
        self._enter(flow.endpoint, packet)
