"""The oracle for ``bpf/cutthrough.bpf.c``: what the program does with an inner packet, step by step.

It knows the shared arrays by the layout of ``session/table.py`` and ``session/control.py`` and nothing of the engine.
Tests that may load no program let it stand in for the real one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from everwall.limits import BEAT_STALE_NS, SEQUENCE_JUMP_MAX
from everwall.session.table import SharedTable
from everwall.verdict import Verdict
from tests.naive import flow, wire

BOUNCED = "bounced"
"""Every other outcome is a reason to hand the packet up."""

_PSH_ACK = (0x10, 0x18)
_ECN = 0xC0


@dataclass
class Program:
    """The program over one set of shared arrays."""

    table: SharedTable
    control: np.ndarray

    def run(self, inner: bytes, endpoint: int, clock: int) -> str:
        """What becomes of one packet at ``clock`` ns; a bounced one is noted in the session's line."""
        verdict, found = wire.parse(inner)
        if verdict != Verdict.FORWARD or found["end"] != len(inner):
            return "length"
        if found["fragment"] or found["protocol"] not in (6, 17) or found["transport"] not in (20, 40):
            return "inner-protocol"
        if found["protocol"] == 6 and found["flags"] & ~_ECN not in _PSH_ACK:
            return "tcp-flags"
        key = self._key(found, endpoint)
        workers, sets = int(self.control[1]), int(self.control[2])
        low, high = key["hash"] % 2**32, key["hash"] >> 32 & 0xFFFFFFFF
        worker = high * workers >> 32
        slot = self._find(key, found["family"], low, high, worker * sets, sets)
        if slot is None:
            return "no-session"
        line = self.table.hot[slot]
        beat, want = (int(self.control[64 + 8 * worker + k]) for k in range(2))
        if want % 2 == 0 or int(line.view(np.uint32)[6]) & 0xFFFF0001 != want:
            return "not-offloaded"
        if clock - beat > BEAT_STALE_NS:
            return "stale"
        return self._note(line, found, key["direction"], clock)

    def _key(self, found: dict, endpoint: int) -> dict:
        return flow.key(
            endpoint,
            found["family"],
            found["protocol"],
            (found["source"], found["sport"]),
            (found["destination"], found["dport"]),
            int(self.control[0]),
        )

    def _find(self, key: dict, family: int, low: int, high: int, first: int, sets: int) -> int | None:
        tag = high % 256 or 1
        names = [key["key0"], key["key1"], key["key2"]]
        ends = [int.from_bytes(key[end].rjust(16, b"\0")[half : half + 8], "big", signed=True)
                for end in ("lower", "upper") for half in (0, 8)]  # fmt: skip
        for choice in range(4):
            start = (first + ((low + choice * (high | 1)) % 2**32 * sets >> 32)) * 8
            for slot in range(start, start + 8):
                if self.table.tags[slot] != tag or self.table.hot[slot, :3].tolist() != names:
                    continue
                if family == 4 or self.table.addresses[slot].tolist() == ends:
                    return slot
        return None

    def _note(self, line: np.ndarray, found: dict, direction: int, clock: int) -> str:
        halves = line.view(np.uint32)
        if found["protocol"] == 6:
            reached = (found["seq"] + found["payload"]) % 2**32
            ahead = (reached - int(halves[8 + direction]) + 2**31) % 2**32 - 2**31
            if abs(ahead) > SEQUENCE_JUMP_MAX:
                return "sequence"
            if ahead > 0:
                halves[8 + direction] = reached
        halves[7] = (clock >> 20) % 2**32
        halves[10 + direction] = (int(halves[10 + direction]) + 1) % 2**32
        line[6 + direction] += found["end"]
        return BOUNCED
