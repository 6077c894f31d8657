"""What a node answers on its control socket: a function for each command, of the request's other keys."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from everwall import __version__
from everwall.counters import Counter
from everwall.limits import SECOND_NS
from everwall.management.control import Answer, Handler

if TYPE_CHECKING:
    from everwall.node import Node


class Commands:
    """Those of one node. A ValueError of a command is for whoever asked."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The commands by name."""
        return {
            "status": self.status,
            "counters": self.counters,
            "sessions": self.sessions,
            "store": self.store,
            "drain": self.drain,
            "resiliency": self.resiliency,
            "buckets": self.buckets,
            "secrets": self.secrets,
            "policy": self.policy,
        }

    def status(self, _: Answer) -> Answer:
        """The node at a glance."""
        node = self._node
        return {
            "name": node.name,
            "version": __version__,
            "state": node.state,
            "sessions": node.workers.count(Counter.SESSIONS),
            "max_sessions": node.config.max_sessions,
            "port": node.plane.kind,
            "port_detail": node.plane.detail,
            "cut_through": {"enabled": not node.plane.without, "why": node.plane.without},
            "data_address": node.data.address,
            "interfaces": {"data": node.data.name, "management": node.management.name},
            "resiliency": self._resiliency(),
            "policy": node.policies.status(),
            "store": node.store_status(),
            "workers": node.workers.each(),
            "uptime_s": round((time.monotonic_ns() - node.started_ns) / SECOND_NS, 1),
        }

    def counters(self, _: Answer) -> Answer:
        """Of all workers together and of each."""
        return {"counters": self._node.counters(), "workers": self._node.workers.each_counters()}

    def sessions(self, asked: Answer) -> Answer:
        """Live sessions, at most ``limit``."""
        limit = asked.get("limit", 100)
        if not isinstance(limit, int) or limit < 1:
            raise ValueError(f"limit must be a positive whole number, got {limit!r}")
        node = self._node
        rows = [node.policies.named(row) for row in node.workers.sessions(limit)]
        return {"sessions": rows, "total": node.workers.count(Counter.SESSIONS)}

    def store(self, _: Answer) -> Answer:
        """What is known of the store."""
        return self._node.store_status()

    def drain(self, _: Answer) -> Answer:
        """Begin to drain."""
        self._node.drain()
        return {"state": self._node.state}

    def resiliency(self, asked: Answer) -> Answer:
        """Switch it ``on`` or ``off``, or say how it stands."""
        switch = asked.get("switch", "status")
        if switch not in ("on", "off", "status"):
            raise ValueError(f"switch must be on, off or status, got {switch!r}")
        if switch != "status":
            self._node.switch_resiliency(switch == "on")
        facts = self._node.store_status()
        return {
            **self._resiliency(),
            **{name: facts[name] for name in ("connected", "resync_percent", "unsynced_sessions")},
        }

    def _resiliency(self) -> Answer:
        resiliency = self._node.resiliency
        return {"enabled": resiliency.enabled, "why": resiliency.why}

    async def buckets(self, asked: Answer) -> Answer:
        """Begin to change the number of the store's ``buckets``, or say how far that is."""
        node, buckets = self._node, asked.get("buckets")
        if buckets is not None:
            if not isinstance(buckets, int):
                raise ValueError(f"buckets must be a whole number, got {buckets!r}")
            try:
                await asyncio.to_thread(node.change_buckets, buckets)
            except OSError as error:
                raise ValueError(str(error)) from error
        facts = node.store_status()
        told = {name: facts.get(name) for name in ("connected", "layout", "resync_percent")}
        return {**told, "change": node.relayout.status() if node.relayout else None}

    async def secrets(self, _: Answer) -> Answer:
        """Read the cluster's secrets again."""
        if self._node.again is None:
            raise ValueError("this node was not started from a source that can be read again")
        return self._node.renew_secrets((await self._node.read_again()).config)

    async def policy(self, asked: Answer) -> Answer:
        """Reload the policy, or say what is in force."""
        what = asked.get("do", "status")
        if what not in ("reload", "status"):
            raise ValueError(f"do must be reload or status, got {what!r}")
        policies = self._node.policies
        return await policies.reload() if what == "reload" else policies.status()
