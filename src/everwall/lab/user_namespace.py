"""The rung between root and loopback: a user namespace, in which an unprivileged user is root over what is theirs.

``python -m everwall.lab.user_namespace PROGRAM ARGUMENT...``

The program sees itself as root: it may make network namespaces, links between them, raw and packet sockets, and
listen on any port. It has no power over anything that was there before. /run/netns, where namespaces have their
names, is a directory of its own; it is gone with its last program.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from everwall.kernels import CACHE_DIRECTORY
from everwall.lab import rundir
from everwall.lab.processes import LabError, environment

_NAMES = Path("/run/netns")
_INSIDE = "EVERWALL_LAB_USER_NAMESPACE"


def is_inside() -> bool:
    """Whether this process was started by ``enter`` or ``run``."""
    return _INSIDE in os.environ


def enter(program: list[str]) -> None:
    """Become ``program`` in a new user namespace, with the same process id; raises LabError."""
    line = _command(program)
    os.execvpe(line[0], line, _environment())


def run(program: list[str]) -> None:
    """Run ``program`` to its end in a user namespace of its own; raises LabError with what it said last."""
    done = subprocess.run(_command(program), capture_output=True, text=True, check=False, env=_environment())
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise LabError(said[-1] if said else f"{program[0]} ended with {done.returncode}")


def _command(program: list[str]) -> list[str]:
    unshare = shutil.which("unshare")
    if unshare is None:
        raise LabError("there is no program unshare (util-linux)")
    # The network namespace we stand in has to be ours as well: we come back to it from the others.
    line = [unshare, "--user", "--map-root-user", "--mount", "--net"]
    return [*line, sys.executable, "-m", "everwall.lab.user_namespace", *program]


def _environment() -> dict[str, str]:
    """Where this user's labs and compiled code are: inside, the user's own name for themselves is another."""
    return environment() | {
        _INSIDE: "1",
        rundir.BASE_VARIABLE: str(rundir.base()),
        "EVERWALL_CACHE_DIR": str(CACHE_DIRECTORY.parent),
    }


def _own_names() -> None:
    """An own, empty /run/netns over the one that is root's, or that is not there at all."""
    if not _NAMES.is_dir():
        _own_run(_NAMES.parent)
        _NAMES.mkdir()
    _mount("-t", "tmpfs", "everwall-lab", str(_NAMES))


def _own_run(place: Path) -> None:
    """A directory of our own over ``place`` with the same directories in it."""
    kept = Path(tempfile.mkdtemp())
    _mount("--rbind", str(place), str(kept))
    _mount("-t", "tmpfs", "everwall-lab", str(place))
    for each in kept.iterdir():
        here = place / each.name
        if each.is_symlink():
            here.symlink_to(each.readlink())
        elif each.is_dir():
            here.mkdir()
            _mount("--rbind", str(each), str(here))
    subprocess.run(["umount", "--lazy", str(kept)], check=False)
    kept.rmdir()


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"mount {' '.join(arguments)}: {done.stderr.strip()}")


def main(program: list[str]) -> None:
    try:
        _own_names()
    except (LabError, OSError) as error:
        sys.exit(str(error))
    os.execvp(program[0], program)


if __name__ == "__main__":
    main(sys.argv[1:])
