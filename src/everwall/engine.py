"""One firewall node without I/O: packets, answers and time come in; verdicts, requests and events go out.

    engine.receive(batch, count, now)      judges packets: VERDICT and SESSION of each row
    engine.outbox()                        store requests, to be answered
    engine.inbox(replies, now)             answers; returns parked packets that may now be sent
    engine.made()                          resets and unreachables of our own, to be sent
    engine.events()                        session log
    engine.next_timer(), handle_timer(now) ageing, refresh, deadlines

No socket, clock or thread is touched: ``now`` is int64 nanoseconds of any monotonic clock. The node's
worker runs the same kernels in one compiled loop (``worker.py``); replay, simulator and tests use this
class.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from everwall import limits, pipeline
from everwall.counters import Counter
from everwall.policy.match import CompiledPolicy
from everwall.policy.settings import DEFAULT_SETTINGS, TIMEOUTS, SessionSettings
from everwall.rematch import begin_rematch
from everwall.rings import Ring, ring_pop
from everwall.session import control, image, parking, state, tcp
from everwall.session import table as t
from everwall.session.ageing import release_session, write_all
from everwall.session.offload import totals, withdraw_all
from everwall.session.state import Sessions, make_sessions
from everwall.session.table import SharedTable
from everwall.takeover import restore_all
from everwall.verdict import Verdict
from everwall.wire import meta as m
from everwall.wire.meta import Batch

Network = ipaddress.IPv4Network
_ANYWHERE = (ipaddress.IPv4Network("0.0.0.0/0"),)

# Field of SessionSettings: the states that end by it.
_STATES = {
    "tcp": (tcp.TCP_ESTABLISHED,),
    "udp": (tcp.UDP,),
    "icmp": (tcp.ICMP,),
    "other": (tcp.OTHER,),
    "tcp_init": (tcp.TCP_INIT,),
    "tcp_handshake": (tcp.TCP_HANDSHAKE,),
    "tcp_half_closed": (tcp.TCP_HALF_CLOSED_CLIENT, tcp.TCP_HALF_CLOSED_SERVER),
    "tcp_time_wait": (tcp.TCP_TIME_WAIT, tcp.TCP_CLOSED),
    "tcp_unverified_rst": (tcp.TCP_UNVERIFIED_RST,),
}
assert set(_STATES) == set(TIMEOUTS)


_BUDGETS = (
    (state.MISS_BUDGET, state.MISS_TOKENS, limits.MISS_BUDGET_PER_S),
    (state.MADE_BUDGET, state.MADE_TOKENS, limits.ANSWERS_PER_S),
    (state.LOG_BUDGET, state.LOG_TOKENS, limits.LOGGED_REFUSALS_PER_S),
)
"""Where a rate stands, where what is left of it does, and the node's, which its workers share."""


@dataclass(frozen=True)
class EngineConfig:
    """What an engine has to know; all times in ns."""

    max_sessions: int = limits.SESSIONS_DEFAULT
    inspect: bool = True
    """Accept GENEVE (``aws-gwlb-inspect:enable``)."""
    resiliency: bool = True
    """Write sessions to the store and look unknown ones up."""
    owner: int = 0
    """32-bit id of the node, as it stands in records."""
    geneve_sources: tuple[Network, ...] = _ANYWHERE
    settings: SessionSettings = DEFAULT_SETTINGS
    """What the policy says about sessions."""
    timeouts: dict[int, int] = field(default_factory=dict)
    """Idle time-outs by session state that differ from these."""
    parked_packets: int = limits.PARKED_PACKETS_MAX
    lookups: int = limits.LOOKUPS_MAX
    frame_bytes: int = limits.FRAME_BYTES
    ring_rows: int = limits.REQUEST_RING_ROWS
    epoch_offset: int = 0
    """Store time minus ``now``."""
    epoch_guessed: bool = False
    """That is by the machine's own clock: nothing is written before a connection has told store time."""
    seed: int = 0
    """Of the flow hash; a node draws one at each start, the same for all its workers."""
    worker: int = 0
    """Which of the node's workers this is, from 0."""
    workers: int = 1
    """Room, look-up budget and session ids are the node's, and shared by so many."""


def make_state(
    config: EngineConfig,
    policy: CompiledPolicy,
    shared: SharedTable | None = None,
    control_words: npt.NDArray[np.int64] | None = None,
) -> pipeline.State:
    """The arrays of one worker; ``shared`` and ``control_words`` as in ``make_sessions``."""
    sessions = make_sessions(
        limits.sessions_per_worker(config.max_sessions, config.workers),
        parked_packets=max(config.parked_packets // config.workers, 1),
        lookups=config.lookups,
        frame_bytes=config.frame_bytes,
        ring_rows=config.ring_rows,
        shared=shared,
        control_words=control_words,
        worker=config.worker,
    )
    sessions.words[state.INSPECT] = int(config.inspect)
    sessions.words[state.RESILIENCY] = int(config.resiliency)
    sessions.words[state.OWNER] = config.owner
    sessions.words[state.SEED] = config.seed
    sessions.words[state.MAX_SESSIONS] = config.max_sessions
    for rate, tokens, per_s in _BUDGETS:
        sessions.words[rate] = sessions.words[tokens] = max(per_s // config.workers, 1)
    sessions.words[state.RESYNC_RATE] = max(limits.RESYNC_PER_S // config.workers, 1)
    sessions.words[state.NEXT_ID] = config.worker + 1
    sessions.words[state.ID_STEP] = config.workers
    sessions.clock[state.CLOCK_OFFSET] = config.epoch_offset
    sessions.clock[state.CLOCK_GUESSED] = int(config.epoch_guessed)
    use_settings(sessions, config.settings)
    for which, timeout in config.timeouts.items():
        sessions.timeouts[which] = timeout
    sources = [(int(net.network_address), int(net.broadcast_address)) for net in config.geneve_sources]
    return pipeline.State(sessions, policy, np.array(sources, np.int64).reshape(-1, 2))


def use_settings(sessions: Sessions, settings: SessionSettings) -> None:
    """Keep sessions as long as ``settings`` say, by default where they say nothing; live ones are aged by it too."""
    usual = state.default_timeouts()
    for name, states in _STATES.items():
        seconds = getattr(settings, name)
        for which in states:
            # One by one: a worker may read them.
            sessions.timeouts[which] = usual[which] if seconds is None else seconds * limits.SECOND_NS
    sessions.words[state.ADMIT_NON_SYN] = int(settings.reject_non_syn is False)


def drain_ring(ring: Ring) -> npt.NDArray[np.int64]:
    """All rows that wait in a ring, as a copy."""
    out = np.zeros((max(int(ring.index[8] - ring.index[0]), 0), ring.rows.shape[1]), np.int64)
    return out[: ring_pop(ring, out)]


class Engine:
    """The contract above over one set of arrays."""

    def __init__(
        self,
        config: EngineConfig,
        policy: CompiledPolicy,
        shared: SharedTable | None = None,
        control_words: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.config = config
        self.state = make_state(config, policy, shared, control_words)

    @property
    def sessions_state(self) -> Sessions:
        """The arrays themselves."""
        return self.state.sessions

    def receive(self, batch: Batch, count: int, now: int) -> None:
        """Judge the first ``count`` packets of a batch; fills VERDICT and SESSION of their rows.

        A row comes with VERDICT ``FORWARD`` from its port; any other verdict is only counted.
        """
        pipeline.receive(self.state, batch, count, now)

    def outbox(self) -> npt.NDArray[np.int64]:
        """Store requests since the last call: int64[n, image.COLUMNS]."""
        return drain_ring(self.state.sessions.requests)

    def events(self) -> npt.NDArray[np.int64]:
        """Session events since the last call: int64[n, image.COLUMNS], see ``session.state``."""
        return drain_ring(self.state.sessions.events)

    def inbox(self, replies: npt.NDArray[np.int64], now: int) -> list[tuple[int, bytes]]:
        """Act on store replies; returns (session id, packet bytes) of parked packets that may go."""
        return self._take(pipeline.answers(self.state, replies, len(replies), now))

    def made(self) -> list[bytes]:
        """Packets made in answer to refused ones since the last call, each in the tunnel of the one it answers."""
        sessions = self.state.sessions
        data, meta = sessions.made
        count = int(sessions.words[state.MADE])
        sessions.words[state.MADE] = 0
        return [bytes(data[row, meta[row, m.START] : meta[row, m.END]]) for row in range(count)]

    def restore_all(self, rows: npt.NDArray[np.int64], now: int) -> int:
        """Take over many sessions at once, int64[n, image.COLUMNS]; returns how many came to live here."""
        return int(restore_all(self.state, rows, len(rows), now))

    def next_timer(self) -> int:
        """When ``handle_timer`` is due, ns."""
        return int(pipeline.next_timer(self.state))

    def handle_timer(self, now: int) -> list[tuple[int, bytes]]:
        """End overdue look-ups, age and refresh sessions; returns packets as ``inbox`` does."""
        return self._take(pipeline.pass_time(self.state, now, 0))

    def stood_still(self, now: int) -> None:
        """Time has passed without this engine: its sessions may be another node's by now."""
        self.state.sessions.words[state.GAP] = now
        withdraw_all(self.state.sessions)

    def offer_all(self, now: int) -> None:
        """Hand every live session to the store, in whatever state it is."""
        write_all(self.state.sessions, now)

    def hand_over(self, slot: int, now: int) -> None:
        """Offer the session in a slot to the store, in whatever state it is, and let go of it without a word."""
        release_session(self.state.sessions, slot, now)

    def replace_policy(self, policy: CompiledPolicy) -> None:
        """Decide new and restored sessions by another policy from now on, and live ones as time passes."""
        self.state = self.state._replace(policy=policy)
        begin_rematch(self.state.sessions)

    def _take(self, released: int) -> list[tuple[int, bytes]]:
        sessions = self.state.sessions
        packets = []
        for row in sessions.released[:released]:
            start, end = sessions.arena.meta[row, m.START], sessions.arena.meta[row, m.END]
            packets.append(
                (int(sessions.arena.meta[row, m.SESSION]), bytes(sessions.arena.data[row, start:end]))
            )
            parking.free_row(sessions, row)
        return packets

    @property
    def verdicts(self) -> dict[str, int]:
        """Packets by verdict, those seen at least once."""
        return verdict_counts(self.state.sessions.verdicts)

    @property
    def counters(self) -> dict[str, int]:
        """All counters beside the verdicts."""
        return {which.label: int(self.state.sessions.counters[which]) for which in Counter}

    def sessions(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Live sessions as people read them, client first."""
        return describe_sessions(self.state.sessions, limit)


def verdict_counts(counts: npt.NDArray[np.int64]) -> dict[str, int]:
    """A verdict counter array as label -> packets, without the zeros."""
    return {which.label: int(counts[which]) for which in Verdict if counts[which]}


def _address(family: int, high: int, low: int) -> str:
    if family == 4:
        return str(ipaddress.IPv4Address(low & 0xFFFFFFFF))
    return str(ipaddress.IPv6Address((high & (2**64 - 1)) << 64 | (low & (2**64 - 1))))


def describe_flow(
    key2: int, addresses: Iterable[int], initiator_upper: bool
) -> tuple[int, tuple[str, int], tuple[str, int]]:
    """(protocol, (client address, port), (server address, port)) of a flow key and its addresses."""
    lower_high, lower_low, upper_high, upper_low = (int(half) for half in addresses)
    family = key2 >> 40
    lower = (_address(family, lower_high, lower_low), key2 & 0xFFFF)
    upper = (_address(family, upper_high, upper_low), (key2 >> 16) & 0xFFFF)
    ends = (upper, lower) if initiator_upper else (lower, upper)
    return (key2 >> 32) & 0xFF, *ends


def describe_sessions(sessions: Sessions, limit: int | None = None) -> list[dict[str, Any]]:
    """Rows for people from a live table; a row may be torn while a worker writes it, one just begun is left out."""
    table = sessions.table
    hot, cold, small, short = table.hot, table.cold, table.small, table.short
    slots = np.flatnonzero(table.tags.copy())[:limit]  # NumPy refuses to search what changes meanwhile
    want = int(sessions.words[state.EPOCH]) << 16 | 1
    rows = []
    for slot, ends, last_seen, packets, octets in zip(
        slots, t.ends(table, slots), *totals(sessions, slots), strict=True
    ):
        flags, key2, which = int(short[slot, t.FLAGS]), int(hot[slot, t.KEY2]), int(short[slot, t.STATE])
        if not key2 or which not in tcp.STATE_NAMES:
            continue
        protocol, client, server = describe_flow(key2, ends, bool(flags & image.INITIATOR_UPPER))
        rows.append(
            {
                "id": int(cold[slot, t.ID]),
                "endpoint": int(hot[slot, t.KEY0]) & (2**64 - 1),
                "proto": protocol,
                "src": client[0],
                "sport": client[1],
                "dst": server[0],
                "dport": server[1],
                "state": tcp.STATE_NAMES[which],
                "end": tcp.END_NAMES.get(int(short[slot, t.END_REASON])),
                "rule": int(small[slot, t.RULE]),
                "zone": int(short[slot, t.FROM_ZONE]),
                "generation": int(short[slot, t.GENERATION]),
                "packets": int(packets),
                "bytes": int(octets),
                "start_ms": int(cold[slot, t.START]),
                "last_seen_ns": int(last_seen),
                "offloaded": int(table.hot32[slot, t.CONTROL]) & control.EPOCH_MASK == want,
            }
        )
    return rows


def describe_event(event: npt.NDArray[np.int64]) -> dict[str, Any]:
    """One event row as people read it, client first."""
    flags = int(event[image.FLAGS])
    protocol, client, server = describe_flow(
        int(event[image.KEY2]),
        event[image.LOWER_HIGH : image.UPPER_LOW + 1],
        bool(flags & image.INITIATOR_UPPER),
    )
    return {
        "id": int(event[state.EVENT_SESSION]),
        "endpoint": int(event[image.ENDPOINT]) & (2**64 - 1),
        "proto": protocol,
        "src": client[0],
        "sport": client[1],
        "dst": server[0],
        "dport": server[1],
        "rule": int(event[image.RULE]),
        "zone": int(event[image.FROM_ZONE]),
        "start_ms": int(event[image.START]),
        "packets": int(event[image.PACKETS]),
        "bytes": int(event[image.BYTES]),
        "partial": bool(flags & image.PARTIAL),
        "generation": int(event[image.GENERATION]),
        "end": tcp.END_NAMES.get(int(event[state.EVENT_REASON])),
        "refused_by": int(event[state.EVENT_REFUSED_BY]),
    }
