"""A short run of the whole lab for each kind of failure: nothing lost with resiliency, all of it without.

Times are reported and not asserted here: the machine of a test is often busy with other things. A
full ``everwall lab`` asserts them.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import netns

from everwall.lab import capabilities, rundir
from everwall.lab.measure import BOUNCED_SHARE_MIN, COMES_BACK, NON_SYN
from everwall.lab.processes import environment
from tests import needs

pytestmark = pytest.mark.lab

FAILURES = ["kill", "drain", "hang", "partition"]


def run_lab(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """The runs of one ``everwall lab``; whatever it said is printed, for a failed test to show."""
    figures = folder / "lab.json"
    line = [sys.executable, "-m", "everwall", "lab", "--json", str(figures), "--evidence", str(folder)]
    done = subprocess.run(
        [*line, *arguments], capture_output=True, text=True, check=False, timeout=400, env=environment()
    )
    print(done.stdout, done.stderr, sep="\n")
    found = json.loads(figures.read_text())
    assert "error" not in found, found["error"]
    runs: list[dict[str, Any]] = found["runs"]
    return runs


def says_what_it_must(on: dict[str, Any], off: dict[str, Any]) -> None:
    for run in (on, off):
        assert run["connections"] >= 60
        assert run["on_victim"] >= 15
        assert run["corrupt"] == 0
        assert run["lost"] == run["lost_on_victim"] + run["lost_by_flaps"], (
            "who was on a firewall that went on being healthy noticed nothing"
        )
        assert run["bytes_verified"] > 0
        assert "cut-through" not in "".join(run["broken"])
    assert on["lost"] == 0
    assert on["restored"] >= on["on_victim"]
    assert on["refused_after"] == 0
    assert off["lost_on_victim"] + off["spared_by_flaps"] == off["on_victim"], (
        "every connection of the victim is lost without resiliency"
    )
    assert off["drops"][NON_SYN] >= off["lost_on_victim"] > 0, "and by the counter that says why"
    assert off["restored"] == 0


@pytest.mark.parametrize("how", FAILURES)
def test_connections_live_through(how: str, tmp_path: Path) -> None:
    """With the best port there is: where that is xdp, the kernel answers most packets, before and after the event."""
    needs.namespaces()
    on, off = run_lab(tmp_path, "--fail", how, "--seconds", "9", "--connections", "66")
    assert (on["resiliency"], off["resiliency"]) == ("on", "off")
    assert on["traffic"] == off["traffic"] == "tcp"
    xdp = not needs.why_no_xdp()
    for run in (on, off):
        assert (run["port"], run["cut_through"]) == (("xdp", "on") if xdp else ("raw", "off"))
        if xdp:
            assert run["bounced"] > BOUNCED_SHARE_MIN * run["forwarded"] > 1000
    assert on["store"]["tls"]
    assert on["store"]["auth"]
    assert on["icmp"]["recovered"] == on["icmp"]["flows"] > 0
    says_what_it_must(on, off)
    for run in (on, off):
        assert (run["returned_ms"] is not None) == (how in COMES_BACK)
    rows = (tmp_path / "connections-on.csv").read_text().splitlines()
    assert len(rows) == 1 + on["connections"]


@pytest.mark.parametrize("how", ["isolate", "store"])
def test_connections_live_through_what_befalls_the_store_too(how: str, tmp_path: Path) -> None:
    """Cut off from one firewall; or lost, and what the firewalls wrote again is what a death is survived by.

    Without resiliency these are the partition and the kill of above.
    """
    needs.namespaces()
    options = ["--fail", how, "--resiliency", "on", "--seconds", "9", "--connections", "66"]
    (run,) = run_lab(tmp_path, *options)
    assert run["on_victim"] >= 15
    assert run["lost"] == run["corrupt"] == run["refused_after"] == 0
    assert run["restored"] >= run["on_victim"]
    assert (run["returned_ms"] is not None) == (how in COMES_BACK)
    if how == "store":
        assert run["resync"]["percent"] == 100
        assert set(run["resync"]["nodes_ms"]) == {"fw1", "fw2", "fw3"}


def test_connections_live_through_with_raw_sockets(tmp_path: Path) -> None:
    """And with two workers in each firewall, so that half of all packets come to the wrong one."""
    needs.namespaces()
    options = [
        "--port",
        "raw",
        "--resiliency",
        "on",
        "--seconds",
        "9",
        "--connections",
        "66",
        "--workers",
        "2",
    ]
    (run,) = run_lab(tmp_path, *options)
    assert (run["port"], run["cut_through"], run["bounced"]) == ("raw", "off", 0)
    assert run["workers"] == 2
    assert run["on_victim"] >= 15
    assert run["lost"] == run["corrupt"] == 0
    assert run["restored"] >= run["on_victim"]


def test_the_user_namespace_rung_tells_the_same_story(tmp_path: Path) -> None:
    """What root sees, seen by somebody who is nobody: real TCP, TLS to the store, and no /dev/net/tun."""
    needs.user_namespaces()
    needs.binary("redis-server")
    on, off = run_lab(tmp_path, "--rung", "user-namespace", "--seconds", "9", "--connections", "66")
    assert on["rung"] == off["rung"] == "user-namespace"
    assert on["traffic"] == off["traffic"] == "tcp"
    assert on["store"]["tls"]
    assert on["icmp"]["recovered"] == on["icmp"]["flows"] > 0
    says_what_it_must(on, off)


def test_the_loopback_rung_tells_the_same_story(tmp_path: Path) -> None:
    on, off = run_lab(tmp_path, "--rung", "loopback", "--seconds", "9", "--connections", "66")
    assert on["traffic"] == off["traffic"] == "packets"
    says_what_it_must(on, off)


@pytest.mark.parametrize("how", ["partition", "isolate"])
def test_on_loopback_nothing_can_be_cut(how: str, tmp_path: Path) -> None:
    figures = tmp_path / "lab.json"
    line = [
        sys.executable,
        "-m",
        "everwall",
        "lab",
        "--rung",
        "loopback",
        "--fail",
        how,
        "--json",
        str(figures),
    ]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60, env=environment())
    assert done.returncode == 1
    assert json.loads(figures.read_text()) == {
        "runs": [],
        "error": f"--fail {how} needs network namespaces: not on loopback",
    }


def belongings(lab: int) -> tuple[Path, dict[int, int]]:
    """The directory of the lab with this process id, and its programs with their start times.

    Others may be at work at the same time.
    """
    children = Path(f"/proc/{lab}/task/{lab}/children").read_text().split()
    for listing in rundir.base().glob("*/processes"):
        rows = [line.split() for line in listing.read_text().splitlines()]
        if any(row[0] in children for row in rows):
            return listing.parent, {int(row[0]): int(row[1]) for row in rows}
    raise AssertionError("the lab has written down its programs")


def test_an_interrupted_lab_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C in the middle; the JSON is written all the same and says so."""
    figures = tmp_path / "lab.json"
    line = [sys.executable, "-m", "everwall", "lab", "--json", str(figures), "--seconds", "30"]
    started = subprocess.Popen(
        [*line, "--connections", "20"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
        # Whoever runs the tests in the background may have had them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert started.stdout is not None
    seen = []
    with contextlib.closing(started.stdout):
        for words in started.stdout:
            seen.append(words)
            if "connections are established" in words:
                break
        assert started.poll() is None, "".join(seen)
        directory, programs = belongings(started.pid)
        started.send_signal(signal.SIGINT)
        started.stdout.read()
    assert started.wait(60) == 1
    assert json.loads(figures.read_text())["error"] == "interrupted"
    assert len(programs) >= 5, "store, load balancer, firewalls"
    assert not [pid for pid, began in programs.items() if rundir.start_time(pid) == began]
    assert not directory.exists()
    assert not [name for name in netns.listnetns() if directory.name in name]


def test_every_capability_says_what_was_tried() -> None:
    found = capabilities.check()
    rungs = {capabilities.ROOT, capabilities.USER_NAMESPACE, capabilities.LOOPBACK}
    assert rungs <= {each.needed_by for each in found} <= rungs | {capabilities.XDP}
    assert all(each.detail for each in found)
