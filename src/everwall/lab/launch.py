"""Become another program inside a network namespace, bound to the life of the lab.

``python -m everwall.lab.launch [--netns PATH] [--outlive] [--xdp-pass DEVICE,...] -- PROGRAM ARGUMENT...``

Only the network namespace is entered (``setns`` with CLONE_NEWNET). ``ip netns exec`` would also
unshare the mounts and hide /sys/fs/bpf. Unless ``--outlive`` is given the program is killed when
the lab dies, however the lab dies, so that nothing is left running behind a killed lab.

What the XDP program at one end of a veth bounces is lost unless the other end has an XDP program too.
``--xdp-pass`` gives these devices one that lets everything pass; it stays as long as the program that is started.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Sequence

_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG = 1
_NICE = -10
"""In a real cluster each of these programs has a machine to itself; here they share one with whatever runs on it."""


def _call(name: str, *arguments: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def enter_network(path: str) -> None:
    """Move the calling thread into the network namespace at ``path``; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _call("setns", descriptor, _CLONE_NEWNET)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def inside(path: str) -> Iterator[None]:
    """Let the calling thread live in the network namespace at ``path`` for a while."""
    home = "/proc/thread-self/ns/net"
    descriptor = os.open(home, os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter_network(path)
        try:
            yield
        finally:
            _call("setns", descriptor, _CLONE_NEWNET)
    finally:
        os.close(descriptor)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends; survives exec."""
    _call("prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def command(program: list[str], netns: str | None, outlive: bool, xdp_pass: Sequence[str] = ()) -> list[str]:
    """The command line that runs ``program`` through this launcher."""
    line = [sys.executable, "-m", "everwall.lab.launch"]
    line += ["--netns", netns] if netns else []
    line += ["--outlive"] if outlive else []
    line += ["--xdp-pass", ",".join(xdp_pass)] if xdp_pass else []
    return [*line, "--", *program]


def main(arguments: list[str]) -> None:
    split = arguments.index("--")
    options, program = arguments[:split], arguments[split + 1 :]
    with contextlib.suppress(OSError):  # for root only
        os.nice(_NICE)
    if "--outlive" not in options:
        die_with_parent()
        if os.getppid() == 1:
            sys.exit("the lab ended before its program started")
    if "--netns" in options:
        enter_network(options[options.index("--netns") + 1])
    if "--xdp-pass" in options:
        from everwall.ports.bpf import BpfError, attach_pass  # slow to import, and nobody else needs it

        for device in options[options.index("--xdp-pass") + 1].split(","):
            try:
                attach_pass(device).survive_exec()
            except BpfError as error:
                sys.exit(str(error))
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
