"""Captures through the engine: what would the firewall do with this?

The capture's own time is the engine's time. Frames are judged in compiled batches; Python only
reads files and writes rows.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from everwall.engine import Engine, EngineConfig
from everwall.limits import BUCKET_SLOTS, CAPTURE_FRAME_BYTES, SESSIONS_MIN
from everwall.policy.match import CompiledPolicy, allow_all
from everwall.policy.settings import DEFAULT_SETTINGS, SessionSettings
from everwall.ports.pcap import CaptureError, Frame, read_frames
from everwall.replay import loop
from everwall.replay.flows import FlowTable
from everwall.replay.handover import Handover
from everwall.wire.ethernet import LINK_RAW
from everwall.wire.meta import make_batch

BATCH_FRAMES = 512
SWEEP_FRAMES = 8192
"""Frames after which sessions that are over give up their place. Each is over at its exact time anyway."""
SESSIONS_AT_MOST = 1 << 20
_FRAME_BYTES_LEAST = 36  # of a file, for a packet that opens a session
_ENDED_ROWS = 1024


@dataclass
class Report:
    """What became of everything."""

    flows: list[dict[str, Any]]
    drops: dict[str, int]
    packets: int
    frames_without_ip: int = 0
    handed_over: int = 0
    """Flows that moved to another engine."""
    errors: list[CaptureError] = field(default_factory=list)
    """Files that could not be read to their end."""

    def as_json(self, seconds: float) -> dict[str, Any]:
        """The report as one JSON object; ``seconds`` is what it took."""
        return {
            "flows": self.flows,
            "drops": self.drops,
            "packets": self.packets,
            "seconds": round(seconds, 6),
        }


def replay(
    paths: Sequence[Path],
    policy: CompiledPolicy | None = None,
    rule_name: Callable[[int], str] = str,
    handover_after: int = 0,
    settings: SessionSettings = DEFAULT_SETTINGS,
) -> Report:
    """Judge all packets of some captures, merged by time, and report on every flow.

    Without ``policy`` everything is allowed but a first TCP packet that is not SYN. With ``handover_after``
    each flow moves to a second engine after so many packets, through the record that nodes share.
    ``settings``: what the policy says about sessions, for the engine as in a node.
    """
    config = EngineConfig(
        max_sessions=_sessions_for(paths),
        resiliency=False,
        parked_packets=BUCKET_SLOTS,
        lookups=BUCKET_SLOTS,
        frame_bytes=CAPTURE_FRAME_BYTES,
        settings=settings,
    )
    idle = EngineConfig(
        **{
            **vars(config),
            "owner": 1,
            "max_sessions": config.max_sessions if handover_after else SESSIONS_MIN,
        }
    )
    engines = Engine(config, policy or allow_all()), Engine(idle, policy or allow_all())
    table = FlowTable(rule_name)
    errors: list[CaptureError] = []
    frames = heapq.merge(*(_forgiving(path, errors) for path in paths), key=lambda frame: frame.time)
    handover = Handover()
    _run(engines, frames, table, handover, handover_after)
    return Report(table.rows(), table.drops, table.packets, table.frames_without_ip, handover.count, errors)


def _sessions_for(paths: Sequence[Path]) -> int:
    """As many as the packets of all files could open, within reason."""
    size = sum(path.stat().st_size for path in paths if path.is_file())
    return min(max(size // _FRAME_BYTES_LEAST, SESSIONS_MIN), SESSIONS_AT_MOST)


def _forgiving(path: Path, errors: list[CaptureError]) -> Iterator[Frame]:
    """The frames of a file as far as it can be read; what stopped it goes to ``errors``."""
    try:
        yield from read_frames(path)
    except CaptureError as error:
        errors.append(error)


def _run(
    engines: tuple[Engine, Engine],
    source: Iterator[Frame],
    table: FlowTable,
    handover: Handover,
    handover_after: int,
) -> None:
    batch = make_batch(BATCH_FRAMES, CAPTURE_FRAME_BYTES)
    frames = np.zeros((BATCH_FRAMES, loop.FRAME_COLUMNS), np.int64)
    results = np.zeros((BATCH_FRAMES, loop.RESULT_COLUMNS), np.int64)
    first, second = engines
    now, unswept = 0, 0
    while True:
        count = 0
        for frame in islice(source, BATCH_FRAMES):
            now = max(now, frame.time)
            captured = min(len(frame.data), CAPTURE_FRAME_BYTES)
            batch.data[count, :captured] = np.frombuffer(frame.data, np.uint8, captured)
            frames[count] = now, frame.link, captured, frame.length
            count += 1
        if count == 0:
            break
        at = 0
        while True:
            at = loop.run(first.state, second.state, batch, frames, at, count, handover_after, results)
            if at == count:
                break
            moment = int(frames[at, loop.TIME])
            holder, slot = loop.holder_of(first.state, second.state, batch, at, moment)
            giver, taker = (second, first) if holder else (first, second)
            handover.move(giver, taker, slot, batch, at, moment)
            loop.note(taker.state, batch.meta, at, results)
            at += 1
        table.add(results[:count].tolist())
        unswept += count
        if unswept >= SWEEP_FRAMES:
            unswept = 0
            _sweep(engines, table, now)
    _sweep(engines, table, now)


def _sweep(engines: Sequence[Engine], table: FlowTable, now: int) -> None:
    """End every session that is over by ``now``."""
    ended = np.zeros((_ENDED_ROWS, loop.ENDED_COLUMNS), np.int64)
    for engine in engines:
        slot = 0
        while slot < engine.state.sessions.table.hot.shape[0]:
            slot, count = loop.sweep(engine.state, now, slot, ended)
            table.end(ended[:count].tolist())


def warm() -> None:
    """Compile all that a replay runs: two packets of a UDP flow, the second after a handover."""
    packet = bytes.fromhex("4500001c1d1d0000401148b30a0000010a000101138800350008d71f")
    frames = iter([Frame(moment, LINK_RAW, packet, len(packet)) for moment in (1, 2)])
    config = EngineConfig(
        max_sessions=SESSIONS_MIN, resiliency=False, lookups=BUCKET_SLOTS, frame_bytes=CAPTURE_FRAME_BYTES
    )
    engines = Engine(config, allow_all()), Engine(config, allow_all())
    table, handover = FlowTable(str), Handover()
    _run(engines, frames, table, handover, 1)
    assert (table.drops, handover.count) == ({}, 1)
