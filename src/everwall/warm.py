"""Compile every kernel once, before anything has to be quick.

Kernels are compiled the first time they are called with a set of types, which takes minutes for a
whole node and would look like a hang. Each room that has compiled entry points offers a
function ``warm()`` that builds the smallest state they accept and calls each of them once, with the types of
real life; the machine code lands in the cache that ``kernels`` names. The list below says whom to ask.

Each runs in a process of its own: the calls do not see each other's state, two cores are put to use,
and the caller's progress goes on while the compiler is busy.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from importlib import import_module
from pathlib import Path
from typing import IO, NamedTuple

from everwall.kernels import CACHE_DIRECTORY, JIT

FIREWALL = ("everwall.store.redis", "everwall.worker")


class EntryPoint(NamedTuple):
    """``module``.warm() compiles what ``title`` says."""

    title: str
    module: str


ENTRY_POINTS = [
    EntryPoint("the store's records", "everwall.store.redis"),
    EntryPoint("the firewall's worker", "everwall.worker"),
    EntryPoint("the load balancer's worker", "everwall.gwlb_worker"),
    EntryPoint("the replay of captures", "everwall.replay"),
]
"""In the order of their start; the replay last, because most of it is compiled for the worker already."""


class _Running(NamedTuple):
    process: subprocess.Popen[bytes]
    said: IO[str]
    """What it printed: a file, because nobody reads a pipe while the process runs."""
    began: float


class WarmError(RuntimeError):
    """An entry point did not compile; the message holds what it printed."""


def is_warm(modules: Collection[str] = ()) -> bool:
    """True when nothing of ``modules`` (default: all) is left to compile for exactly these sources."""
    return not _missing(modules)


def warm(progress: Callable[[str], None], jobs: int | None = None, modules: Collection[str] = ()) -> float:
    """Compile what of ``modules`` (default: all) is not in the cache yet; returns the seconds it took.

    ``progress`` gets a line at every start and end. Raises WarmError when an entry point fails.
    """
    began = time.monotonic()
    waiting = _missing(modules)
    running: dict[EntryPoint, _Running] = {}
    try:
        while waiting or running:
            while waiting and len(running) < (jobs or os.cpu_count() or 1):
                entry = waiting.pop(0)
                command = [sys.executable, "-m", "everwall.warm", entry.module]
                said = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed when the process has ended)
                process = subprocess.Popen(command, stdout=said, stderr=said)
                running[entry] = _Running(process, said, time.monotonic())
                progress(f"compiling {entry.title}")
            time.sleep(0.05)
            for entry, compiler in list(running.items()):
                if compiler.process.poll() is None:
                    continue
                del running[entry]
                with compiler.said:
                    compiler.said.seek(0)
                    if compiler.process.returncode:
                        raise WarmError(f"{entry.title}: {compiler.said.read().strip()}")
                _stamp(entry).touch()
                progress(f"compiled {entry.title} in {time.monotonic() - compiler.began:.1f} s")
    finally:
        for compiler in running.values():
            compiler.process.kill()
            compiler.process.wait()
            compiler.said.close()
    return time.monotonic() - began


def _stamp(entry: EntryPoint) -> Path:
    """Stands in the cache once the entry point is compiled.

    Numba keeps the code of a file by its place as well, so another checkout of the same sources is not warm by ours.
    """
    place = hashlib.blake2b(os.fsencode(Path(__file__).resolve()), digest_size=6).hexdigest()
    return CACHE_DIRECTORY / f"warm.{entry.module}.{place}"


def _missing(modules: Collection[str]) -> list[EntryPoint]:
    if not JIT:
        return []
    wanted = [entry for entry in ENTRY_POINTS if not modules or entry.module in modules]
    return [entry for entry in wanted if not _stamp(entry).exists()]


if __name__ == "__main__":
    import_module(sys.argv[1]).warm()
