"""What became of each flow of a capture: one row per session, in the order of their first packets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from everwall.engine import describe_flow
from everwall.replay import loop
from everwall.session import tcp
from everwall.verdict import Verdict

# What says that a session could not be opened, where firewall logs have a name for it.
_REFUSALS: dict[int, str] = {
    Verdict.POLICY_DENY: "policy-deny",
    Verdict.ENDPOINT_UNMAPPED: "policy-deny",
    Verdict.TABLE_FULL: "resources-unavailable",
    Verdict.SESSION_LIMIT: "resources-unavailable",
}
NEVER_OPENED = "n/a"
NO_STATE = "none"
_FINISHED = (tcp.TCP_TIME_WAIT, tcp.TCP_CLOSED)

_LABELS = {int(verdict): verdict.label for verdict in Verdict}
_FORWARD = int(Verdict.FORWARD)
_KEY = slice(loop.ENDPOINT, loop.KEY2 + 1)


@dataclass(slots=True)
class _Flow:
    """One row; numbers as the engine has them until somebody asks."""

    first: list[int]
    """The result of its first packet."""
    refused: bool
    packets: int = 0
    bytes: int = 0
    verdict: int = 0
    state: int = tcp.NONE
    rule: int = 0
    end_reason: int = tcp.END_NONE
    end: str | None = None


class FlowTable:
    """Collects results and ends; ``rows`` is the report."""

    def __init__(self, rule_name: Callable[[int], str]) -> None:
        self._rule_name = rule_name
        self._flows: list[_Flow] = []
        self._open: dict[tuple[int, ...], _Flow] = {}
        self._verdicts: Counter[int] = Counter()

    def add(self, results: Iterable[list[int]]) -> None:
        """Note packets: rows of ``loop`` results, in order."""
        for result in results:
            verdict = result[loop.VERDICT]
            self._verdicts[verdict] += 1
            if not result[loop.FLOW]:
                continue
            key = tuple(result[_KEY])
            if result[loop.ENDED]:
                self._end(key, result[loop.ENDED])
            flow = self._open.get(key)
            refused = result[loop.STATE] == tcp.NONE
            if flow is None or (flow.refused and not refused):
                flow = self._open[key] = _Flow(result, refused)
                self._flows.append(flow)
            flow.packets += 1
            flow.bytes += result[loop.BYTES]
            flow.verdict = verdict
            if refused and not flow.refused:
                continue  # where the packet went to, the session was not
            flow.state = result[loop.STATE]
            flow.rule = result[loop.RULE]
            flow.end_reason = result[loop.END_REASON]

    def end(self, rows: Iterable[list[int]]) -> None:
        """Note sessions that ended with time: rows of ``loop.sweep``."""
        for row in rows:
            self._end(tuple(row[: loop.ENDED_REASON]), row[loop.ENDED_REASON])

    def _end(self, key: tuple[int, ...], reason: int) -> None:
        flow = self._open.pop(key, None)
        if flow is not None and not flow.refused:
            flow.end = tcp.END_NAMES[reason]

    @property
    def packets(self) -> int:
        """Packets judged; frames without IP are none."""
        return self._verdicts.total() - self._verdicts[loop.NO_IP]

    @property
    def frames_without_ip(self) -> int:
        """Frames that a firewall behind a gateway load balancer never sees (ARP and the like)."""
        return self._verdicts[loop.NO_IP]

    @property
    def drops(self) -> dict[str, int]:
        """Dropped packets by the name of the reason, most first."""
        return {
            _LABELS[verdict]: count
            for verdict, count in self._verdicts.most_common()
            if verdict not in (_FORWARD, loop.NO_IP)
        }

    def rows(self) -> list[dict[str, Any]]:
        """The flows, as the report has them."""
        return [self._row(flow) for flow in self._flows]

    def _row(self, flow: _Flow) -> dict[str, Any]:
        first = flow.first
        # The sender of the first packet stands first, whoever opened the connection.
        proto, source, destination = describe_flow(
            first[loop.KEY2],
            first[loop.LOWER_HIGH : loop.UPPER_LOW + 1],
            bool(first[loop.DIRECTION]),
        )
        return {
            "endpoint": first[loop.ENDPOINT] & (2**64 - 1),
            "proto": proto,
            "src": source[0],
            "sport": source[1],
            "dst": destination[0],
            "dport": 0 if first[loop.ECHO] else destination[1],
            "packets": flow.packets,
            "bytes": flow.bytes,
            "state": NO_STATE if flow.refused else tcp.STATE_NAMES[flow.state],
            "rule": self._rule_name(flow.rule) if flow.rule else None,
            "verdict": "allow" if flow.verdict == _FORWARD else f"deny:{_LABELS[flow.verdict]}",
            "end": self._end_name(flow),
        }

    def _end_name(self, flow: _Flow) -> str | None:
        if flow.refused:
            return _REFUSALS.get(flow.verdict, NEVER_OPENED)
        if flow.end is None and flow.state in _FINISHED:
            return tcp.END_NAMES[flow.end_reason]
        return flow.end
