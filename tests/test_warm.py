"""Warming up: each entry point once, errors told, and nothing left to compile afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from everwall import warm
from everwall.kernels import JIT
from everwall.warm import ENTRY_POINTS, EntryPoint, WarmError, is_warm

COUNT = """
import sys
from importlib import import_module
import everwall.kernels
from numba.core import event
with event.install_recorder("numba:compile") as recorder:
    import_module(sys.argv[1]).warm()
print(len(recorder.buffer))
"""

compiled_only = pytest.mark.skipif(not JIT, reason="interpreted kernels are never cold")


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules can be warmed, and a cache of its own."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.setattr(warm, "CACHE_DIRECTORY", tmp_path)
    monkeypatch.setattr(warm, "JIT", True)
    return tmp_path


def test_each_entry_point_is_warmed_once(room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first_room", "second_room"):
        body = f"def warm():\n    open({str(room / name)!r} + '.calls', 'a').write('x')\n"
        (room / f"{name}.py").write_text(body)
    entries = [EntryPoint("the first", "first_room"), EntryPoint("the second", "second_room")]
    monkeypatch.setattr(warm, "ENTRY_POINTS", entries)
    lines: list[str] = []
    warm.warm(lines.append, modules=("first_room",))
    assert (is_warm(("first_room",)), is_warm()) == (True, False)
    warm.warm(lines.append)
    warm.warm(lines.append)
    assert is_warm()
    assert [(room / f"{name}_room.calls").read_text() for name in ("first", "second")] == ["x", "x"]
    assert [line.split(" in ")[0] for line in lines] == [
        "compiling the first",
        "compiled the first",
        "compiling the second",
        "compiled the second",
    ]


def test_what_does_not_compile_is_told_and_not_taken_for_warm(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than a pipe holds, so that a compiler with much to say cannot get stuck.
    (room / "noisy_room.py").write_text(
        "def warm():\n    print('x' * 200_000)\n    raise TypeError('no such thing')\n"
    )
    monkeypatch.setattr(warm, "ENTRY_POINTS", [EntryPoint("the noisy one", "noisy_room")])
    with pytest.raises(WarmError, match="no such thing"):
        warm.warm(lambda line: None)
    assert not is_warm()


@compiled_only
@pytest.mark.kernel
@pytest.mark.slow_compile
@pytest.mark.parametrize("entry", ENTRY_POINTS, ids=lambda entry: entry.module)
def test_a_warm_entry_point_compiles_nothing(entry: EntryPoint) -> None:
    """The machine code was kept under the types that are asked for the next time."""
    line = [sys.executable, "-c", COUNT, entry.module]
    for _ in range(2):
        done = subprocess.run(line, check=True, timeout=500, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0"
