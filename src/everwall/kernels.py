"""How hot functions are compiled, and where the compiled code is kept: the one rule, in one place.

Numba caches compiled functions on disk, but it notices neither an edited callee nor an edited
constant of another file, and a warm cache ignores ``NUMBA_BOUNDSCHECK``. So the cache directory is
named by a hash of everything the machine code depends on: all sources that kernels are made of,
the versions of Numba and NumPy, the processor and the compiler flags. A changed leaf is a new
directory, and no kernel can be served from an old one.

Functions marked ``@kernel`` are plain Python over arrays. They run compiled, and interpreted when
``NUMBA_DISABLE_JIT=1`` is set; both must give the same results, so a kernel keeps to these habits:

* all integers are int64; masks and shifts are written so that no uint64 meets an int64;
* arrays in, arrays filled; nothing is allocated, nothing is raised;
* a system call is an ``external``, never a ctypes function (that would disable caching).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import stat
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

_PACKAGE = Path(__file__).resolve().parent
# Nothing in these is compiled or gives a constant to compiled code.
_NOT_COMPILED = {"bootstrap", "cli", "lab", "management", "sim", "store"}
_NOT_COMPILED |= {"__main__.py", "config.py", "gwlb.py", "node.py", "warm.py"}

Function = TypeVar("Function", bound=Callable[..., Any])


def source_files() -> list[Path]:
    """Every source file that compiled code may depend on, in a fixed order."""
    return sorted(
        path for path in _PACKAGE.rglob("*.py") if path.relative_to(_PACKAGE).parts[0] not in _NOT_COMPILED
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    seen = dict(line.split(":", 1) for line in lines if line.startswith(wanted) and ":" in line)
    return repr(sorted((key.strip(), value.strip()) for key, value in seen.items()))


def fingerprint() -> str:
    """A short hash of all that the compiled code depends on."""
    digest = hashlib.blake2b(digest_size=10)
    parts = [sys.version, version("numba"), version("numpy"), platform.machine(), _processor()]
    parts += [
        f"{name}={os.environ.get(name, '')}"
        for name in ("NUMBA_BOUNDSCHECK", "NUMBA_OPT", "NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES")
    ]
    for part in parts:
        digest.update(part.encode() + b"\0")
    for path in source_files():
        digest.update(str(path.relative_to(_PACKAGE)).encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def _cache_base() -> Path:
    """The first of the usual places that can be written to, and that nobody else can write to.

    A cache is machine code that will be run, so a directory that somebody else prepared is no place for it.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    private = Path(tempfile.gettempdir()) / f"everwall-cache-{os.getuid()}"
    named = os.environ.get("EVERWALL_CACHE_DIR")
    for base in (
        Path(named) if named else None,
        Path(home) / "everwall",
        Path("/var/cache/everwall"),
        private,
    ):
        if base is None:
            continue
        try:
            base.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = base.stat()
        except OSError:
            continue
        ours = status.st_uid == os.getuid() and not status.st_mode & stat.S_IWOTH
        if ours and os.access(base, os.W_OK | os.X_OK):
            return base
    return Path(tempfile.mkdtemp(prefix="everwall-cache-"))


CACHE_DIRECTORY = _cache_base() / fingerprint()
os.environ["NUMBA_CACHE_DIR"] = str(CACHE_DIRECTORY)

import numba  # noqa: E402  (the cache directory has to be named before)
from numba.extending import intrinsic  # noqa: E402

# Somebody may have imported Numba before us, and it reads its environment only once.
numba.config.CACHE_DIR = str(CACHE_DIRECTORY)

JIT = not numba.config.DISABLE_JIT
"""False where ``NUMBA_DISABLE_JIT=1`` makes every kernel plain Python."""


def kernel(function: Function) -> Function:
    """Compile ``function`` without the interpreter lock and keep the result in the cache.

    Kernels do not own arrays (``_nrt=False``): the caller keeps them alive. Counting references instead, with
    atomic operations for every array of every call, took four fifths of the compiling and more than half of
    the running time (measured with Numba 0.68). A kernel that allocates no longer compiles, which is the rule anyway.

    A constant in a call is an int64 like any other. Numba would compile its callee once more for
    each constant, and for each of those all that it calls.
    """
    compiled: Function = numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False)(function)
    if JIT:
        template = compiled.get_call_template
        compiled.get_call_template = lambda arguments, named: template(
            tuple(numba.types.unliteral(argument) for argument in arguments),
            {name: numba.types.unliteral(argument) for name, argument in named.items()},
        )
    return compiled


def external(name: str, result: str, *arguments: str) -> Callable[..., Any]:
    """The C library function ``name`` for use in kernels; types are ``i32``, ``i64`` or ``pointer``.

    Pointers are passed as addresses (``array.ctypes.data``).
    """
    if JIT:
        types = {"i32": numba.types.int32, "i64": numba.types.int64, "pointer": numba.types.uintp}
        signature = types[result](*(types[argument] for argument in arguments))
        found: Callable[..., Any] = numba.types.ExternalFunction(name, signature)
        return found
    plain = {"i32": ctypes.c_int, "i64": ctypes.c_longlong, "pointer": ctypes.c_void_p}
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.restype = plain[result]
    function.argtypes = [plain[argument] for argument in arguments]
    # NumPy integers are no ctypes arguments.
    return lambda *values: function(*(int(value) for value in values))


if JIT:

    @intrinsic  # type: ignore[untyped-decorator]
    def fence(typing_context: Any) -> Any:
        """A full memory barrier, for the compiler as for the processor."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            builder.fence("seq_cst")
            return context.get_dummy_value()

        return numba.types.void(), generate

else:

    def fence() -> None:
        """Interpreted kernels run under the interpreter lock, which is barrier enough."""
