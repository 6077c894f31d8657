"""Programs of the lab die with it, whatever it dies of."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from everwall.lab import launch, rundir
from everwall.lab.processes import LabError, Programs, environment, wait_until

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def programs() -> Iterator[Programs]:
    directory = rundir.create()
    started = Programs(directory)
    yield started
    started.stop()
    directory.close(remove=True)


def is_running(pid: int) -> bool:
    """Neither gone nor a zombie that nobody has asked for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_stop_ends_a_program_that_is_stopped(programs: Programs) -> None:
    program = programs.start("sleeper", SLEEP)
    program.signal(signal.SIGSTOP)
    assert program.wait_stopped(20)
    programs.stop()
    assert not program.running


def test_a_killed_lab_takes_its_programs_along() -> None:
    """The lab here is a child that is killed with SIGKILL, so nothing of it can clean up."""
    starts = "import subprocess, time; print(subprocess.Popen({}).pid, flush=True); time.sleep(60)"
    line = launch.command(["sleep", "60"], None, outlive=False)
    lab = subprocess.Popen(
        [sys.executable, "-c", starts.format(line)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert lab.stdout is not None
    program = int(lab.stdout.readline())
    deadline = time.monotonic() + 40
    while b"sleep" not in Path(f"/proc/{program}/cmdline").read_bytes().split(b"\0")[0]:
        assert time.monotonic() < deadline, "the launcher became the program"
        time.sleep(0.01)
    lab.kill()
    lab.wait()
    while is_running(program):
        assert time.monotonic() < deadline, "the program died with the lab"
        time.sleep(0.01)


def test_waiting_tells_which_program_ended_and_its_last_words(programs: Programs) -> None:
    line = [sys.executable, "-c", "import sys; sys.exit('no such interface: data0')"]
    program = programs.start("fw1", line)
    with pytest.raises(LabError, match=r"fw1 ended(?s:.*)no such interface: data0"):
        wait_until("firewall fw1", lambda: False, 20, [program])


def test_waiting_has_a_deadline(programs: Programs) -> None:
    with pytest.raises(LabError, match="healthy targets: not within 0 s"):
        wait_until("healthy targets", lambda: False, 0.05, [])
