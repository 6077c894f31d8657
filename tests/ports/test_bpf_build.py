"""From C and the numbers of Python to an object that says what it was made of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from everwall import limits
from everwall.ports import bpf_build
from everwall.ports.bpf_build import BuildError, build, constants, object_path, why_stale
from everwall.ports.outcome import Outcome
from everwall.session import control, table
from everwall.wire import geneve, meta
from tests import needs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the C sources that a test may change."""
    needs.binary("clang")
    return Path(shutil.copytree(ROOT / "bpf", tmp_path / "bpf"))


# Constants ------------------------------------------------------------------------------------------------


def test_every_constant_is_that_of_its_module() -> None:
    modules = {"META_": meta, "GENEVE_": geneve, "CONTROL_": control, "HOT_": table, "ADDRESS_": table}
    for name, value in constants().items():
        prefix = next((prefix for prefix in modules if name.startswith(prefix)), "")
        if name == "GENEVE_PORT" or not prefix:
            prefix = ""
        if name.startswith("OUTCOME"):
            assert value == (len(Outcome) if name == "OUTCOMES" else Outcome[name.removeprefix("OUTCOME_")])
        else:
            assert value == getattr(modules.get(prefix, limits), name.removeprefix(prefix)), name


def test_a_constant_that_was_renamed_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bpf_build._CONSTANTS, "limits.py", [("", ("NO_SUCH_BOUND",))])
    with pytest.raises(BuildError, match=r"limits.py has no integer NO_SUCH_BOUND"):
        constants()


# Objects --------------------------------------------------------------------------------------------------


def test_the_program_compiles_without_a_warning(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf_build, "_OPTIONS", [*bpf_build._OPTIONS, "-Werror"])
    build(output=tmp_path / "cutthrough.bpf.o", sources=sources)


def test_it_compiles_where_loads_may_overtake_each_other(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = build(output=tmp_path / "here.bpf.o", sources=sources)
    monkeypatch.setattr(bpf_build.platform, "machine", lambda: "aarch64")
    assert "another processor" in why_stale(here, sources)
    there = build(output=tmp_path / "there.bpf.o", sources=sources)
    assert why_stale(there, sources) == ""


def test_an_object_is_stale_when_a_source_or_a_constant_has_changed(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(output=tmp_path / "cutthrough.bpf.o", sources=sources)
    assert why_stale(made, sources) == ""
    assert why_stale(made, tmp_path / "installed") == "", (
        "without sources the constants are what can be checked"
    )
    with (sources / "cutthrough.h").open("a") as header:
        header.write("/* one more word */\n")
    assert "sources have changed" in why_stale(made, sources)
    monkeypatch.setitem(bpf_build._CONSTANTS, "limits.py", [("", ("GENEVE_PORT",))])
    assert "another version" in why_stale(made, tmp_path / "installed")


def test_what_is_no_object_of_ours_is_stale(tmp_path: Path) -> None:
    other = tmp_path / "other.o"
    assert "not been built" in why_stale(other)
    other.write_bytes(b"\x7fELF" + bytes(100))
    assert "another version" in why_stale(other)


def test_a_stale_object_is_built_anew_where_clang_is_and_refused_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs.binary("clang")
    monkeypatch.setattr(bpf_build, "OBJECTS", tmp_path / "objects")
    clang = shutil.which("clang")
    monkeypatch.setattr(bpf_build.shutil, "which", lambda name: None)
    with pytest.raises(BuildError, match=r"has not been built.* clang is not installed .*packages clang"):
        object_path()
    monkeypatch.setattr(bpf_build.shutil, "which", lambda name: clang)
    made = object_path()
    before = made.stat().st_mtime_ns
    assert object_path() == made
    assert made.stat().st_mtime_ns == before, "fit, so left alone"
    made.write_bytes(b"old")
    assert why_stale(object_path()) == ""


def test_a_missing_source_and_a_refusal_of_clang_are_said(sources: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="part of a checkout"):
        build(output=tmp_path / "x.o", sources=tmp_path / "nowhere")
    (sources / "cutthrough.bpf.c").write_text("no C at all\n")
    with pytest.raises(BuildError, match=r"clang refuses the program:\n.*cutthrough.bpf.c:1"):
        build(output=tmp_path / "x.o", sources=sources)
    (sources / "cutthrough.bpf.c").write_text("#include <bpf/not_there.h>\n")
    with pytest.raises(BuildError, match="package libbpf-dev"):
        build(output=tmp_path / "x.o", sources=sources)
    assert not (tmp_path / "x.o").exists()


# Packages -------------------------------------------------------------------------------------------------


def checkout(to: Path) -> Path:
    """What a package is made of."""
    for name in ("setup.py", "pyproject.toml", "README.md", "MANIFEST.in"):
        shutil.copy(ROOT / name, to)
    shutil.copytree(ROOT / "bpf", to / "bpf")
    shutil.copytree(
        ROOT / "src", to / "src", ignore=shutil.ignore_patterns("objects", "__pycache__", "*.egg-info")
    )
    return to


def packed(where: Path, path: str) -> tuple[Path, str]:
    """The tree that a wheel would hold, made with ``path`` as PATH; and what the build said."""
    done = subprocess.run(
        [sys.executable, "setup.py", "build_py", "--build-lib", "wheel"],
        cwd=where,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return where / "wheel" / "everwall" / "ports" / "objects" / "cutthrough.bpf.o", done.stdout + done.stderr


def test_a_wheel_brings_the_program_where_clang_is(tmp_path: Path) -> None:
    needs.module("setuptools")
    needs.binary("clang")
    made, said = packed(checkout(tmp_path), os.environ["PATH"])
    assert "no cut-through" not in said
    assert why_stale(made) == "", "the same sources and constants as here"


def test_a_wheel_is_built_without_clang_too_and_says_what_it_lacks(tmp_path: Path) -> None:
    needs.module("setuptools")
    (tmp_path / "bin").mkdir()
    stale = checkout(tmp_path) / "src" / "everwall" / "ports" / "objects"
    stale.mkdir()
    (stale / "cutthrough.bpf.o").write_bytes(b"of yesterday")
    made, said = packed(tmp_path, str(tmp_path / "bin"))
    assert "no cut-through in this build: clang is not installed" in said
    assert (made.parent.parent / "bpf.py").exists(), "the rest is there"
    assert not made.exists(), "and no stale program"
