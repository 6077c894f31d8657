"""Attempts at what may block, such as resolving a name, in a helper thread: one at a time, with pauses that grow."""

from __future__ import annotations

import os
import queue
import random
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from everwall.limits import SECOND_NS, STORE_RECONNECT_MAX_S, STORE_RECONNECT_MIN_S

Result = TypeVar("Result")


class Dialer(Generic[Result]):
    """``result`` is told what an attempt came to, once; ``wake_fd`` is written to when there is something."""

    def __init__(
        self,
        name: str,
        wake_fd: int,
        undo: Callable[[Result], None],
        longest_s: float = STORE_RECONNECT_MAX_S,
    ) -> None:
        """``undo`` is called for a result that nobody wants any more; ``longest_s``: of a pause."""
        self._name, self._wake_fd, self._undo, self._longest_s = name, wake_fd, undo, longest_s
        self._thread: threading.Thread | None = None
        self._results: queue.SimpleQueue[Result | Exception] = queue.SimpleQueue()
        self._closed = False
        self._attempts = 0
        self._attempt_at_ns = 0

    def wait_ns(self, now: int) -> int:
        """Until there is something to do; whatever ends the attempt under way wakes the thread."""
        return SECOND_NS if self._thread else self._attempt_at_ns - now

    @property
    def is_due(self) -> bool:
        """Whether the next attempt may begin."""
        return self._thread is None and time.monotonic_ns() >= self._attempt_at_ns

    @property
    def is_busy(self) -> bool:
        """Whether an attempt is under way."""
        return self._thread is not None and self._thread.is_alive()

    def begin(self, attempt: Callable[[], Result]) -> None:
        """Whatever goes wrong in ``attempt`` is its result, and that there is no thread to be had is one as well."""
        thread = threading.Thread(target=self._run, args=(attempt,), name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._results.put(error)
        else:
            self._thread = thread

    def _run(self, attempt: Callable[[], Result]) -> None:
        try:
            result: Result | Exception = attempt()
        except Exception as error:
            result = error
        if self._closed:
            if not isinstance(result, Exception):
                self._undo(result)
            return
        self._results.put(result)
        os.eventfd_write(self._wake_fd, 1)

    def result(self) -> Result | Exception | None:
        """What the attempt came to, or None while it is under way."""
        try:
            result = self._results.get_nowait()
        except queue.Empty:
            return None
        self._thread = None
        return result

    def succeeded(self) -> None:
        """The next attempt may follow at once."""
        self._attempts = 0

    def pause(self) -> None:
        """The next attempt follows after a pause that grows."""
        pause_s = min(STORE_RECONNECT_MIN_S * 2**self._attempts, self._longest_s)
        self._attempts = min(self._attempts + 1, 16)
        # Nodes that lost the server together shall not come back together.
        self._attempt_at_ns = time.monotonic_ns() + int(pause_s * random.uniform(0.5, 1.0) * SECOND_NS)

    def close(self) -> None:
        """Nobody wants the result of an attempt under way."""
        self._closed = True

    def join(self, until: float) -> bool:
        """Wait for the attempt under way, until that time by CLOCK_MONOTONIC, seconds; whether it has ended."""
        thread = self._thread
        if thread is not None:
            thread.join(max(until - time.monotonic(), 0))
        return thread is None or not thread.is_alive()
