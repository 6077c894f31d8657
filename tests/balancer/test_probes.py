"""Health checks against real listeners: good, wrong, refusing and hung ones."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import asynccontextmanager

import pytest
import trustme

from everwall.balancer.probes import Prober, ProbeSettings, probe
from everwall.balancer.targets import Reason, State, Targets

HERE = "127.0.0.1"


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
    return ProbeSettings(**{"protocol": "HTTP", "port": port, "interval": 1.0, "timeout": 0.5} | kind)


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
        async with listener(answer) as (port, _):
            return await probe(HERE, http(port))

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
        assert 0.1 <= time.monotonic() - began < 0.5


def test_refused_connection_fails_at_once():
    with stopped_process() as closed:
        port = closed.getsockname()[1]
    assert asyncio.run(probe(HERE, http(port))) is Reason.FAILED_CHECKS


def test_hung_target_is_detected_within_its_bound():
    """Probes start on schedule: threshold intervals and one time-out, not their sum each time."""
    interval, timeout, threshold = 0.2, 0.2, 2
    targets = Targets(healthy_threshold=2, unhealthy_threshold=threshold)

    async def story(hang: asyncio.Event) -> int:
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
        prober = Prober(targets, http(port, interval=interval, timeout=timeout))
        prober.watch("fw1")
        async with asyncio.timeout(10):
            while targets["fw1"].state is not State.HEALTHY:
                await asyncio.sleep(0.01)
            began = time.monotonic_ns()
            hang.set()
            while targets["fw1"].state is State.HEALTHY:
                await asyncio.sleep(0.01)
        await prober.stop()
        server.close()
        return began

    began = asyncio.run(story(asyncio.Event()))
    event = targets.events[-1]
    assert (event.state, event.reason) == (State.UNHEALTHY, Reason.TIMEOUT)
    assert (event.time - began) / 1e9 <= threshold * interval + timeout + 0.15


def test_probes_end_with_the_registration():
    targets = Targets(deregistration_delay=0)

    async def story():
        async with listener(b"HTTP/1.1 200 OK\r\n\r\n") as (port, seen):
            targets.register("fw1", HERE, 0)
            prober = Prober(targets, http(port, interval=0.05, timeout=0.05))
            prober.watch("fw1")
            async with asyncio.timeout(5):
                while len(seen) < 3:
                    await asyncio.sleep(0.01)
            targets.deregister("fw1", 1)
            await asyncio.sleep(0.2)
            count = len(seen)
            await asyncio.sleep(0.2)
            await prober.stop()
            return count, len(seen)

    count, later = asyncio.run(story())
    assert count == later
