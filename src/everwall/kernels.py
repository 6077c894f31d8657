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
from typing import Any, TypeVar, cast

_PACKAGE = Path(__file__).resolve().parent
# Nothing in these is compiled or gives a constant to compiled code.
_NOT_COMPILED = {"bootstrap", "cli", "lab", "management", "node", "sim"}
_NOT_COMPILED |= {"__main__.py", "config.py", "dataplane.py", "gwlb.py", "warm.py", "workers.py"}
_NOT_COMPILED |= {f"ports/{name}.py" for name in ("bpf", "bpf_build", "libbpf", "outcome")}
_NOT_COMPILED |= {f"policy/{path.name}" for path in (_PACKAGE / "policy").glob("*.py")} - {"policy/match.py"}
_NOT_COMPILED |= {f"store/{name}.py" for name in ("connection", "memory", "protocol", "redis")}
_NOT_COMPILED |= {
    f"store/{name}.py" for name in ("clients", "cluster", "conversation", "dialer", "housekeeper")
}
_NOT_COMPILED |= {
    f"store/{name}.py" for name in ("link", "members", "relayout", "router", "sentinels", "clock")
}

Function = TypeVar("Function", bound=Callable[..., Any])


def source_files() -> list[Path]:
    """Every source file that compiled code may depend on, in a fixed order."""
    return sorted(
        path
        for path in _PACKAGE.rglob("*.py")
        if path.relative_to(_PACKAGE).parts[0] not in _NOT_COMPILED
        and path.relative_to(_PACKAGE).as_posix() not in _NOT_COMPILED
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
from llvmlite import ir  # noqa: E402
from numba.extending import intrinsic  # noqa: E402

# Somebody may have imported Numba before us, and it reads its environment only once.
numba.config.CACHE_DIR = str(CACHE_DIRECTORY)

JIT = not numba.config.DISABLE_JIT
"""False where ``NUMBA_DISABLE_JIT=1`` makes every kernel plain Python."""


def inlined(function: Function) -> Function:
    """A kernel that becomes part of every function that calls it.

    For what every packet passes. A worker's state is more than three hundred words, and a call that takes it as
    an argument copies them all: about 50 ns each time (``docs/decisions/0004``).
    """
    return _compiled(function, forceinline=True)


def kernel(function: Function) -> Function:
    """Compile ``function`` without the interpreter lock and keep the result in the cache.

    Kernels do not own arrays (``_nrt=False``): the caller keeps them alive. Counting references instead, with
    atomic operations for every array of every call, took four fifths of the compiling and more than half of
    the running time (measured with Numba 0.68). A kernel that allocates no longer compiles, which is the rule anyway.

    A constant in a call is an int64 like any other. Numba would compile its callee once more for
    each constant, and for each of those all that it calls.
    """
    return _compiled(function)


def _compiled(function: Function, **options: bool) -> Function:
    compiled: Function = numba.njit(cache=True, nogil=True, error_model="numpy", _nrt=False, **options)(
        function
    )
    if JIT:
        template = compiled.get_call_template
        compiled.get_call_template = lambda arguments, named: template(
            tuple(numba.types.unliteral(argument) for argument in arguments),
            {name: numba.types.unliteral(argument) for name, argument in named.items()},
        )
    return compiled


def bound(function: Function, *arguments: Any) -> Function:
    """The compiled ``function`` for arguments of exactly these types, which nobody checks any more.

    For the few calls from Python that are made a thousand times a second: to look up the type of a NamedTuple of arrays
    takes five times as long as the call itself (0.93 us and 0.15 us, and more where caches are cold).
    """
    if not JIT:
        return function
    compiled: Function = function.compile(tuple(map(numba.typeof, arguments)))  # type: ignore[attr-defined]
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


# Memory by address --------------------------------------------------------------------------------
#
# For memory that is no array of ours: rings shared with the kernel, frames, lines to fetch ahead. Addresses
# are int64; whoever passes one answers for it, and for its being a multiple of 4 where an order is asked for. Values
# are int64; those of 32 bits come without sign.
#
# An acquiring load is seen before every access that follows it, a releasing store after every one that
# precedes it: what AF_XDP's rings ask for (the kernel uses the same pair). How it was checked:
# tests/test_memory.py reads the machine code. On x86-64, where the processor keeps this order by itself, plain
# moves that the compiler left in their places; on arm64 LDAR and STLR; the full fence is a locked instruction
# or MFENCE on the first, DMB ISH on the second. The one-sided fences are the same for indices in arrays: no instruction
# on the first, DMB ISHLD and DMB ISH on the second.

if JIT:
    from llvmlite import ir

    _WORD = ir.IntType(64)

    def _pointer(builder: Any, address: Any, bits: int) -> Any:
        return builder.inttoptr(address, ir.IntType(bits).as_pointer())

    def _loader(bits: int, ordering: str | None = None) -> Callable[[int], int]:
        def load(typing_context: Any, address: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                pointer = _pointer(builder, arguments[0], bits)
                if ordering is None:
                    value = builder.load(pointer, align=1)
                else:
                    value = builder.load_atomic(pointer, ordering, bits // 8)
                return value if bits == 64 else builder.zext(value, _WORD)

            return numba.types.int64(numba.types.int64), generate

        return cast(Callable[[int], int], intrinsic(load))

    def _storer(bits: int, ordering: str | None = None) -> Callable[[int, int], None]:
        def store(typing_context: Any, address: Any, value: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                pointer = _pointer(builder, arguments[0], bits)
                word = arguments[1] if bits == 64 else builder.trunc(arguments[1], ir.IntType(bits))
                if ordering is None:
                    builder.store(word, pointer, align=1)
                else:
                    builder.store_atomic(word, pointer, ordering, bits // 8)
                return context.get_dummy_value()

            return numba.types.void(numba.types.int64, numba.types.int64), generate

        return cast(Callable[[int, int], None], intrinsic(store))

    @intrinsic  # type: ignore[untyped-decorator]
    def equal_bytes(typing_context: Any, array: Any, start: Any, byte: Any) -> Any:
        """Which of the eight bytes of a uint8 array from ``start`` on are equal to ``byte``: bit k for the k-th."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            eight = ir.VectorType(ir.IntType(8), 8)
            base = context.make_array(array)(context, builder, arguments[0]).data
            pointer = builder.bitcast(builder.gep(base, [arguments[1]]), eight.as_pointer())
            found = builder.load(pointer, align=1)
            wanted = ir.Constant(eight, None)
            low = builder.trunc(arguments[2], ir.IntType(8))
            for k in range(8):
                wanted = builder.insert_element(wanted, low, ir.Constant(ir.IntType(32), k))
            equal = builder.bitcast(builder.icmp_unsigned("==", found, wanted), ir.IntType(8))
            return builder.zext(equal, ir.IntType(64))

        return numba.types.int64(array, numba.types.int64, numba.types.int64), generate

    @intrinsic  # type: ignore[untyped-decorator]
    def lowest_bit(typing_context: Any, mask: Any) -> Any:
        """The number of the lowest bit that is set in ``mask``, which is not 0."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

        return numba.types.int64(numba.types.int64), generate

    def _fence(ordering: str) -> Callable[[], None]:
        def fence(typing_context: Any) -> Any:
            def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                builder.fence(ordering)
                return context.get_dummy_value()

            return numba.types.void(), generate

        return cast(Callable[[], None], intrinsic(fence))

    @intrinsic  # type: ignore[untyped-decorator]
    def prefetch(typing_context: Any, address: Any) -> Any:
        """Begin to fetch the cache line at ``address``; any address will do."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            small, octets = ir.IntType(32), ir.IntType(8).as_pointer()
            kind = ir.FunctionType(ir.VoidType(), [octets, small, small, small])
            function = builder.module.declare_intrinsic("llvm.prefetch", [octets], kind)
            read, keep, as_data = (ir.Constant(small, value) for value in (0, 3, 1))
            builder.call(function, [_pointer(builder, arguments[0], 8), read, keep, as_data])
            return context.get_dummy_value()

        return numba.types.void(numba.types.int64), generate

else:
    # Interpreted kernels are for tests: one step at a time, in the processor's own order.

    def _loader(bits: int, ordering: str | None = None) -> Callable[[int], int]:
        kind = ctypes.c_int64 if bits == 64 else ctypes.c_uint32
        return lambda address: kind.from_address(int(address)).value

    def _storer(bits: int, ordering: str | None = None) -> Callable[[int, int], None]:
        kind = ctypes.c_int64 if bits == 64 else ctypes.c_uint32

        def store(address: int, value: int) -> None:
            kind.from_address(int(address)).value = int(value)

        return store

    def equal_bytes(array: Any, start: Any, byte: Any) -> Any:
        return sum(int(array[start + k] == byte) << k for k in range(8))

    def lowest_bit(mask: Any) -> Any:
        return (int(mask) & -int(mask)).bit_length() - 1

    def _fence(ordering: str) -> Callable[[], None]:
        return lambda: None

    def prefetch(address: int) -> None:
        """Begin to fetch the cache line at ``address``."""


load32, load64 = _loader(32), _loader(64)
"""``load32(address)``: the 32 or 64 bits there."""
store32, store64 = _storer(32), _storer(64)
"""``store32(address, value)``: put the low 32, or all 64, bits of ``value`` there."""
load32_acquire = _loader(32, "acquire")
"""As ``load32``; what follows is read and written after it."""
store32_release = _storer(32, "release")
"""As ``store32``; what precedes was read and written before it."""
fence = _fence("seq_cst")
"""A full memory barrier, for the compiler as for the processor: also a load stays behind a store. It waits until all
stores are done, which is dear where their lines are not in the cache."""
fence_acquire = _fence("acquire")
"""What was read before it is read before all that follows is read or written: behind the load of an index."""
fence_release = _fence("release")
"""All before it is read and written before what follows is written: ahead of the store of an index."""
