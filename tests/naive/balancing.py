"""What the load balancer promises, once more and slowly: a dict of flows and a plain choice.

Shares no code with the kernels. The weights of the choice come from the caller: a twin can not know the
hash, but it can know what has to follow from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class NaiveBalancer:
    """Which target each packet of a flow goes to."""

    weight: Callable[[Any, str], int]
    rebalance: bool
    idle: dict[str, float]
    """Seconds by protocol, ``tcp`` and ``udp``."""
    states: dict[str, str] = field(default_factory=dict)
    """``healthy``, ``unhealthy``, ``draining`` or ``unused`` by target."""
    flows: dict[Any, tuple[str, float]] = field(default_factory=dict)
    """Target and time of the last packet by flow."""

    def packet(self, flow: Any, protocol: str, syn: bool, now: float) -> str | None:
        """The target of this packet, or None when it is dropped."""
        target, last = self.flows.get(flow, (None, now))
        if target is not None and now - last > self.idle[protocol]:
            target = None
        if target is None:
            if protocol == "tcp" and not syn:
                return None
            target = self._heaviest(flow, "healthy") or self._heaviest(flow, "unhealthy")
        elif self.rebalance and self.states[target] in ("unhealthy", "unused"):
            target = self._heaviest(flow, "healthy") or target
        if target is not None:
            self.flows[flow] = target, now
        return target

    def _heaviest(self, flow: Any, state: str) -> str | None:
        able = [name for name, has in self.states.items() if has == state]
        return max(able, key=lambda name: self.weight(flow, name), default=None)
