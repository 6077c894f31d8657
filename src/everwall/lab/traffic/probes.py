"""Probe packets with sequence number and time of sending, and what their arrivals tell.

CLOCK_MONOTONIC is one clock for all namespaces of a machine, so the time in a packet can be
compared with the time of its arrival at the other end and with the time of the event.
"""

from __future__ import annotations

import struct
from array import array
from itertools import pairwise
from typing import Any

PROBE = struct.Struct("!IIQ")
"""Flow, sequence number, nanoseconds of CLOCK_MONOTONIC at sending."""


class Arrivals:
    """When the probes of each flow were sent and when they arrived."""

    def __init__(self) -> None:
        self._flows: dict[int, tuple[array[int], array[int]]] = {}

    def add(self, flow: int, sent_ns: int, arrived_ns: int) -> None:
        times = self._flows.get(flow)
        if times is None:
            times = self._flows[flow] = (array("q"), array("q"))
        times[0].append(sent_ns)
        times[1].append(arrived_ns)

    def summary(self, event_ns: int, effective_ns: int) -> list[dict[str, Any]]:
        """For each flow: packets, the arrival of the first that was *sent* after the event had taken effect, and
        the longest time without any arrival from the event up to that one.

        What was under way when the event took effect proves nothing about who carries the flow now.
        """
        rows = []
        for flow, (sent, arrived) in sorted(self._flows.items()):
            first = min(
                (arrival for start, arrival in zip(sent, arrived, strict=True) if start >= effective_ns),
                default=None,
            )
            silence = None if first is None else _longest_gap(event_ns, arrived, first)
            rows.append({"flow": flow, "packets": len(sent), "first_after_ns": first, "silence_ns": silence})
        return rows


def _longest_gap(start: int, arrived: array[int], end: int) -> int:
    between = sorted(arrival for arrival in arrived if start < arrival <= end)
    return max(later - earlier for earlier, later in pairwise([start, *between, end]))
