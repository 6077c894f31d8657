"""Attempts in a helper thread: whatever goes wrong with one, another follows."""

from __future__ import annotations

import os
import threading
import time

import pytest

from everwall.store.dialer import Dialer


def test_where_there_is_no_thread_to_be_had_the_attempt_has_failed_and_the_next_may_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    wake_fd = os.eventfd(0)
    dialer: Dialer[str] = Dialer("test", wake_fd, lambda _: None)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        dialer.begin(lambda: "never")
    assert dialer.join(time.monotonic() + 10), "nobody is waited for"
    assert "can't start new thread" in str(dialer.result())
    assert dialer.is_due
    dialer.begin(lambda: "there")
    os.eventfd_read(wake_fd)  # waits until there is one
    assert dialer.result() == "there"
    assert dialer.join(time.monotonic() + 10)
    os.close(wake_fd)
