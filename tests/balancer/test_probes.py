"""Health checks against real listeners: good, wrong, refusing and hung ones."""

from __future__ import annotations

import asyncio
import selectors
import socket
import time
from collections.abc import Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trustme

from everwall.balancer import probes
from everwall.balancer.probes import Prober, ProbeSettings, probe
from everwall.balancer.targets import Reason, State, Targets

HERE = "127.0.0.1"
PATIENCE_S = 30.0


@asynccontextmanager
async def listener(answer: bytes | None, *, tls=None):
    """A server that reads a request and answers, or with None never answers; yields its port."""
    seen: list[bytes] = []

    async def serve(reader, writer):
        try:
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            if answer is None:
                await asyncio.sleep(60)
            else:
                writer.write(answer)
                await writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, HERE, 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()


def http(port: int, **kind) -> ProbeSettings:
    """A probe that waits as long as a busy machine needs, unless it is told otherwise."""
    return ProbeSettings(**{"protocol": "HTTP", "port": port, "timeout": PATIENCE_S} | kind)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nok", Reason.NONE),
        (b"HTTP/1.0 399\r\n\r\n", Reason.NONE),
        (b"HTTP/1.1 503 draining\r\n\r\n", Reason.CODE_MISMATCH),
        (b"HTTP/1.1 2000 OK\r\n\r\n", Reason.FAILED_CHECKS),
        (b"HTTP/2 200 OK\r\n\r\n", Reason.FAILED_CHECKS),
        (b"HTTP/1.1 abc\r\n\r\n", Reason.FAILED_CHECKS),
        (b"SSH-2.0-OpenSSH\r\n", Reason.FAILED_CHECKS),
        (b"x" * 10_000, Reason.FAILED_CHECKS),
        (b"", Reason.FAILED_CHECKS),
        (None, Reason.TIMEOUT),
    ],
)
def test_http_answer_decides(answer, reason):
    async def story():
        patience = 0.2 if reason is Reason.TIMEOUT else PATIENCE_S
        async with listener(answer) as (port, _):
            return await probe(HERE, http(port, timeout=patience))

    assert asyncio.run(story()) is reason


def test_http_request_asks_for_the_path_and_closes():
    async def story():
        async with listener(b"HTTP/1.1 204 x\r\n\r\n") as (port, seen):
            assert await probe(HERE, http(port, path="/health?x", codes=((204, 204),))) is Reason.NONE
            return seen[0]

    request = asyncio.run(story())
    assert request.startswith(b"GET /health?x HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"Connection: close\r\n" in request


def test_https_takes_any_certificate():
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("somebody.else").configure_cert(context)

    async def story():
        async with listener(b"HTTP/1.1 200 OK\r\n\r\n", tls=context) as (port, _):
            return await probe(HERE, http(port, protocol="HTTPS"))

    assert asyncio.run(story()) is Reason.NONE


def stopped_process() -> socket.socket:
    """A listener whose process does nothing: the kernel accepts for it."""
    listening = socket.socket()
    listening.bind((HERE, 0))
    listening.listen(8)
    return listening


def test_hung_target_passes_tcp_and_fails_http_at_the_time_out():
    with stopped_process() as hung:
        port = hung.getsockname()[1]
        assert asyncio.run(probe(HERE, http(port, protocol="TCP"))) is Reason.NONE
        began = time.monotonic()
        assert asyncio.run(probe(HERE, http(port, timeout=0.1))) is Reason.TIMEOUT
        assert time.monotonic() - began >= 0.1


def test_refused_connection_fails_at_once():
    with stopped_process() as closed:
        port = closed.getsockname()[1]
    assert asyncio.run(probe(HERE, http(port))) is Reason.FAILED_CHECKS


def test_hung_target_is_unhealthy_by_its_time_out():
    targets = Targets(healthy_threshold=2, unhealthy_threshold=2)

    async def story(hang: asyncio.Event) -> None:
        async def serve(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            if not hang.is_set():
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            else:
                await asyncio.sleep(1)
            writer.close()

        server = await asyncio.start_server(serve, HERE, 0)
        port = server.sockets[0].getsockname()[1]
        targets.register("fw1", HERE, 0)
        prober = Prober(targets, http(port, interval=0.2, timeout=0.2))
        prober.watch("fw1")
        async with asyncio.timeout(PATIENCE_S):
            while targets["fw1"].state is not State.HEALTHY:
                await asyncio.sleep(0.01)
            hang.set()
            while targets["fw1"].state is State.HEALTHY:
                await asyncio.sleep(0.01)
        await prober.stop()
        server.close()

    asyncio.run(story(asyncio.Event()))
    event = targets.events[-1]
    assert (event.state, event.reason) == (State.UNHEALTHY, Reason.TIMEOUT)


# The schedule, by a clock that nothing disturbs -------------------------------------------------------


class Skipping(selectors.DefaultSelector):
    """For a loop whose time passes only while it waits, and at once: no timer of it is ever late."""

    now = 1.0

    def select(self, timeout: float | None = None):
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "nothing will ever happen"
            self.now += timeout
        return ready


class Schedule:
    """Runs stories in such a loop, in which targets answer at once, or hang from some time on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._clock = Skipping()
        self.hangs_at = float("inf")
        self.probed = 0
        here = SimpleNamespace(monotonic_ns=lambda: round(self._clock.now * 1e9))
        monkeypatch.setattr(probes, "time", here)
        monkeypatch.setattr(probes, "probe", self._probe)

    async def _probe(self, address: str, settings: ProbeSettings) -> Reason:
        self.probed += 1
        if self._clock.now < self.hangs_at:
            return Reason.NONE
        await asyncio.sleep(settings.timeout)
        return Reason.TIMEOUT

    def run(self, story: Coroutine[None, None, None]) -> None:
        def loop() -> asyncio.SelectorEventLoop:
            made = asyncio.SelectorEventLoop(self._clock)
            made.time = lambda: self._clock.now
            return made

        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(story)


@pytest.fixture
def schedule(monkeypatch: pytest.MonkeyPatch) -> Schedule:
    return Schedule(monkeypatch)


@pytest.mark.parametrize("phase", [0.001, 0.05, 0.1, 0.199])
def test_hung_target_is_detected_within_its_bound(schedule, phase):
    """Probes start on schedule: threshold intervals and one time-out, not their sum each time."""
    interval, timeout, threshold = 0.2, 0.2, 2
    targets = Targets(healthy_threshold=2, unhealthy_threshold=threshold)
    schedule.hangs_at = 5.0 + phase  # a probe begins at 5.0

    async def story() -> None:
        targets.register("fw1", HERE, 0)
        prober = Prober(targets, http(80, interval=interval, timeout=timeout))
        prober.watch("fw1")
        await asyncio.sleep(9)
        await prober.stop()

    schedule.run(story())
    marks = [(event.state, event.reason, event.time / 1e9) for event in targets.events][-2:]
    assert [mark[:2] for mark in marks] == [
        (State.HEALTHY, Reason.NONE),
        (State.UNHEALTHY, Reason.TIMEOUT),
    ]
    took = marks[1][2] - schedule.hangs_at
    assert took == pytest.approx(threshold * interval + timeout - phase)


def test_probes_end_with_the_registration(schedule):
    targets = Targets(deregistration_delay=0)
    counts = []

    async def story() -> None:
        targets.register("fw1", HERE, 0)
        prober = Prober(targets, http(80, interval=0.05, timeout=0.05))
        prober.watch("fw1")
        await asyncio.sleep(0.12)
        counts.append(schedule.probed)
        targets.deregister("fw1", 1)
        await asyncio.sleep(1)
        counts.append(schedule.probed)
        await prober.stop()

    schedule.run(story())
    assert counts == [3, 3]
