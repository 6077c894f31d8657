"""What this process holds open, for tests of what is left behind."""

from __future__ import annotations

import contextlib
import gc
import os


def opened() -> list[str]:
    """What every open descriptor leads to.

    What an earlier test left to the garbage collector is closed now, and not in the middle of this one.
    """
    gc.collect()
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return sorted(found)


def eventfds() -> int:
    """How many eventfds are open."""
    return opened().count("anon_inode:[eventfd]")
