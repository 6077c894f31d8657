"""From ``bpf/*.bpf.c`` to an object in this package, by clang.

The numbers that the programs share with Python are read from the Python sources and reach C as a header that is
written for the compilation, so each stands in one place. The modules are read, not imported: a wheel is built
where neither NumPy nor Numba is installed.

The object carries two hashes, of that header and of its C sources. An installed package can check the first,
a checkout both; an object that does not fit is refused, or built anew where that is possible. The header also says
whether this processor lets loads overtake each other, so an object belongs to one kind of processor.

    python -m everwall.ports.bpf_build         builds what is missing or stale; says what it lacks
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
OBJECTS = PACKAGE / "ports" / "objects"
CUT_THROUGH = "cutthrough"

_SOURCES = PACKAGE.parent.parent / "bpf"
_MARK = b"everwall-bpf "
_HASH_BYTES = 16
_OPTIONS = ["-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Wextra", "-Wno-unused-parameter"]

# Module of this package -> (prefix in C, the names; none: all of them).
_CONSTANTS: dict[str, list[tuple[str, tuple[str, ...]]]] = {
    "limits.py": [
        (
            "",
            ("GENEVE_PORT", "BUCKET_SLOTS", "SET_CHOICES", "BEAT_STALE_NS", "SEQUENCE_JUMP_MAX", "OUTER_TTL"),
        )
    ],
    "wire/geneve.py": [("GENEVE_", ())],
    "wire/meta.py": [
        ("META_", ("TCP_FIN", "TCP_SYN", "TCP_RST", "TCP_ACK", "PROTOCOL_TCP", "PROTOCOL_UDP")),
    ],
    "session/control.py": [("CONTROL_", ())],
    "session/table.py": [
        (
            "HOT_",
            (
                "KEY0",
                "KEY1",
                "KEY2",
                "BYTES_LOWER",
                "CONTROL",
                "SEEN",
                "END_LOWER",
                "PACKETS_LOWER",
                "SEEN_SHIFT",
            ),
        ),
        ("ADDRESS_", ("LOWER_HIGH", "LOWER_LOW", "UPPER_HIGH", "UPPER_LOW")),
    ],
    "ports/outcome.py": [("OUTCOME_", ())],
}


class BuildError(RuntimeError):
    """Why there is no object, and what would make one."""


# Constants --------------------------------------------------------------------------------------------


def constants() -> dict[str, int]:
    """Every number that the programs share with Python, by its name in C."""
    found: dict[str, int] = {}
    for module, parts in _CONSTANTS.items():
        values = _integers(PACKAGE / module)
        for prefix, names in parts:
            missing = set(names) - values.keys()
            if missing:
                raise BuildError(f"{module} has no integer {', '.join(sorted(missing))}")
            found.update({prefix + name: values[name] for name in (names or values)})
    found["OUTCOMES"] = 1 + max(value for name, value in found.items() if name.startswith("OUTCOME_"))
    return found


def _integers(path: Path) -> dict[str, int]:
    """The integer constants that a module assigns, also within its enumerations."""
    values: dict[str, int] = {}

    def take(body: list[ast.stmt]) -> None:
        for statement in body:
            if isinstance(statement, ast.ClassDef):
                take(statement.body)
            if not isinstance(statement, ast.Assign) or not isinstance(statement.targets[0], ast.Name):
                continue
            try:
                code = compile(ast.Expression(statement.value), str(path), "eval")
                value = eval(code, {"__builtins__": {}}, values)
            except (NameError, TypeError, AttributeError):
                continue  # made of more than numbers
            if isinstance(value, int):
                values[statement.targets[0].id] = value

    take(ast.parse(path.read_text()).body)
    return {name: value for name, value in values.items() if not name.startswith("_")}


def _header() -> str:
    lines = ["/* Written by the build from the Python sources. */"]
    if platform.machine() not in ("x86_64", "AMD64"):
        lines.append("#define LOADS_ARE_UNORDERED")
    for name, value in constants().items():
        lines.append(f"#define {name} {value if value < 1 << 31 else f'{value:#x}ULL'}")
    return "\n".join(lines) + "\n"


# Fingerprint ------------------------------------------------------------------------------------------


def _hash(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _hashes(sources: Path) -> tuple[str, str]:
    """Of the constants, and of the C sources; the second is empty where there are none."""
    files = sorted(sources.glob("*.[ch]")) if sources.is_dir() else []
    text = [part for path in files for part in (path.name.encode(), path.read_bytes())]
    return _hash(_header().encode()), _hash(*text, " ".join(_OPTIONS).encode()) if files else ""


def _hashes_of(path: Path) -> tuple[str, str]:
    """Those that an object carries."""
    content = path.read_bytes()
    at = content.find(_MARK)
    if at < 0:
        return "", ""
    words = content[at + len(_MARK) :].split(b"\0", 1)[0].decode(errors="replace").split()
    return (words[0], words[1]) if len(words) == 2 else ("", "")


def why_stale(path: Path, sources: Path = _SOURCES) -> str:
    """Why the object at ``path`` does not fit this package, in words; empty when it does."""
    if not path.exists():
        return "it has not been built"
    wanted, have = _hashes(sources), _hashes_of(path)
    if wanted[0] != have[0]:
        return "it was built for another version of this package, or for another processor"
    if wanted[1] and wanted[1] != have[1]:
        return "its sources have changed since"
    return ""


# Building ---------------------------------------------------------------------------------------------


def place(name: str) -> Path:
    """Where the object of a program stands in this package."""
    return OBJECTS / f"{name}.bpf.o"


def object_path(name: str = CUT_THROUGH) -> Path:
    """The object of a program, fit to be loaded: built now where it is missing or stale and clang is there.

    Raises BuildError, which says what is lacking.
    """
    path = place(name)
    why = why_stale(path)
    if not why:
        return path
    try:
        return build(name)
    except BuildError as error:
        raise BuildError(f"the BPF object {path} cannot be used: {why}. {error}") from None


def build(name: str = CUT_THROUGH, output: Path | None = None, sources: Path = _SOURCES) -> Path:
    """Compile ``bpf/<name>.bpf.c`` to ``output``, by default the object in this package; returns its path.

    Raises BuildError where the sources, clang or libbpf's headers are missing, or clang refuses.
    """
    output = output or place(name)
    source = sources / f"{name}.bpf.c"
    if not source.exists():
        raise BuildError(f"{source} is not there: it is part of a checkout, not of an installed package")
    clang = shutil.which("clang")
    if clang is None:
        raise BuildError("clang is not installed (Debian and Ubuntu: the packages clang and libbpf-dev)")
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "everwall.h").write_text(_header())
        compiled = Path(scratch) / output.name
        mark = (_MARK + " ".join(_hashes(sources)).encode()).decode()
        command = [clang, *_OPTIONS, *_includes(), f"-I{scratch}", f'-DFINGERPRINT="{mark}"']
        done = subprocess.run(
            [*command, "-c", str(source), "-o", str(compiled)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise BuildError(_explained(done.stderr))
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            # Beside its place first: whoever loads it meanwhile finds the old one or the new one.
            beside = output.with_name(f"{output.name}.{os.getpid()}")
            shutil.copyfile(compiled, beside)
            os.replace(beside, output)
        except OSError as error:
            raise BuildError(f"{output} cannot be written: {error.strerror}") from None
    return output


def _includes() -> list[str]:
    """Where ``asm/types.h`` is: clang for another target does not look into the host's own directory."""
    triplet = getattr(sys.implementation, "_multiarch", "")
    names = [triplet, f"{platform.machine()}-linux-gnu"]
    return [f"-I/usr/include/{name}" for name in names if name and Path("/usr/include", name).is_dir()][:1]


def _explained(text: str) -> str:
    for header, package in (("bpf/", "libbpf-dev"), ("asm/types.h", "linux-libc-dev")):
        if f"'{header}" in text and "file not found" in text:
            return f"the headers of {package} are not installed (Debian and Ubuntu: the package {package})"
    return "clang refuses the program:\n" + text.strip()


def main() -> int:
    """Build what is missing or stale; 1 and what is lacking where that is not possible."""
    try:
        path = object_path()
    except BuildError as error:
        print(f"no cut-through: {error}", file=sys.stderr)
        return 1
    print(f"cut-through: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
