"""The policy that a node decides by: read again, compiled beside the traffic, brought to the workers.

Two things change it: somebody asks for it to be read again, or its host names stand for other addresses.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import structlog

from everwall.bootstrap.init_cfg import InitCfg
from everwall.bootstrap.load import Bootstrap
from everwall.bootstrap.zones import read_policy_again, with_policy_of
from everwall.config import ConfigError
from everwall.counters import Counter
from everwall.limits import MS_NS, NAME_PATIENCE_S
from everwall.management.beside import politely
from everwall.management.control import Answer
from everwall.management.names import NameWatcher
from everwall.outward import Outward
from everwall.policy.checksum import policy_checksum
from everwall.policy.compile import Loaded, PolicyNames, compile_policy
from everwall.policy.match import CompiledPolicy
from everwall.policy.model import Policy
from everwall.policy.names import NameBook

if TYPE_CHECKING:
    from everwall.node import Node

log = structlog.get_logger()


class Policies:
    """What is in force, and how another one comes to be."""

    def __init__(self, node: Node, loaded: Loaded, outward: Outward) -> None:
        """``loaded`` is what the node's workers were made with; ``outward`` says whom host names are asked of."""
        self._node = node
        self.loaded = loaded
        self.host_names = NameWatcher(loaded.policy, self._use_addresses, outward.addresses)
        self._own_names = loaded.names
        self._source: Bootstrap | None = None
        """What the policy in force was read from, where it was read again: it keeps files from a bucket."""
        self._reloading = asyncio.Lock()
        """Held by a reload that somebody asked for; there is no second one meanwhile."""
        self._swapping = asyncio.Lock()
        """Held by whoever reads or compiles a policy and brings it to the workers; others wait."""
        self._summed: Policy | None = None
        """The policy of which there is a checksum."""
        self._checksum = ""

    @property
    def checksum(self) -> str:
        """Of the policy in force, for the other nodes to compare."""
        policy = self.loaded.policy
        if self._summed is not policy:
            mode = self._node.config.resiliency_mode
            self._checksum, self._summed = policy_checksum(policy, mode), policy
        return self._checksum

    @property
    def reloading(self) -> bool:
        """Whether somebody's reload is under way."""
        return self._reloading.locked()

    def status(self) -> Answer:
        """What is in force, and how far the live sessions have been asked about it."""
        workers = self._node.workers
        return {
            "summary": self.loaded.policy.summary,
            "host_names": len(self.host_names),
            "unresolved_host_names": len(self.host_names.unresolved()),
            "rematch_percent": 100 - workers.rematching,
            "ruled_out": workers.count(Counter.SESSIONS_RULED_OUT),
        }

    def named(self, row: dict[str, Any]) -> dict[str, Any]:
        """A session row with names for what is known by a number only."""
        names = self.loaded.names
        endpoint = f"vpce-{row['endpoint']:016x}"
        return {**row, "endpoint": endpoint, "rule": names.rule(row["rule"]), "zone": names.zone(row["zone"])}

    async def reload(self) -> Answer:
        """Read the bootstrap and its policy again and decide by that from now on; live sessions are asked about again.

        Of the bootstrap only what belongs to the policy is used. Raises ConfigError for a wrong file, ValueError where
        a reload is under way, and RuntimeError where a worker cannot; then nothing has changed, and no session has been
        asked about.
        """
        if self.reloading:
            raise ValueError("a reload is under way")
        node = self._node
        async with self._reloading, self._swapping:
            began = time.monotonic_ns()
            former: NameBook | None = None
            try:
                source, config = await self._read_source()
                policy = await politely(read_policy_again, config, node.config)
                former = self.host_names.replace(policy)
                await self.host_names.heard(NAME_PATIENCE_S)
                compiled, names, changes = await self._compile(config)
                read_ns = time.monotonic_ns() - began
                waited = await asyncio.to_thread(node.workers.replace_policy, compiled)
            except (ConfigError, RuntimeError) as error:
                if former is not None:
                    self.host_names.restore(former)
                log.error("the policy stays as it was", error=str(error))
                raise
            self.host_names.in_force(changes)
            node.workers.use_settings(policy.settings)
            self.loaded = Loaded(policy, compiled, names.after(self._own_names))
            self._own_names = names
            # Not ``config`` itself: a secret may have come since it was made.
            node.config, self._source = with_policy_of(node.config, config), source
        for warning in policy.warnings:
            log.warning(warning)
        facts = {
            "read_ms": round(read_ns / MS_NS, 1),
            "packets_waited_us": round(max(waited) / 1000, 1),
        }
        log.info("another policy", policy=policy.summary, **facts)
        return {**self.status(), **facts, "warnings": list(policy.warnings)}

    async def _read_source(self) -> tuple[Bootstrap | None, InitCfg]:
        """What the node was started from as it is now, fetched once more if it is far away; and the configuration with
        what of it belongs to the policy. Raises ConfigError."""
        if self._node.again is None:
            return None, self._node.config
        source = await self._node.read_again()
        return source, with_policy_of(self._node.config, source.config)

    async def _compile(self, config: InitCfg) -> tuple[CompiledPolicy, PolicyNames, int]:
        """The policy that is watched with its host names' addresses, and of how many changes these are."""
        changes, policy = self.host_names.changes, self.host_names.policy()
        return *await politely(compile_policy, policy, config.resiliency_mode), changes

    async def _use_addresses(self) -> None:
        """Decide new sessions by what the policy's host names stand for now.

        Live sessions are not asked about: names of many addresses are answered with others each time, and what was
        allowed to one of them goes on. Nor are those that a reload has still to ask about by the former addresses.
        """
        workers = self._node.workers
        async with self._swapping:
            if not self.host_names.behind:
                return  # a reload has just used them
            while workers.rematching and workers.running:
                await asyncio.sleep(0.01)
            try:
                compiled, _, changes = await self._compile(self._node.config)
                waited = await asyncio.to_thread(workers.replace_policy, compiled, rematch=False)
            except (ConfigError, RuntimeError) as error:
                log.error("the addresses of host names stay as they were", error=str(error))
                return
            self.host_names.in_force(changes)
            self.loaded = self.loaded._replace(compiled=compiled)
        log.info(
            "other addresses of host names in the policy",
            names=len(self.host_names),
            unresolved=len(self.host_names.unresolved()),
            packets_waited_us=round(max(waited) / 1000, 1),
        )
