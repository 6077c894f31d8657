"""The cache rule of kernels.py: no compiled function is ever served from sources that have changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import everwall.kernels
from everwall import kernels

pytestmark = [pytest.mark.kernel, pytest.mark.slow_compile]

LIMITS = "STEP = 1\n"
LEAF = """
from everwall.kernels import kernel
from everwall.limits import STEP

@kernel
def leaf(x):
    return x * 10 + STEP
"""
CALLER = """
from everwall.kernels import CACHE_DIRECTORY, kernel
from everwall.leaf import leaf

@kernel
def caller(values):
    return leaf(values[0])

if __name__ == "__main__":
    import numpy
    result = caller(numpy.array([4]))
    hits = sum(caller.stats.cache_hits.values()) if hasattr(caller, "stats") else 0
    print(result, hits, CACHE_DIRECTORY)
"""


class Package:
    """A small package of our name around the real ``kernels.py``: a constant, a leaf and its caller."""

    def __init__(self, directory: Path) -> None:
        self.sources = directory / "everwall"
        self.cache = directory / "cache"
        self.home = directory / "home"
        self.sources.mkdir()
        shutil.copy(everwall.kernels.__file__, self.sources / "kernels.py")
        self.write("__init__.py", "")
        self.write("limits.py", LIMITS)
        self.write("leaf.py", LEAF)
        self.write("caller.py", CALLER)

    def write(self, name: str, text: str) -> None:
        (self.sources / name).write_text(text)

    def run(self, **environment: str) -> tuple[int, int, Path]:
        """Result, cache hits and cache directory of a new process that calls ``caller``."""
        surroundings = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "TMPDIR": str(self.home.parent),
            "PYTHONPATH": str(self.sources.parent),
            "EVERWALL_CACHE_DIR": str(self.cache),
            # Python's own cache takes a file of the same size in the same second for unchanged.
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        done = subprocess.run(
            [sys.executable, "-m", "everwall.caller"],
            env=surroundings | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        result, hits, directory = done.stdout.split()
        return int(result), int(hits), Path(directory)


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return Package(tmp_path)


def test_a_second_process_compiles_nothing(package: Package) -> None:
    assert package.run()[:2] == (41, 0)
    assert package.run()[:2] == (41, 1)


def test_a_changed_leaf_changes_its_caller(package: Package) -> None:
    result, _, before = package.run()
    package.write("leaf.py", LEAF.replace("x * 10", "x * 100"))
    changed, hits, after = package.run()
    assert (result, changed, hits) == (41, 401, 0)
    assert before != after


def test_a_changed_constant_changes_what_was_compiled_with_it(package: Package) -> None:
    package.run()
    package.write("limits.py", "STEP = 7\n")
    assert package.run()[:2] == (47, 0)


def test_a_file_that_kernels_cannot_depend_on_changes_nothing(package: Package) -> None:
    package.run()
    (package.sources / "cli").mkdir()
    package.write("cli/main.py", "STEP = 9\n")
    assert package.run()[:2] == (41, 1)


def test_bounds_checks_have_a_cache_of_their_own(package: Package) -> None:
    plain = package.run()[2]
    _, hits, checked = package.run(NUMBA_BOUNDSCHECK="1")
    assert checked != plain
    assert hits == 0


@pytest.mark.parametrize("place", ["/proc/none", "{tmp}/file/below"])
def test_an_unwritable_place_falls_back_to_the_next(package: Package, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    result, _, directory = package.run(EVERWALL_CACHE_DIR=place.format(tmp=tmp_path))
    assert result == 41
    assert directory.parent == package.home / ".cache" / "everwall"


def test_a_place_that_others_can_write_to_is_not_trusted(package: Package) -> None:
    package.cache.mkdir()
    package.cache.chmod(0o777)
    assert package.run()[2].parent == package.home / ".cache" / "everwall"


def test_a_numba_that_was_imported_before_uses_our_cache_all_the_same(package: Package) -> None:
    package.write("caller.py", "import numba\nassert numba.config.CACHE_DIR == ''\n" + CALLER)
    assert package.run()[:2] == (41, 0)
    assert package.run()[:2] == (41, 1)
    assert list(package.cache.rglob("*.nbc"))
    assert not list(package.sources.rglob("*.nbc"))


def test_constants_in_calls_do_not_multiply_the_compiled_code(package: Package) -> None:
    body = "    return leaf(values[0]) + leaf(1) + leaf(2) + leaf(x=3)"
    package.write("caller.py", CALLER.replace("    return leaf(values[0])", body))
    assert package.run()[0] == 41 + 11 + 21 + 31
    assert len(list(package.cache.rglob("leaf.leaf*.nbc"))) == 1


# Intrinsics ------------------------------------------------------------------------------------------


@kernels.kernel
def search(array, start, byte, out):
    out[0] = kernels.equal_bytes(array, start, byte)
    out[1] = kernels.lowest_bit(out[0]) if out[0] != 0 else -1


@pytest.mark.parametrize("byte", [0, 1, 127, 128, 255])
def test_eight_bytes_are_compared_at_once(byte: int) -> None:
    dice = np.random.default_rng(byte)
    out = np.zeros(2, np.int64)
    for _ in range(50):
        array = dice.choice(np.array([byte, byte ^ 1, byte ^ 128, 255 - byte], np.uint8), 64)
        start = int(dice.integers(0, 57))
        search(array, start, byte, out)
        equal = [k for k in range(8) if array[start + k] == byte]
        assert out[0] == sum(1 << k for k in equal)
        assert out[1] == (equal[0] if equal else -1)


def test_no_file_that_is_left_out_of_the_hash_has_a_kernel() -> None:
    left_out = set(kernels._PACKAGE.rglob("*.py")) - set(kernels.source_files())
    assert left_out
    assert not [
        path for path in left_out if "\n@kernel" in path.read_text() or "\n@inlined" in path.read_text()
    ]
