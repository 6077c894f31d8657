"""What a test needs of the machine: skip with the reason where it is missing, but never in CI.

With ``CI=true`` a missing capability is a failure, so that a pipeline cannot go green by skipping what
it was made for.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

DEEP = os.environ.get("EVERWALL_DEEP") == "1"
"""The long campaigns were asked for (``make test-deep``)."""
deep = pytest.mark.skipif(not DEEP, reason="takes its time: EVERWALL_DEEP=1")


def need(there: bool, what: str) -> None:
    """Go on when ``there``; otherwise skip, or fail under CI, saying what is missing."""
    if there:
        return
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"CI has to provide: {what}", pytrace=False)
    pytest.skip(f"needs {what}")


def root() -> None:
    """The test needs to be root."""
    need(os.geteuid() == 0, "root")


def binary(name: str) -> str:
    """The test needs the program ``name``; returns its path."""
    path = shutil.which(name)
    need(path is not None, f"the program {name}")
    assert path is not None
    return path


def server(name: str) -> str:
    """The test needs a server of the store: redis-server as any program, others where they are installed."""
    if name != "redis-server" and shutil.which(name) is None:
        pytest.skip(f"{name} is not installed here")
    return binary(name)


def module(name: str) -> None:
    """The test needs a Python package that the product does without."""
    from importlib.util import find_spec

    need(find_spec(name) is not None, f"the Python package {name}")


def device(path: str) -> None:
    """The test needs to open the device at ``path`` for reading and writing."""
    need(os.access(path, os.R_OK | os.W_OK), f"access to {path}")


def namespaces() -> None:
    """The test needs network namespaces of its own, tried by making one in a child process."""
    root()
    unshare = binary("unshare")
    made = subprocess.run([unshare, "--net", "true"], capture_output=True, check=False)
    need(made.returncode == 0, "network namespaces")


def why_no_xdp() -> str:
    """Why the cut-through program cannot be loaded here, tried by loading it; empty where it can."""
    from everwall.ports.bpf import BpfError, CutThrough

    try:
        CutThrough(workers=1, slots=8, queues=1).close()
    except BpfError as error:
        return str(error)
    return ""


def xdp() -> None:
    """The test needs to load the cut-through program, and namespaces to attach it in."""
    namespaces()
    reason = why_no_xdp()
    need(not reason, f"the cut-through program ({reason})")


def user_namespaces() -> None:
    """The test needs a user namespace with a network and mounts of its own, tried by making them.

    A system may forbid them altogether, and some let them be made and then allow nothing in them. There no
    pipeline can provide one, so this is skipped with the reason even in CI; where they work nothing is.
    """
    trial = "mount -t tmpfs none /mnt && ip link set lo up"
    line = [binary("unshare"), "--user", "--map-root-user", "--mount", "--net", "sh", "-c", trial]
    made = subprocess.run(line, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"this system allows no user namespaces: {made.stderr.strip()}")
