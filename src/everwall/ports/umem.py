"""Opening an AF_XDP port: the socket of each queue, its memory, its rings, and how the queue is polled.

Every queue has memory of its own, so that no two workers ever share a frame. The program that hands packets
to the sockets belongs to somebody else (``ports/bpf.py``), who asks for ``queue_sockets``. Layout and option
numbers are those of ``linux/if_xdp.h``.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
import socket
import struct
from collections.abc import Iterator, Sequence

from everwall.limits import (
    BATCH_PACKETS,
    XDP_BUSY_POLL_US,
    XDP_FRAMES,
    XDP_HEADROOM_BYTES,
    XDP_HELD_ROWS,
    XDP_PIECES_MAX,
    XDP_RING_ROWS,
)
from everwall.ports import interface as link
from everwall.ports import layout as p
from everwall.ports.layout import Port, make_port
from everwall.ports.xdp import fill

_AF_XDP = 44
_SOL_XDP = 283
_XDP_MMAP_OFFSETS, _XDP_RX_RING, _XDP_TX_RING, _XDP_UMEM_REG = 1, 2, 3, 4
_XDP_UMEM_FILL_RING, _XDP_UMEM_COMPLETION_RING, _XDP_STATISTICS, _XDP_OPTIONS = 5, 6, 7, 8
_XDP_MAX_TX_SKB_BUDGET = 9  # Linux 6.17
_XDP_OPTIONS_ZEROCOPY = 1
_XDP_COPY, _XDP_ZEROCOPY, _XDP_USE_NEED_WAKEUP, _XDP_USE_SG = 2, 4, 8, 16
_PAGE_OFFSETS = {"rx": 0, "tx": 0x8000_0000, "fill": 0x1_0000_0000, "done": 0x1_8000_0000}

_SO_BUSY_POLL, _SO_INCOMING_NAPI_ID, _SO_PREFER_BUSY_POLL, _SO_BUSY_POLL_BUDGET = 46, 56, 69, 70
_SO_SNDBUFFORCE = 32
_SEND_BUFFER_BYTES = 16 << 20

_SIOCGIFHWADDR = 0x8927
_PROT_READ_WRITE = 3
_MAP_SHARED, _MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_POPULATE = 0x01, 0x02, 0x20, 0x8000
_HUGE_PAGE_BYTES = 2 << 20

_RINGS = {
    "rx": (p.RX_PRODUCER, _XDP_RX_RING, XDP_RING_ROWS, 16),
    "tx": (p.TX_PRODUCER, _XDP_TX_RING, XDP_RING_ROWS, 16),
    "fill": (p.FILL_PRODUCER, _XDP_UMEM_FILL_RING, XDP_FRAMES, 8),
    "done": (p.DONE_PRODUCER, _XDP_UMEM_COMPLETION_RING, XDP_FRAMES, 8),
}
"""First of four columns of a queue, socket option, descriptors, bytes of one; in the order of the kernel's offsets."""

STATISTICS = (
    "rx-dropped",
    "rx-invalid-descriptors",
    "tx-invalid-descriptors",
    "rx-ring-full",
    "fill-ring-empty",
)
"""Of ``struct xdp_statistics``: packets that found no frame or were too long, descriptors of ours that the kernel
refused, packets that found the rx ring full, and how often it found no frame. What is left out is how often it found
nothing to send."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_INT = ctypes.c_int
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, _INT, _INT, _INT, ctypes.c_int64]


def chunk_bytes_for(mtu: int) -> int:
    """Bytes of one frame for an interface of that MTU: a short frame where a packet fits into one."""
    return 2048 if mtu + 14 + XDP_HEADROOM_BYTES <= 2048 else 4096


def needs_pieces(mtu: int) -> bool:
    """Whether packets of that MTU come in several frames: program and driver have to know ("xdp.frags")."""
    return mtu + 14 + XDP_HEADROOM_BYTES > 4096


def open_xdp(
    interface: str,
    queues: Sequence[int],
    *,
    batch: int = BATCH_PACKETS,
    zero_copy: bool | None = None,
    busy_poll: bool = False,
) -> Port:
    """AF_XDP sockets on queues of an interface; a program has to send packets to them (``queue_sockets``).

    ``batch``: rows of the batches that it will be given. ``zero_copy``: None takes it where the driver has
    it. ``busy_poll``: the worker drives the driver instead of interrupts, where the driver says which of its
    pollers serves the queue (``docs/decisions/0005``). Raises PermissionError without CAP_NET_RAW, OSError when
    there is no such interface or queue, when a queue is taken, or memory may not be locked.
    """
    mtu = link.mtu_of(interface)
    chunk = chunk_bytes_for(mtu)
    pieces = XDP_PIECES_MAX if needs_pieces(mtu) else 1
    held = min(batch * min(pieces, 4), XDP_HELD_ROWS) + XDP_PIECES_MAX
    port = make_port(p.XDP, -1, -1, queues=len(queues), held=held, free=XDP_FRAMES)
    port.info[p.LINK] = _hardware_address(interface)
    port.info[p.CHUNK_BYTES] = chunk
    port.info[p.PIECES] = pieces
    flags = _XDP_USE_NEED_WAKEUP | (_XDP_USE_SG if pieces > 1 else 0)
    if zero_copy is not None:
        flags |= _XDP_ZEROCOPY if zero_copy else _XDP_COPY
    opened: list[socket.socket] = []
    try:
        for q, number in enumerate(queues):
            with _explained(errno.EPERM, "AF_XDP needs root (CAP_NET_RAW)"):
                opened.append(socket.socket(_AF_XDP, socket.SOCK_RAW | socket.SOCK_CLOEXEC))
            _make_queue(port, q, opened[q], chunk)
            _bind(opened[q], socket.if_nametoindex(interface), number, flags)
            _prepare(opened[q], busy_poll)
            if busy_poll and opened[q].getsockopt(socket.SOL_SOCKET, _SO_INCOMING_NAPI_ID):
                port.info[p.BUSY] = 1
            port.queues[q, p.QUEUE_NUMBER] = number
        receiver = _poll_all(opened) if len(opened) != 1 else opened[0].fileno()
    except OSError:
        for each in opened:
            each.close()
        unmap(port)
        raise
    for q, each in enumerate(opened):
        port.queues[q, p.DESCRIPTOR] = each.detach()
        fill(port, q)
    port.info[p.RECEIVER] = receiver
    port.info[p.QUEUES] = len(opened)
    return port


def _hardware_address(interface: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        answer = fcntl.ioctl(control, _SIOCGIFHWADDR, link.request(interface, "H", 0))
    return int.from_bytes(answer[18:24], "little")


def _make_queue(port: Port, q: int, opened: socket.socket, chunk: int) -> None:
    """Frames and rings of queue ``q``, all frames free."""
    row = port.queues[q]
    size = XDP_FRAMES * chunk
    row[p.FRAMES_AT] = _map(port, size, _MAP_PRIVATE | _MAP_ANONYMOUS, -1, 0)
    row[p.FRAMES_BYTES] = size
    registration = struct.pack("QQIIII", int(row[p.FRAMES_AT]), size, chunk, 0, 0, 0)
    with _explained(
        errno.ENOBUFS, f"AF_XDP may not lock {size >> 20} MiB of memory: raise that limit (ulimit -l)"
    ):
        opened.setsockopt(_SOL_XDP, _XDP_UMEM_REG, registration)
    for _, option, rows, _ in _RINGS.values():
        opened.setsockopt(_SOL_XDP, option, rows)
    # For each ring: producer, consumer, descriptors, flags.
    offsets = struct.unpack("16Q", opened.getsockopt(_SOL_XDP, _XDP_MMAP_OFFSETS, 128))
    for k, (name, (first, _, rows, bytes_each)) in enumerate(_RINGS.items()):
        producer, consumer, ring, flags = offsets[4 * k : 4 * k + 4]
        how = _MAP_SHARED | _MAP_POPULATE
        at = _map(port, ring + rows * bytes_each, how, opened.fileno(), _PAGE_OFFSETS[name])
        row[first : first + 4] = at + producer, at + consumer, at + ring, rows - 1
        if name == "tx":
            row[p.TX_FLAGS] = at + flags
        elif name == "fill":
            row[p.FILL_FLAGS] = at + flags
    port.free[q] = [chunk * k for k in range(XDP_FRAMES)]
    row[p.FREE] = XDP_FRAMES


@contextlib.contextmanager
def _explained(number: int, why: str) -> Iterator[None]:
    """An error of that number says what to do about it."""
    try:
        yield
    except OSError as error:
        if error.errno == number:
            raise OSError(number, why) from None
        raise


def _map(port: Port, size: int, how: int, descriptor: int, offset: int) -> int:
    """Address of new memory, remembered in ``port.mapped``; private memory lies on huge pages where there are any."""
    huge = _HUGE_PAGE_BYTES if how & _MAP_ANONYMOUS else 0
    address = _libc.mmap(None, size + huge, _PROT_READ_WRITE, how, descriptor, offset)
    if address is None or address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot map {size} bytes for AF_XDP: {os.strerror(number)}")
    row = int((port.mapped[:, 1] == 0).argmax())
    port.mapped[row] = address, size + huge
    if huge:
        address = (address + huge - 1) & -huge
        _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)
    return int(address)


def unmap(port: Port) -> None:
    """Give the memory of a port back; its sockets are closed."""
    for address, size in port.mapped:
        if size:
            _libc.munmap(ctypes.c_void_p(int(address)), ctypes.c_size_t(int(size)))
    port.mapped[:] = 0


def _bind(opened: socket.socket, index: int, number: int, flags: int) -> None:
    # Python knows no addresses of this family.
    address = struct.pack("HHIII", _AF_XDP, flags, index, number, 0)
    if _libc.bind(opened.fileno(), address, len(address)) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"cannot bind to queue {number}: {os.strerror(error)}")


def _prepare(opened: socket.socket, busy_poll: bool) -> None:
    """What makes a bound socket faster; a kernel that lacks any of it is slower, and that is all."""
    wished = [
        (socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER_BYTES),
        (_SOL_XDP, _XDP_MAX_TX_SKB_BUDGET, XDP_RING_ROWS),
    ]
    if busy_poll:
        wished += [
            (socket.SOL_SOCKET, _SO_PREFER_BUSY_POLL, 1),
            (socket.SOL_SOCKET, _SO_BUSY_POLL, XDP_BUSY_POLL_US),
            (socket.SOL_SOCKET, _SO_BUSY_POLL_BUDGET, BATCH_PACKETS),
        ]
    for level, option, value in wished:
        with contextlib.suppress(OSError):
            opened.setsockopt(level, option, value)


def _poll_all(opened: list[socket.socket]) -> int:
    """One descriptor that is readable when any of the sockets is."""
    poller = select.epoll()
    for each in opened:
        poller.register(each.fileno(), select.EPOLLIN)
    descriptor = os.dup(poller.fileno())
    poller.close()
    return descriptor


# While it is open ------------------------------------------------------------------------------------


def queue_sockets(port: Port) -> list[tuple[int, int]]:
    """(queue of the interface, descriptor of its socket) for each queue of the port."""
    rows = port.queues[: int(port.info[p.QUEUES])]
    return [(int(row[p.QUEUE_NUMBER]), int(row[p.DESCRIPTOR])) for row in rows]


def tell_room(port: Port, q: int, address: int) -> None:
    """Let ``receive`` say at ``address`` how much queue ``q`` of the port takes (``CutThrough.room_at``)."""
    port.queues[q, p.ROOM_AT] = address


def is_zero_copy(port: Port) -> bool:
    """Whether the driver puts packets straight into the frames of every queue."""
    answers = [_ask(fd, _XDP_OPTIONS, 4) for _, fd in queue_sockets(port)]
    return bool(answers) and all(answer[0] & _XDP_OPTIONS_ZEROCOPY for answer in answers)


def statistics(port: Port) -> dict[str, int]:
    """What the kernel counts for the port's sockets, by the names in STATISTICS; nothing for other kinds."""
    sums = dict.fromkeys(STATISTICS, 0) if port.info[p.KIND] == p.XDP else {}
    for _, fd in queue_sockets(port):
        counts = struct.unpack("6Q", _ask(fd, _XDP_STATISTICS, 48))
        for name, value in zip(STATISTICS, counts):
            sums[name] += value
    return sums


def _ask(descriptor: int, option: int, size: int) -> bytes:
    with socket.socket(_AF_XDP, socket.SOCK_RAW, fileno=os.dup(descriptor)) as opened:
        return opened.getsockopt(_SOL_XDP, option, size)
