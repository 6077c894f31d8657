"""From the start of a node's process to its first good health check, with a warm cache.

The calibration beside it is what the interpreter takes to import Numba alone, in the same run.
"""

from __future__ import annotations

import http.client
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ADDRESS = "127.0.83.1"
HEALTH_PORT = 8099
ROUNDS = 5
START_S_MAX = 60.0


def measure(seconds: float) -> dict[str, float]:
    """Milliseconds, medians of ``ROUNDS`` rounds that alternate."""
    del seconds  # a start takes as long as it takes
    starts, imports = [], []
    with tempfile.TemporaryDirectory() as folder:
        bootstrap = Path(folder) / "init-cfg.txt"
        bootstrap.write_text(
            "hostname=bench\n"
            "plugin-op-commands=aws-gwlb-inspect:enable\n"
            f"everwall-data-address={ADDRESS}\n"
            "everwall-port=udp\n"
            f"everwall-health-port={HEALTH_PORT}\n"
        )
        for _ in range(ROUNDS + 1):  # the first may compile
            starts.append(_timed(lambda: _start(bootstrap)))
            imports.append(_timed(lambda: subprocess.run([sys.executable, "-c", "import numba"], check=True)))
    return {
        "start to healthy, ms": statistics.median(starts[1:]),
        "import numba alone, ms": statistics.median(imports[1:]),
    }


def _timed(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return (time.monotonic() - began) * 1000


def _start(bootstrap: Path) -> None:
    command = [sys.executable, "-m", "everwall", "firewall", "--bootstrap", str(bootstrap)]
    node = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S_MAX
        while not _healthy():
            if time.monotonic() > deadline or node.poll() is not None:
                raise RuntimeError("the node did not become healthy")
            time.sleep(0.01)
    finally:
        node.kill()
        node.wait()


def _healthy() -> bool:
    check = http.client.HTTPConnection(ADDRESS, HEALTH_PORT, timeout=1)
    try:
        check.request("GET", "/")
        return check.getresponse().status == 200
    except OSError:
        return False
    finally:
        check.close()
