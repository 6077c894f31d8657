"""Leftovers of a killed lab are recognised by its lock and ended by process id and start time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from everwall.lab import rundir


@pytest.fixture(autouse=True)
def _labs_of_this_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another lab that starts on this machine would sweep what is left behind here."""
    monkeypatch.setenv(rundir.BASE_VARIABLE, str(tmp_path))


def test_a_lab_is_alive_exactly_as_long_as_its_lock_is_held() -> None:
    directory = rundir.create()
    assert rundir.is_alive(directory.name)
    assert directory.name not in rundir.sweep()
    directory.close(remove=False)
    assert not rundir.is_alive(directory.name)
    assert directory.name in rundir.sweep()
    assert not directory.path.exists()


def test_a_lab_that_is_just_being_made_is_not_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    made, lock = [], rundir.fcntl.flock
    sweeper = threading.Thread(target=lambda: made.append(rundir.sweep()))

    def flock(file, operation: int) -> None:
        if operation == rundir.fcntl.LOCK_EX | rundir.fcntl.LOCK_NB:
            sweeper.start()  # its directory is there, and not locked yet
        lock(file, operation)

    monkeypatch.setattr(rundir.fcntl, "flock", flock)
    directory = rundir.create()
    sweeper.join()
    assert made == [[]]
    assert rundir.is_alive(directory.name)
    directory.close(remove=True)


def test_sweeping_ends_what_a_gone_lab_left_running() -> None:
    directory = rundir.create()
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    directory.remember(left.pid, "left behind")
    directory.close(remove=False)
    rundir.sweep()
    assert left.wait(30) == -signal.SIGKILL


def test_sweeping_leaves_a_process_alone_that_only_has_the_same_id() -> None:
    directory = rundir.create()
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    began = rundir.start_time(other.pid)
    assert began is not None
    (directory.path / "processes").write_text(f"{other.pid} {began - 1} somebody else\n")
    directory.close(remove=False)
    rundir.sweep()
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_lab_does_not_inherit_its_lock_to_its_programs() -> None:
    directory = rundir.create()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        directory.close(remove=False)
        assert not rundir.is_alive(directory.name)
    finally:
        child.kill()
        child.wait()
        rundir.sweep()


def test_the_files_are_for_their_owner_alone() -> None:
    directory = rundir.create()
    try:
        assert directory.path.stat().st_mode & 0o077 == 0
        assert rundir.base().stat().st_uid == os.geteuid()
    finally:
        directory.close(remove=True)
