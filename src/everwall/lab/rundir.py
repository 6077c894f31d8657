"""Where a lab keeps its files, and how the leftovers of a killed lab are recognised.

Every lab has a short random name. Its directory holds a lock, which lives exactly as long as the
lab's process, and a list of the processes it started. A directory whose lock is free belongs to a
lab that is gone: what it left running is ended by process id and start time, never by name.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PREFIX = "everwall-lab-"
"""All namespaces of a lab begin with this and the lab's name."""
BASE_VARIABLE = "EVERWALL_LAB_DIRECTORY"
"""Names the directory of all labs of a user, for whom the user's own number does not tell it."""


def base() -> Path:
    """The directory of all labs of this user; made when missing, refused when it is somebody else's."""
    if BASE_VARIABLE in os.environ:
        path = Path(os.environ[BASE_VARIABLE])
    elif os.geteuid() == 0:
        path = Path("/run/everwall-lab")
    else:
        path = Path(tempfile.gettempdir()) / f"everwall-lab-{os.geteuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to somebody else")
    return path


def start_time(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold anything; the fields are counted after its end.
    return int(text.rpartition(")")[2].split()[19])


@dataclass
class RunDirectory:
    """The files of one lab."""

    name: str
    path: Path
    lock: IO[str]

    def namespace(self, role: str) -> str:
        """The name of this lab's namespace for ``role``."""
        return f"{PREFIX}{self.name}-{role}"

    def remember(self, pid: int, what: str) -> None:
        """Write down a process, so that a later lab can end it if this one cannot."""
        with open(self.path / "processes", "a") as listing:
            listing.write(f"{pid} {start_time(pid) or 0} {what}\n")

    def close(self, remove: bool) -> None:
        """Release the lock; with ``remove`` the files go too."""
        if remove:
            shutil.rmtree(self.path, ignore_errors=True)
        self.lock.close()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Meanwhile no other lab of this user is made or swept: one without its lock yet would be taken for gone."""
    directory = os.open(base(), os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def create() -> RunDirectory:
    """A new directory with its lock held."""
    name = secrets.token_hex(3)
    path = base() / name
    with _alone():
        path.mkdir(mode=0o700)
        lock = open(path / "lock", "w")  # noqa: SIM115  (open for the life of the lab)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return RunDirectory(name, path, lock)


def is_alive(name: str) -> bool:
    """Whether a lab process still holds the lock of that name."""
    try:
        with open(base() / name / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _end_processes(listing: Path) -> int:
    ended = 0
    for line in listing.read_text().splitlines():
        pid, began = (int(word) for word in line.split()[:2])
        if began and start_time(pid) == began:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                ended += 1
    return ended


def sweep() -> list[str]:
    """End the processes and remove the files of labs that are gone; returns their names."""
    swept = []
    with _alone():
        for path in sorted(base().iterdir()):
            if not path.is_dir() or is_alive(path.name):
                continue
            with contextlib.suppress(OSError, ValueError):
                _end_processes(path / "processes")
            shutil.rmtree(path, ignore_errors=True)
            swept.append(path.name)
    return swept
