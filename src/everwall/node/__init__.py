"""A firewall node put together: configuration -> engine, port and store, and the loop that minds them.

The worker and the store have threads of their own; everything here is management and may be slow.
A node joins traffic (its health listener opens) once the store answers, or when the join grace has
passed; SIGTERM drains it: the load balancer is expected to deregister it, what still comes is
forwarded until nothing comes any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
from pydantic import SecretBytes

from everwall import __version__
from everwall.bootstrap.faults import titled
from everwall.bootstrap.init_cfg import InitCfg, Resiliency
from everwall.bootstrap.load import Bootstrap, LateSecret
from everwall.bootstrap.zones import load_policy_of
from everwall.config import ConfigError
from everwall.counters import Counter
from everwall.dataplane import (
    BOUNCED,
    BOUNCED_BYTES,
    Wish,
    describe_interfaces,
    find_data_interface,
    find_management_interface,
    open_data_plane,
)
from everwall.engine import EngineConfig, describe_event
from everwall.limits import (
    DRAIN_EMPTY_S,
    DRAIN_QUIET_S,
    INNER_MTU_MAX,
    JUMBO_MTU_MIN,
    MAINTENANCE_S,
    REFUSED_LOG_S,
    SECOND_NS,
    frame_bytes_for,
)
from everwall.management.beside import beside
from everwall.management.control import Answer, ControlServer
from everwall.management.health import HealthListener
from everwall.management.logs import TrafficLog
from everwall.node.commands import Commands
from everwall.node.policies import Policies
from everwall.outward import Outward
from everwall.session import state
from everwall.session.record import derive_keys, fingerprints
from everwall.store.housekeeper import Housekeeper
from everwall.store.members import Member
from everwall.store.protocol import buckets_for
from everwall.store.rates import Rates
from everwall.store.relayout import Relayout
from everwall.store_config import store_config
from everwall.verdict import Verdict
from everwall.workers import Workers, choose_cores

log = structlog.get_logger()

_LOGGED = {state.EVENT_STARTED: "start", state.EVENT_ENDED: "end", state.EVENT_REFUSED: "refused"}


class NodeError(RuntimeError):
    """The node cannot start; the message says what to do."""


def owner_id(name: str) -> int:
    """The 32-bit id of a node in records: of its name and this start, so that a restart is a new owner."""
    digest = hashlib.blake2b(f"{name} {os.getpid()} {time.time_ns()}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def _say_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (failure := task.exception()):
        log.error("host names of the policy are not asked for any more", error=repr(failure))


class Node:
    """One running firewall; ``run`` returns when it has been told to stop."""

    def __init__(
        self,
        config: InitCfg,
        control_path: Path | None,
        drain_timeout_s: float,
        late_secret: LateSecret | None = None,
        again: Callable[[], Bootstrap] | None = None,
    ) -> None:
        """Opens the port and allocates everything; raises DataPlaneError or ConfigError.

        ``late_secret`` is where a cluster secret that is missing may still come from, ``again`` reads the source anew.
        """
        self.config = config
        self.name = config.hostname or socket.gethostname()
        loaded = load_policy_of(config)
        self.resiliency = config.resiliency
        self._control_path = control_path or config.control_socket
        self._drain_timeout_s = drain_timeout_s
        self.data = find_data_interface(config)
        self.management = find_management_interface(config, self.data)
        self._outward = Outward(self.management.device, tuple(map(str, config.networking.dns)))
        self._late_secret = late_secret
        self.again = again
        why, warnings = describe_interfaces(config, self.data, self.management)
        log.info("interfaces", data=self.data.where, management=self.management.where, why=why)
        for warning in warnings:
            log.warning(warning)
        sources = config.geneve_sources or self.data.networks
        if config.geneve_sources is None:
            log.warning(
                "everwall-geneve-sources is not set: GENEVE is believed from the data interface's subnets",
                sources=", ".join(map(str, sources)),
            )
        if config.jumbo_frame and self.data.mtu < JUMBO_MTU_MIN:
            log.warning(
                f"jumbo-frame: packets of {INNER_MTU_MAX} bytes need a data interface of MTU {JUMBO_MTU_MIN}",
                interface=self.data.name,
                mtu=self.data.mtu,
            )
        owner = owner_id(self.name)
        engine = EngineConfig(
            max_sessions=config.max_sessions,
            inspect=config.gwlb_inspect,
            resiliency=self.resiliency.enabled,
            owner=owner,
            geneve_sources=tuple(sources),
            epoch_offset=time.time_ns() - time.monotonic_ns(),
            epoch_guessed=True,
            seed=int.from_bytes(os.urandom(8), "big", signed=True),
            frame_bytes=frame_bytes_for(self.data.mtu),
            settings=loaded.policy.settings,
        )
        cores = choose_cores(config.workers, config.worker_cores, os.sched_getaffinity(0))
        self._owner = owner
        self._housekeeper: Housekeeper | None = None
        self._rates = Rates()
        with contextlib.ExitStack() as opened:
            self.plane = open_data_plane(Wish(config, self.data, tuple(sources), engine.seed))
            opened.callback(self.plane.close)
            self.workers = Workers(
                engine, loaded.compiled, self.plane.ports, cores, self.plane.shared, self.plane.control
            )
            opened.callback(self.workers.stop)
            if self.resiliency.enabled:
                self._connect_to_store()
            self._traffic_log = TrafficLog(config.traffic_log)
            opened.pop_all()
        self.policies = Policies(self, loaded, self._outward)
        self._reload: asyncio.Task[None] | None = None
        self._state = "joining"
        self.started_ns = time.monotonic_ns()
        self._stopping = asyncio.Event()
        self.relayout: Relayout | None = None
        self._refused, self._refused_said_ns = (0, 0), 0

    def _connect_to_store(self) -> None:
        secrets, store = self.config.cluster_secrets, store_config(self.config, self._owner, self._outward)
        self.workers.connect(store, derive_keys(*secrets), buckets_for(self.config.max_sessions))
        self._housekeeper = Housekeeper(store, secrets, self._member, log.warning)

    def _member(self) -> Member:
        """This node as the others know it."""
        policy = self.policies.loaded.policy
        return Member(
            node=self.name,
            policy=policy.file or "no policy file",
            checksum=self.policies.checksum,
            release=__version__,
        )

    # Life -----------------------------------------------------------------------------------------------

    async def run(self) -> int:
        """Serve until drained or stopped; returns the exit status."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._terminate)
        loop.add_signal_handler(signal.SIGINT, self._stopping.set)
        loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        health = HealthListener(
            self.data.address,
            self.config.health_port,
            lambda: self.state,
            lambda: self.workers.heartbeat,
            # With two interfaces the answer must not leave by the other one.
            None if self.management.shared else self.data.name,
        )
        control = ControlServer(self._control_path, Commands(self).handlers) if self._control_path else None
        maintenance = waiting = watching = None
        try:
            self.workers.start()
            watching = asyncio.create_task(self.policies.host_names.run())
            watching.add_done_callback(_say_failure)
            if self._housekeeper is not None:
                self._housekeeper.start()
            await self._join()
            try:
                await health.start()
            except OSError as error:
                raise NodeError(
                    f"cannot answer health checks on {self.data.address}:{self.config.health_port}: "
                    f"{error.strerror or error}"
                ) from error
            if control is not None:
                await control.start()
            self._announce()
            maintenance = asyncio.create_task(self._maintain())
            # Whatever ends it: without it a drain would never end.
            maintenance.add_done_callback(lambda _: self._stopping.set())
            waiting = asyncio.create_task(self._await_secret())
            await self._stopping.wait()
        finally:
            for beside in (waiting, watching):
                if beside is not None:
                    beside.cancel()
            if maintenance is not None:
                maintenance.cancel()
                await asyncio.wait([maintenance])
                if not maintenance.cancelled() and (failure := maintenance.exception()):
                    log.error("the management loop has failed", error=repr(failure))
            if control is not None:
                await control.stop()
            await health.stop()
            failed = self.state == "failing"
            self._close()
        return 1 if failed else 0

    @property
    def state(self) -> str:
        """``joining``, ``active``, ``draining`` or ``failing``."""
        return self._state if self.workers.running else "failing"

    async def _join(self) -> None:
        """Wait for the workers to be in their loops, and for the store and the policy's host names as long as the grace
        allows: without the store new sessions still work, without a name's addresses its rules match nothing."""
        while self.workers.running and self.workers.heartbeat == 0:
            await asyncio.sleep(0.01)
        deadline = self.started_ns + int(self.config.join_grace_s * SECOND_NS)
        while (
            self.resiliency.enabled and not self.store_status()["connected"] and not self._stopping.is_set()
        ):
            if self._state != "joining":
                break  # it is to go again: no session has come that the store would be needed for
            if time.monotonic_ns() > deadline:
                log.warning("the store does not answer: joining without it", **self.store_status())
                break
            await asyncio.sleep(0.01)
        while not self.policies.host_names.settled and not self._stopping.is_set():
            if time.monotonic_ns() > deadline:
                log.warning(
                    "host names of the policy are not resolved yet: joining without them",
                    names=", ".join(self.policies.host_names.unresolved()),
                )
                break
            await asyncio.sleep(0.01)
        if self._state == "joining":
            self._state = "active"

    def _announce(self) -> None:
        for warning in self.policies.loaded.policy.warnings:
            log.warning(warning)
        log.info(
            "ready",
            name=self.name,
            version=__version__,
            data=f"{self.data.where}, MTU {self.data.mtu}",
            port=f"{self.plane.kind} ({self.plane.detail})" if self.plane.detail else self.plane.kind,
            cut_through=self.plane.without or "on",
            workers=len(self.workers),
            health=f"{self.data.address}:{self.config.health_port}",
            seconds=round((time.monotonic_ns() - self.started_ns) / SECOND_NS, 2),
        )
        # The last line of a start: everything that an operator asks first.
        facts = [
            f"Successful bootstrap: {self.config.file or 'without a file'}",
            f"Everwall {__version__}, no licence needed",
            self.policies.loaded.policy.summary,
            *self.config.notes,
        ]
        log.info("; ".join(facts))

    async def _await_secret(self) -> None:
        """Look for the cluster secret until it is there; traffic goes on meanwhile."""
        late, complaint = self._late_secret, ""
        while late is not None and self.config.cluster_secret is None:
            await asyncio.sleep(late.every_s)
            try:
                secret = await beside(lambda: late.read(log.warning))
            except ConfigError as error:
                if complaint != (complaint := titled(error)):
                    log.warning(complaint)
                continue
            if (
                secret is not None and self.config.cluster_secret is None
            ):  # `store secrets` may have been quicker
                log.info(f"the cluster secret has come from {late.place}")
                self.take_secret(secret)

    def take_secret(self, secret: SecretBytes) -> None:
        """Use a cluster secret that came after the start; resiliency that was held back for it is switched on."""
        held_back = self._held_back
        self.config = replace(self.config, cluster_secret=secret, cluster_secret_awaited="")
        if held_back:
            self.switch_resiliency(True)

    @property
    def _held_back(self) -> bool:
        """Whether resiliency waits for the cluster secret alone: nobody has switched it off since it was asked for."""
        return self.config.standing == "held back" and self.resiliency == self.config.resiliency

    def _terminate(self) -> None:
        if self._state == "draining":
            self._stopping.set()
        else:
            self.drain()

    def drain(self) -> None:
        """Answer health checks with ``draining`` and stop once nothing comes any more."""
        if self._state != "draining":
            self._state = "draining"
            self._drain_began_ns = time.monotonic_ns()
            log.info("draining", sessions=self._count(Counter.SESSIONS), at_most_s=self._drain_timeout_s)

    async def _maintain(self) -> None:
        """Write the traffic log, watch the workers, end a drain."""
        received, quiet_since, rated = -1, time.monotonic_ns(), 0
        while True:
            await asyncio.sleep(MAINTENANCE_S)
            self._log_events()
            now = time.monotonic_ns()
            self._log_refused(now)
            self.workers.watch_stores()
            if now - rated >= SECOND_NS:
                self._rates.note(now / SECOND_NS, self.workers.store_status())
                rated = now
            if not self.workers.running:
                log.error("a worker has stopped")
                self._stopping.set()
                return
            if (came := self.counters()[Counter.RECEIVED.label]) != received:
                received, quiet_since = came, now
            if self._state == "draining":
                flowless = self._count(Counter.SESSIONS) == 0
                enough_s = DRAIN_EMPTY_S if flowless else DRAIN_QUIET_S
                quiet = now - max(quiet_since, self._drain_began_ns) > enough_s * SECOND_NS
                if quiet or now - self._drain_began_ns > self._drain_timeout_s * SECOND_NS:
                    log.info("drained", sessions=self._count(Counter.SESSIONS), quiet=quiet)
                    self._stopping.set()
                    return

    def _log_events(self) -> None:
        events = [event for event in self.workers.events() if event[state.EVENT_KIND] in _LOGGED]
        self._traffic_log.write([self._logged(event) for event in events])

    def _logged(self, event: npt.NDArray[np.int64]) -> dict[str, Any]:
        """A line of the traffic log: what was done with the session, and by which rule if it was refused."""
        row, names = self.policies.named(describe_event(event)), self.policies.loaded.names
        refused_by = row["refused_by"]
        return {
            "event": _LOGGED[int(event[state.EVENT_KIND])],
            **row,
            "action": names.actions.get(refused_by, "") if refused_by else "allow",
            "refused_by": names.rule(refused_by) if refused_by else None,
        }

    def _log_refused(self, now: int) -> None:
        """Somebody writes to the store who should not, or nodes do not have the same secrets or releases."""
        refused = self.workers.refused
        if refused != self._refused and now - self._refused_said_ns > REFUSED_LOG_S * SECOND_NS:
            altered, foreign = (new - old for new, old in zip(refused, self._refused, strict=True))
            log.warning(
                "records in the store were refused",
                altered_or_of_another_secret=altered,
                of_another_version=foreign,
            )
            self._refused, self._refused_said_ns = refused, now

    def _close(self) -> None:
        self.workers.stop(self.relayout, self._housekeeper)
        self._log_events()
        self._traffic_log.close()
        self.plane.close()

    # What is seen from outside --------------------------------------------------------------------------------

    def counters(self) -> dict[str, int]:
        """Verdicts and counters by name. What the cut-through answered has come and gone like everything else."""
        counts, kernel = self.workers.counters(), self.plane.counters()
        for label in (Verdict.FORWARD.label, Counter.RECEIVED.label):
            counts[label] = counts.get(label, 0) + kernel.get(BOUNCED, 0)
        counts[Counter.BYTES.label] += kernel.get(BOUNCED_BYTES, 0)
        return {**counts, **kernel}

    def _hang_up(self) -> None:
        """SIGHUP: read the policy and the store's password again; what is wrong with them is in the log."""
        self.renew_login()
        if self.policies.reloading:
            log.warning("a reload is under way: the policy is not read once more")
            return

        async def reload() -> None:
            with contextlib.suppress(ValueError, RuntimeError):
                await self.policies.reload()

        self._reload = asyncio.create_task(reload())

    async def read_again(self) -> Bootstrap:
        """What the node was started from, once more. Raises ConfigError."""
        assert self.again is not None
        # A bucket or a secret may be slow to answer, and health checks do not wait for it.
        source = await beside(self.again)
        for warning in source.warnings:
            log.warning(f"bootstrap: {warning}")
        return source

    def switch_resiliency(self, on: bool) -> None:
        """Keep sessions in the store from now on, or not; raises ValueError where there is no store to keep them in."""
        if on and not self.config.store.enabled:
            raise ValueError(self.config.store.why)
        if on == self.resiliency.enabled:
            return
        if on and not self.workers.connected:
            self._connect_to_store()
            assert self._housekeeper is not None
            self._housekeeper.start()
        self.workers.switch_resiliency(on)
        self.resiliency = self.config.store if on else Resiliency(False, "it was switched off")
        log.info(f"session resiliency is {'on' if on else 'off'}: {self.resiliency.why}")

    def renew_login(self) -> None:
        """Read the file with the store's password again, and say it on the connections there are."""
        file = self.config.redis_auth_file
        if file is None or not self.workers.connected:
            log.info("no everwall-redis-auth-file is in use: there is no password to read again")
            return
        try:
            self.workers.renew_login(self.config.redis_user, file)
        except ConfigError as error:
            log.error(f"the store's password stays as it is: {error}")
        else:
            log.info("the store's password was read again", file=str(file))

    def change_buckets(self, buckets: int) -> None:
        """Begin to change the number of the store's buckets, or go on with that; the nodes of the cluster do the rest.

        Blocks until it is announced. Raises ValueError where that cannot be, with the reason, and ConnectionError when
        the store does not answer.
        """
        if not self.resiliency.enabled:
            raise ValueError(f"session resiliency is off: {self.resiliency.why}")
        if self.relayout is not None and self.relayout.running:
            raise ValueError(f"this node carries out a change already: {self.relayout.status()}")
        relayout = Relayout(store_config(self.config, self._owner, self._outward))
        try:
            layout = relayout.begin(buckets)
        except (ValueError, OSError):
            relayout.stop()
            raise
        self.relayout = relayout
        log.info("the number of the store's buckets changes", layout=str(layout))

    def renew_secrets(self, fresh: InitCfg) -> Answer:
        """Use the cluster's secrets of ``fresh`` from now on, and nothing else of it; the first one may come so, too.

        Raises ValueError when there is no secret in it; then nothing has changed.
        """
        if fresh.cluster_secret is None:
            raise ValueError(f"{self.config.file}: no everwall-cluster-secret")
        held_back = self._held_back
        self.config = replace(
            self.config,
            cluster_secret=fresh.cluster_secret,
            cluster_secret_second=fresh.cluster_secret_second,
            cluster_secret_awaited="",
        )
        keys = derive_keys(*fresh.cluster_secrets)
        self.workers.use_keys(keys)
        if self._housekeeper is not None:
            self._housekeeper.use_secrets(fresh.cluster_secrets)
        log.info("the cluster's secrets were read again", secrets=fingerprints(keys))
        if held_back:
            self.switch_resiliency(True)
        return {"secrets": fingerprints(keys)}

    def store_status(self) -> Answer:
        """What the operator sees of the store."""
        facts = self.workers.store_status()
        if self._housekeeper is None:
            return facts
        return {**facts, **self._rates.per_s(), **self._housekeeper.status()}

    def _count(self, which: Counter) -> int:
        return self.workers.count(which)
