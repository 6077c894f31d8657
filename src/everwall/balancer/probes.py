"""Health checks: a fresh connection to every target, every interval, over TCP, HTTP or HTTPS.

A probe starts when its interval begins, not when the one before has ended, so a target that answers
nothing is unhealthy after ``unhealthy_threshold_count`` intervals and one time-out at the latest. A
stopped process still gets its connections accepted by the kernel; only HTTP and HTTPS notice that it
does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import time
from dataclasses import dataclass

from everwall.balancer.targets import Reason, State, Targets
from everwall.limits import GWLB_PROBE_ANSWER_BYTES_MAX

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r\n]")


@dataclass(frozen=True)
class ProbeSettings:
    """What a probe does; names and meanings as AWS has them."""

    protocol: str = "TCP"
    """``TCP``, ``HTTP`` or ``HTTPS``."""
    port: int = 80
    path: str = "/"
    interval: float = 10.0
    """Seconds."""
    timeout: float = 5.0
    """Seconds."""
    codes: tuple[tuple[int, int], ...] = ((200, 399),)
    """Ranges of HTTP codes that mean healthy."""
    source: str | None = None
    """Own address to probe from."""


async def probe(address: str, settings: ProbeSettings) -> Reason:
    """One health check; ``Reason.NONE`` when the target passed, else why not. Never raises."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(settings.timeout):
            reader, writer = await asyncio.open_connection(
                address,
                settings.port,
                ssl=_any_certificate() if settings.protocol == "HTTPS" else None,
                local_addr=(settings.source, 0) if settings.source else None,
                limit=GWLB_PROBE_ANSWER_BYTES_MAX,
            )
            if settings.protocol == "TCP":
                return Reason.NONE
            request = (
                f"GET {settings.path} HTTP/1.1\r\nHost: {address}:{settings.port}\r\n"
                "User-Agent: everwall-gwlb\r\nAccept: */*\r\nConnection: close\r\n\r\n"
            )
            writer.write(request.encode("ascii"))
            return _judge(await reader.readline(), settings)
    except TimeoutError:
        return Reason.TIMEOUT
    except (OSError, ValueError, EOFError):
        return Reason.FAILED_CHECKS
    finally:
        if writer is not None:
            # Abort: a target that does not read must not keep a closing connection here.
            writer.transport.abort()


def _judge(status_line: bytes, settings: ProbeSettings) -> Reason:
    status = _STATUS_LINE.match(status_line)
    if status is None:
        return Reason.FAILED_CHECKS
    if any(low <= int(status[1]) <= high for low, high in settings.codes):
        return Reason.NONE
    return Reason.CODE_MISMATCH


def _any_certificate() -> ssl.SSLContext:
    """Targets show certificates of their own making; like AWS, a probe does not verify them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Prober:
    """Probes every registered target of ``targets`` and tells it the outcomes."""

    def __init__(self, targets: Targets, settings: ProbeSettings) -> None:
        self._targets = targets
        self._settings = settings
        self._watching: dict[str, asyncio.Task[None]] = {}

    def watch(self, target_id: str) -> None:
        """Probe a target from now on, until it is deregistered for good."""
        if target_id not in self._watching:
            self._watching[target_id] = asyncio.create_task(self._watch(target_id))

    async def stop(self) -> None:
        """End all probes."""
        tasks = list(self._watching.values())
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._watching.clear()

    async def _watch(self, target_id: str) -> None:
        clock = asyncio.get_running_loop().time
        interval = self._settings.interval
        due = clock()
        self._targets.started(target_id, time.monotonic_ns())
        try:
            async with asyncio.TaskGroup() as probes:
                while target_id in self._targets and self._targets[target_id].state is not State.UNUSED:
                    probes.create_task(self._probe(target_id))
                    due += interval
                    late = clock() - due
                    if late > 0:
                        # The machine stood still: go on with the schedule, do not catch up.
                        due += (late // interval + 1) * interval
                    await asyncio.sleep(due - clock())
        finally:
            self._watching.pop(target_id, None)

    async def _probe(self, target_id: str) -> None:
        outcome = await probe(self._targets[target_id].address, self._settings)
        self._targets.probed(target_id, outcome, time.monotonic_ns())
