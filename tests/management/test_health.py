"""The health listener: the four states as a prober sees them, and the worker that stops beating."""

from __future__ import annotations

import asyncio
import http.client
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from everwall.limits import HEALTH_REQUEST_BYTES_MAX, HEARTBEAT_STALE_NS
from everwall.management.health import HealthListener

ADDRESS = "127.0.0.77"
"""Not the one that connections come from: none of them takes the port of a listener that is closed for a while."""


class Node:
    """What the listener asks: a state, a clock that stands still and a heartbeat."""

    def __init__(self, state: str = "active") -> None:
        self.state = state
        self.now = 10_000_000_000
        self.beat = self.now

    def listener(self) -> HealthListener:
        return HealthListener(ADDRESS, 0, lambda: self.state, lambda: self.beat, clock=lambda: self.now)


def run(node: Node, talk: Callable[[HealthListener], Any]) -> Any:
    """Run ``talk`` in a thread beside the node's listener."""

    async def main() -> Any:
        listener = node.listener()
        await listener.start()
        try:
            return await asyncio.to_thread(talk, listener)
        finally:
            await listener.stop()

    return asyncio.run(main())


def get(listener: HealthListener, path: str = "/", method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection(ADDRESS, listener.port, timeout=30)
    connection.request(method, path)
    response = connection.getresponse()
    return response.status, response.read().decode()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("state", "status", "body"),
    [("active", 200, "ok"), ("draining", 200, "draining"), ("failing", 503, "failing")],
)
def test_the_state_is_the_answer_to_any_path(state: str, status: int, body: str) -> None:
    assert run(Node(state), lambda listener: get(listener, "/any/path?x=1")) == (status, body)


def test_head_has_no_body_and_anything_else_is_refused() -> None:
    assert run(Node(), lambda listener: get(listener, method="HEAD")) == (200, "")
    assert run(Node(), lambda listener: get(listener, method="POST")) == (405, "")


def test_a_joining_node_does_not_listen_until_it_is_active() -> None:
    node = Node("joining")

    def talk(listener: HealthListener) -> None:
        assert not listener.listening
        node.state = "active"
        until(lambda: listener.listening)
        assert get(listener) == (200, "ok")

    run(node, talk)


def test_a_stale_heartbeat_closes_the_socket_and_a_fresh_one_opens_it_again() -> None:
    node = Node()

    def talk(listener: HealthListener) -> None:
        port = listener.port
        waiting = socket.create_connection((ADDRESS, port), timeout=30)
        until(lambda: len(listener.connections) == 1)
        node.now += HEARTBEAT_STALE_NS + 1
        until(lambda: not listener.listening)
        with pytest.raises(ConnectionResetError):
            waiting.recv(1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((ADDRESS, port), timeout=30)
        node.beat = node.now
        until(lambda: listener.listening)
        assert listener.port == port
        assert get(listener) == (200, "ok")

    run(node, talk)


def test_no_answer_is_given_between_the_last_beat_and_the_closing() -> None:
    node = Node()

    def talk(listener: HealthListener) -> None:
        connection = http.client.HTTPConnection(ADDRESS, listener.port, timeout=30)
        connection.connect()
        node.now += HEARTBEAT_STALE_NS + 1
        with pytest.raises(ConnectionError):
            connection.request("GET", "/")
            connection.getresponse()

    run(node, talk)


@pytest.mark.parametrize(
    "rubbish", [b"\r\n\r\n", b"GET\r\n\r\n", b"GET / FTP/1\r\n\r\n", b"\x00\xff\r\n\r\n"]
)
def test_rubbish_is_a_bad_request(rubbish: bytes) -> None:
    assert run(Node(), lambda listener: _raw(listener, rubbish)).startswith(b"HTTP/1.1 400 ")


def test_a_request_without_end_is_refused() -> None:
    sent = b"GET / HTTP/1.1\r\nX: " + b"x" * HEALTH_REQUEST_BYTES_MAX
    assert run(Node(), lambda listener: _raw(listener, sent)).startswith(b"HTTP/1.1 431 ")


def test_a_request_in_pieces_is_one_request() -> None:
    assert run(
        Node(), lambda listener: _raw(listener, b"GET / HT", b"TP/1.1\r\nHost: x\r\n", b"\r\n")
    ).endswith(b"ok")


def _raw(listener: HealthListener, *pieces: bytes) -> bytes:
    with socket.create_connection((ADDRESS, listener.port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while part := connection.recv(4096):
            received += part
        return received
