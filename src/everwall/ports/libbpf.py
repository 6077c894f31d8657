"""libbpf through ctypes: load an object, map its arrays, attach its program natively, run it in a test.

Only what the data path needs. Nothing is pinned: programs, maps and links live as long as this process holds
their descriptors, so nothing stays attached after a crash. What libbpf and the verifier print goes into the error.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import socket
import struct
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT = range(5)

KERNEL_MIN = (5, 11)
"""bpf_ktime_get_coarse_ns; links (5.9) and memory-mapped arrays (5.5) are older."""
KERNEL_MIN_FRAGS = (5, 18)

_LIBRARY = "libbpf.so.1"
_LOG_LINES = 40
_ATTACH_XDP = 37
_FLAGS_DRV_MODE = 4
_HAS_FRAGS = 1 << 5
_PROG_TYPE_XDP = 6
_TEST_LIVE_FRAMES = 2
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_BPF": 39}
_CAP_SYS_ADMIN = 21
_SIOCGIFMTU = 0x8921
_SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO = 3
_NATIVE_MTU_MAX = 3498
"""Where a linear XDP frame of one 4 KiB page ends, in the drivers that say so (ENA: 3498 bytes of MTU)."""

# mov r0, XDP_PASS; exit
_PASS = struct.pack("<BBhi", 0xB7, 0, 0, XDP_PASS) + struct.pack("<BBhi", 0x95, 0, 0, 0)


class BpfError(RuntimeError):
    """What is missing for a program in the kernel, and what to do about it."""


class _LinkOptions(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("flags", ctypes.c_uint32), ("rest", ctypes.c_uint32 * 13)]


class _ProgramOptions(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("attach_type", ctypes.c_int),
        ("btf", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
    ]


class _TestOptions(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t),
        ("data_in", ctypes.c_char_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


# The library ------------------------------------------------------------------------------------------

_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_P, _INT, _U32, _STR = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_char_p
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "bpf_object__open_file": (_P, [_STR, _P]),
    "bpf_object__load": (_INT, [_P]),
    "bpf_object__close": (None, [_P]),
    "bpf_object__next_program": (_P, [_P, _P]),
    "bpf_object__find_map_by_name": (_P, [_P, _STR]),
    "bpf_program__name": (_STR, [_P]),
    "bpf_program__set_autoload": (_INT, [_P, ctypes.c_bool]),
    "bpf_program__fd": (_INT, [_P]),
    "bpf_map__fd": (_INT, [_P]),
    "bpf_map__value_size": (_U32, [_P]),
    "bpf_map__max_entries": (_U32, [_P]),
    "bpf_map__set_max_entries": (_INT, [_P, _U32]),
    "bpf_map_update_elem": (_INT, [_INT, _P, _P, ctypes.c_uint64]),
    "bpf_map_lookup_elem": (_INT, [_INT, _P, _P]),
    "bpf_map_delete_elem": (_INT, [_INT, _P]),
    "bpf_link_create": (_INT, [_INT, _INT, _INT, _P]),
    "bpf_prog_load": (_INT, [_INT, _STR, _STR, _P, ctypes.c_size_t, _P]),
    "bpf_prog_get_fd_by_id": (_INT, [_U32]),
    "bpf_prog_test_run_opts": (_INT, [_INT, _P]),
    "libbpf_set_print": (_P, [_PRINT]),
    "libbpf_num_possible_cpus": (_INT, []),
}

_printed: list[str] = []
_lock = threading.Lock()
_loaded: ctypes.CDLL | None = None


@_PRINT  # type: ignore[untyped-decorator]
def _keep(level: int, form: int, arguments: int) -> int:
    """What libbpf prints; its debug level (2) is left out."""
    if level < 2:
        buffer = ctypes.create_string_buffer(1 << 16)
        ctypes.CDLL(None).vsnprintf(buffer, len(buffer), _P(form), _P(arguments))
        _printed.append(buffer.value.decode(errors="replace"))
    return 0


def library() -> ctypes.CDLL:
    """libbpf with its signatures declared; raises BpfError where it is not installed."""
    global _loaded
    if _loaded is None:
        try:
            found = ctypes.CDLL(_LIBRARY, use_errno=True)
        except OSError:
            raise BpfError(f"{_LIBRARY} is not installed (Debian and Ubuntu: the package libbpf1)") from None
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
        found.libbpf_set_print(_keep)
        _loaded = found
    return _loaded


def _check_kernel(wanted: tuple[int, int], what: str) -> None:
    release = platform.release()
    have = tuple(int(part) if part.isdigit() else 0 for part in release.split(".")[:2])
    if have < wanted:
        raise BpfError(f"the kernel is too old for {what}: {release}, needed is {wanted[0]}.{wanted[1]}")


def missing_capabilities() -> list[str]:
    """Of those that loading and attaching take: which this process does not have."""
    effective = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            effective = int(line.split()[1], 16)
    if effective >> _CAP_SYS_ADMIN & 1:
        return [] if effective >> _CAPABILITIES["CAP_NET_ADMIN"] & 1 else ["CAP_NET_ADMIN"]
    return [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]


def _refused(doing: str) -> str:
    missing = missing_capabilities()
    if missing:
        return f"{doing} needs {' and '.join(missing)} (run as root, or give the service these capabilities)"
    return (
        f"{doing} was refused although the capabilities are there: the process is in a user namespace or a "
        "container that may not use BPF, a security module forbids it, or the limit of locked memory "
        "(ulimit -l) is too small on a kernel before 5.11"
    )


def _log() -> str:
    text = "".join(_printed).strip().splitlines()
    return ("\n" + "\n".join(text[-_LOG_LINES:])) if text else ""


# Objects ----------------------------------------------------------------------------------------------


class BpfObject:
    """A loaded object file with one of its programs, or several that share its maps; the others are left out."""

    def __init__(
        self,
        path: Path,
        program: str,
        entries: Mapping[str, int] | None = None,
        *,
        frags: bool = False,
        others: Sequence[str] = (),
    ) -> None:
        """Load ``program`` of the object at ``path``; ``entries``: size of maps by name, where it is not fixed.

        ``others``: programs to load beside it. Raises BpfError.
        """
        _check_kernel(KERNEL_MIN_FRAGS if frags else KERNEL_MIN, "xdp.frags" if frags else "this program")
        if not path.exists():
            raise BpfError(f"there is no BPF object at {path}")
        self._library = library()
        self._object: int | None = None
        with _lock:
            _printed.clear()
            self._object = self._library.bpf_object__open_file(os.fsencode(path), None)
            if not self._object:
                raise BpfError(f"{path} is no BPF object{_log()}")
            try:
                programs = self._choose([program, *others], path)
                for name, count in (entries or {}).items():
                    self._must(self._library.bpf_map__set_max_entries(self._map(name), count), name)
                self._load(path)
            except BpfError:
                self.close()
                raise
        self.descriptors = {name: int(self._library.bpf_program__fd(programs[name])) for name in programs}
        self.program_descriptor = self.descriptors[program]

    def _choose(self, wanted: Sequence[str], path: Path) -> dict[str, int]:
        found = {}
        program = self._library.bpf_object__next_program(self._object, None)
        while program:
            name = self._library.bpf_program__name(program).decode()
            self._library.bpf_program__set_autoload(program, name in wanted)
            if name in wanted:
                found[name] = int(program)
            program = self._library.bpf_object__next_program(self._object, program)
        if missing := set(wanted) - found.keys():
            raise BpfError(f"{path} holds no program {', '.join(sorted(missing))}")
        return found

    def _load(self, path: Path) -> None:
        failed = -int(self._library.bpf_object__load(self._object))
        # A refusal by the verifier is EACCES too.
        if failed == errno.EPERM or (failed == errno.EACCES and missing_capabilities()):
            raise BpfError(_refused("loading a BPF program") + _log())
        if failed in (errno.ENOMEM, errno.E2BIG):
            raise BpfError(
                f"the kernel has no memory for the maps of {path.name}: fewer sessions fit{_log()}"
            )
        if failed:
            raise BpfError(
                f"the kernel ({platform.release()}) refuses {path.name}: {os.strerror(failed)}{_log()}"
            )

    def _map(self, name: str) -> int:
        if self._object is None:
            raise BpfError(
                f"the BPF object is closed: its map {name} is gone"
            )  # libbpf would follow the null
        found = self._library.bpf_object__find_map_by_name(self._object, name.encode())
        if not found:
            raise BpfError(f"the BPF object has no map {name}")
        return int(found)

    def _must(self, result: int, what: str) -> None:
        if result < 0:
            raise BpfError(f"{what}: {os.strerror(-result)}{_log()}")

    def map_descriptor(self, name: str) -> int:
        return int(self._library.bpf_map__fd(self._map(name)))

    def array(self, name: str) -> npt.NDArray[np.uint8]:
        """The memory of a memory-mapped array: uint8[entries, bytes of a value].

        It outlives the object as long as somebody holds the array.
        """
        found = self._map(name)
        count = int(self._library.bpf_map__max_entries(found))
        # The kernel rounds a value up to 8 bytes.
        size = (int(self._library.bpf_map__value_size(found)) + 7) // 8 * 8
        memory = mmap.mmap(int(self._library.bpf_map__fd(found)), count * size)
        return np.frombuffer(memory, np.uint8, count * size).reshape(count, size)

    def update(self, name: str, key: int, value: int) -> None:
        """Set the entry of a map with 32-bit keys and values, as maps of sockets have."""
        ours, theirs = ctypes.c_uint32(key), ctypes.c_uint32(value)
        result = self._library.bpf_map_update_elem(
            self.map_descriptor(name), ctypes.byref(ours), ctypes.byref(theirs), 0
        )
        self._must(result, f"{name}[{key}]")

    def delete(self, name: str, key: int) -> None:
        """Remove an entry; one that is not there is no error."""
        self._library.bpf_map_delete_elem(self.map_descriptor(name), ctypes.byref(ctypes.c_uint32(key)))

    def per_cpu(self, name: str, key: int = 0) -> npt.NDArray[np.uint64]:
        """An entry of a per-CPU array: uint64[CPUs, words of a value]."""
        size = (int(self._library.bpf_map__value_size(self._map(name))) + 7) // 8 * 8
        values = np.zeros((int(self._library.libbpf_num_possible_cpus()), size // 8), np.uint64)
        result = self._library.bpf_map_lookup_elem(
            self.map_descriptor(name), ctypes.byref(ctypes.c_uint32(key)), values.ctypes.data
        )
        self._must(result, f"{name}[{key}]")
        return values

    def attach(self, interface: str, program: str | None = None) -> Link:
        """Attach the program, or one of the others, to an interface of this network namespace, natively."""
        return _attach(self.descriptors[program] if program else self.program_descriptor, interface)

    def test_run(self, packet: bytes, repeat: int = 1) -> tuple[int, bytes, int]:
        """Run the program over an Ethernet frame: (action, frame afterwards, ns for one run)."""
        return run(self.program_descriptor, packet, repeat)

    def close(self) -> None:
        """Let go of the descriptors; memory that was mapped stays until its arrays are gone."""
        if self._object:
            self._library.bpf_object__close(self._object)
        self._object = None


def run(program: int, packet: bytes, repeat: int) -> tuple[int, bytes, int]:
    """BPF_PROG_TEST_RUN of an XDP program; a frame that is run again is as the run before left it."""
    out = ctypes.create_string_buffer(len(packet) + 512)
    options = _TestOptions(
        size=ctypes.sizeof(_TestOptions),
        data_in=packet,
        data_size_in=len(packet),
        data_out=ctypes.addressof(out),
        data_size_out=len(out),
        repeat=repeat,
    )
    failed = -int(library().bpf_prog_test_run_opts(program, ctypes.byref(options)))
    if failed:
        raise BpfError(f"BPF_PROG_TEST_RUN: {os.strerror(failed)}")
    return int(options.retval), out.raw[: options.data_size_out], int(options.duration)


def run_live(program: int, packet: bytes, repeat: int, batch: int) -> None:
    """Run an XDP program over ``repeat`` real frames, which then go where it sends them; a signal ends it early.

    A frame that comes back to its pool is not written anew: the program finds it as it was left.
    """
    options = _TestOptions(
        size=ctypes.sizeof(_TestOptions),
        data_in=packet,
        data_size_in=len(packet),
        repeat=repeat,
        flags=_TEST_LIVE_FRAMES,
        batch_size=batch,
    )
    failed = -int(library().bpf_prog_test_run_opts(program, ctypes.byref(options)))
    if failed not in (0, errno.EINTR):
        raise BpfError(f"BPF_PROG_RUN with live frames: {os.strerror(failed)}")


def open_program(number: int) -> int:
    """A descriptor of a loaded program of this machine by its number, as ``ip link`` shows it."""
    descriptor = int(library().bpf_prog_get_fd_by_id(number))
    if descriptor < 0:
        raise BpfError(f"there is no BPF program {number}, or it may not be seen: {os.strerror(-descriptor)}")
    return descriptor


# Attachment -------------------------------------------------------------------------------------------


class Link:
    """An attachment that lasts until ``close``, or until the process is gone."""

    def __init__(self, descriptor: int, program: int = -1) -> None:
        self._descriptors = [number for number in (descriptor, program) if number >= 0]

    def close(self) -> None:
        for number in self._descriptors:
            os.close(number)
        self._descriptors = []

    def survive_exec(self) -> None:
        """Let the program that this process becomes hold the attachment, for as long as it runs."""
        for number in self._descriptors:
            os.set_inheritable(number, True)


def attach_pass(interface: str) -> Link:
    """Attach a program that passes everything on: the peer of a veth needs one, or XDP_TX toward it is lost."""
    loaded = library()
    options = _ProgramOptions(size=ctypes.sizeof(_ProgramOptions))
    if describe_interface(interface)[1] > _NATIVE_MTU_MAX:
        _check_kernel(KERNEL_MIN_FRAGS, "packets in several buffers")
        options.flags = _HAS_FRAGS
    failed = program = int(
        loaded.bpf_prog_load(_PROG_TYPE_XDP, b"pass", b"GPL", _PASS, len(_PASS) // 8, ctypes.byref(options))
    )
    if failed in (-errno.EPERM, -errno.EACCES):
        raise BpfError(_refused("loading a BPF program"))
    if failed < 0:
        raise BpfError(f"the kernel ({platform.release()}) loads no BPF programs: {os.strerror(-failed)}")
    try:
        link = _attach(program, interface)
    finally:
        os.close(program)  # the link holds it
    return link


def _attach(program: int, interface: str) -> Link:
    try:
        index = socket.if_nametoindex(interface)
    except OSError:
        raise BpfError(f"there is no interface {interface} in this network namespace") from None
    options = _LinkOptions(size=ctypes.sizeof(_LinkOptions), flags=_FLAGS_DRV_MODE)
    descriptor = int(library().bpf_link_create(program, index, _ATTACH_XDP, ctypes.byref(options)))
    if descriptor < 0:
        raise BpfError(_why_not_attached(interface, -descriptor))
    return Link(descriptor)


def _why_not_attached(interface: str, failed: int) -> str:
    driver, mtu = describe_interface(interface)
    if failed in (errno.EPERM, errno.EACCES):
        return _refused(f"attaching a program to {interface}")
    if failed in (errno.EBUSY, errno.EEXIST):
        return (
            f"another XDP program is attached to {interface} (ip link show {interface}); if nobody needs it: "
            f"ip link set dev {interface} xdp off"
        )
    too_large = (
        f"the MTU of {interface} ({mtu}), or of its peer, is too large for native XDP of driver {driver}"
    )
    if failed == errno.ERANGE:
        return f"{too_large}; {_NATIVE_MTU_MAX} bytes are what a frame of one page leaves"
    if failed == errno.ENOSPC:
        return (
            f"{interface} has too few receive queues for native XDP of driver {driver}: the peer of a veth may "
            "not have more transmit queues than it (ip link add ... numrxqueues)"
        )
    if failed in (errno.EINVAL, errno.EFBIG) and mtu > _NATIVE_MTU_MAX:
        return f"{too_large}; {_NATIVE_MTU_MAX} bytes are what a frame of one page leaves"
    if failed == errno.EOPNOTSUPP:
        return f"the driver of {interface} ({driver}) has no native XDP"
    return (
        f"the driver of {interface} ({driver}) refuses native XDP: {os.strerror(failed)}. Usual reasons: more "
        "than half of its queues in use (ethtool -L), or receive offloads that XDP excludes (ethtool -K ... lro off)"
    )


def describe_interface(interface: str) -> tuple[str, int]:
    """Driver and MTU of an interface of this network namespace; ``?`` and 0 for what cannot be learnt."""
    name = interface.encode()[:15]
    driver, mtu = "?", 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        try:
            answer = fcntl.ioctl(control, _SIOCGIFMTU, struct.pack("16si20x", name, 0))
            (mtu,) = struct.unpack("16xi20x", answer)
            asked = ctypes.create_string_buffer(struct.pack("I192x", _ETHTOOL_GDRVINFO), 196)
            fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sQ16x", name, ctypes.addressof(asked)))
            driver = asked.raw[4:36].split(b"\0")[0].decode() or "?"
        except OSError:
            pass
    return driver, mtu
