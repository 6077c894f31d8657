"""What pyproject.toml cannot say: a wheel brings the cut-through program, where clang is there to compile it.

Without clang the wheel is built all the same, and what it lacks is said; such an installation has no cut-through.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    try:
        from wheel.bdist_wheel import bdist_wheel
    except ImportError:
        bdist_wheel = None

SOURCE = Path(__file__).resolve().parent / "src"
sys.path.insert(0, str(SOURCE))
from everwall.ports import bpf_build  # noqa: E402

OBJECT = bpf_build.place(bpf_build.CUT_THROUGH).relative_to(SOURCE)


class BuildWithProgram(build_py):
    """The Python files, and the program compiled beside them."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):
            return  # scripts/setup.sh builds it in the checkout
        output = Path(self.build_lib) / OBJECT
        try:
            print(f"cut-through: {bpf_build.build(output=output)}")
        except bpf_build.BuildError as error:
            output.unlink(missing_ok=True)  # a stale one from the checkout is worth nothing
            print(f"no cut-through in this build: {error}", file=sys.stderr)


COMMANDS: dict[str, type] = {"build_py": BuildWithProgram}

if bdist_wheel is not None:

    class WheelWithProgram(bdist_wheel):
        """For any Python; with the program in it, for this kind of processor alone."""

        def get_tag(self) -> tuple[str, str, str]:
            python, abi, system = super().get_tag()
            if (Path(self.get_finalized_command("build").build_lib) / OBJECT).exists():
                system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            return python, abi, system

    COMMANDS["bdist_wheel"] = WheelWithProgram

setup(cmdclass=COMMANDS)
