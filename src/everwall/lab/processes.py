"""The programs of a lab: started through the launcher, logged to files, ended by process id."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import everwall
from everwall.lab import launch
from everwall.lab.rundir import RunDirectory

ANSWER_DEADLINE_S = 30.0
"""Who is gone refuses at once; who is there may have a busy machine."""


class LabError(Exception):
    """The lab cannot go on; the message says what to look at."""


class Program:
    """One running program of the lab."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log
        self._received = b""

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def tail(self, lines: int = 12) -> str:
        """The last lines of its log."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""

    def signal(self, number: int) -> None:
        """Send a signal; a program that has ended already is no error."""
        if self.running:
            self.process.send_signal(number)

    def wait_stopped(self, timeout_s: float) -> bool:
        """As the function of that name."""
        return wait_stopped(self.pid, timeout_s)

    def ask(self, command: str, timeout_s: float = ANSWER_DEADLINE_S, **arguments: Any) -> dict[str, Any]:
        """Send one JSON line to a traffic program and wait for the line that answers it."""
        self.tell(command, **arguments)
        assert self.process.stdout is not None
        descriptor = self.process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._received:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise LabError(f"{self.name} did not answer '{command}' in {timeout_s:.0f} s; see {self.log}")
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                raise LabError(f"{self.name} has ended:\n{self.tail()}")
            self._received += chunk
        line, self._received = self._received.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise LabError(f"{self.name} refused '{command}': {answer['error']}")
        return answer

    def tell(self, command: str, **arguments: Any) -> None:
        """Send one JSON line."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"command": command, **arguments}).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise LabError(f"{self.name} has ended:\n{self.tail()}") from None


def environment() -> dict[str, str]:
    """Ours, with a module path that holds in another directory too."""
    here = str(Path(everwall.__file__).resolve().parent.parent)
    paths = [
        here,
        *(os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(":") if path),
    ]
    return os.environ | {"PYTHONPATH": ":".join(dict.fromkeys(paths))}


class Programs:
    """All programs of one lab."""

    def __init__(self, directory: RunDirectory, outlive: bool = False) -> None:
        self.directory = directory
        self.outlive = outlive
        self.all: list[Program] = []

    def start(
        self,
        name: str,
        line: list[str],
        netns: str | None = None,
        pipes: bool = False,
        xdp_pass: Sequence[str] = (),
    ) -> Program:
        """Start ``line`` in the namespace at path ``netns``; ``pipes`` keeps stdin and stdout for us.

        ``xdp_pass``: devices that have an XDP program as long as this one runs, see ``launch``.
        """
        log = self.directory.path / f"{name}.log"
        with open(log, "ab") as out:
            process = subprocess.Popen(
                launch.command(line, netns, self.outlive, xdp_pass),
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else out,
                stderr=out,
                cwd=self.directory.path,
                env=environment(),
                # Ctrl-C is for the lab, which then ends its programs in its own order.
                start_new_session=True,
            )
        self.directory.remember(process.pid, name)
        program = Program(name, process, log)
        self.all.append(program)
        return program

    def stop(self) -> None:
        """End everything at once. A drain or a clean close would only take time; all state is ours."""
        for program in reversed(self.all):
            program.signal(signal.SIGKILL)
        for program in self.all:
            for pipe in (program.process.stdin, program.process.stdout):
                if pipe:
                    with contextlib.suppress(OSError):
                        pipe.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.process.wait(ANSWER_DEADLINE_S)
        self.all.clear()


def wait_stopped(pid: int, timeout_s: float) -> bool:
    """Wait until SIGSTOP has taken hold of every thread of a process; False after the time-out."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        states = []
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                states.append((task / "stat").read_text().rpartition(")")[2].split()[0])
        if all(state in "Tt" for state in states):
            return True
        time.sleep(0.001)
    return False


def wait_until(
    what: str,
    check: Callable[[], bool],
    timeout_s: float,
    watched: list[Program],
    step_s: float = 0.05,
) -> None:
    """Poll ``check`` until it holds; raises LabError when a watched program ends or time runs out."""
    deadline = time.monotonic() + timeout_s
    while not check():
        for program in watched:
            if not program.running:
                raise LabError(f"{program.name} ended while the lab waited for {what}:\n{program.tail()}")
        if time.monotonic() > deadline:
            logs = "\n".join(f"--- {program.log}\n{program.tail(6)}" for program in watched)
            raise LabError(f"{what}: not within {timeout_s:.0f} s\n{logs}")
        time.sleep(step_s)
