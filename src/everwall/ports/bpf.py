"""The cut-through as a node holds it: the shared table and control words, the attachment, the counters.

The maps exist as soon as the object does, so a node makes its session tables on them first, configures, opens
its AF_XDP sockets, and attaches last. Everything lasts as long as the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

import numpy as np
import numpy.typing as npt

from everwall.flow import secret
from everwall.limits import BUCKET_SLOTS
from everwall.ports.bpf_build import BuildError, build, object_path
from everwall.ports.libbpf import BpfError, BpfObject, Link, attach_pass
from everwall.ports.outcome import Outcome
from everwall.session import control as words

__all__ = ["BpfError", "BuildError", "CutThrough", "Link", "Outcome", "attach_pass", "build"]


class CutThrough:
    """The program with its maps. All arrays are the kernel's own memory: what is written is seen at once."""

    hot: npt.NDArray[np.int64]
    """int64[workers * slots, 8]: worker w owns the rows from w * slots on; so for ``tags`` and ``addresses``."""
    tags: npt.NDArray[np.uint8]
    addresses: npt.NDArray[np.int64]
    control: npt.NDArray[np.int64]
    """int64[session.control.WORDS]."""

    def __init__(self, *, workers: int, slots: int, queues: int, frags: bool = False) -> None:
        """Load the program for tables of ``slots`` slots for each worker and so many receive queues.

        ``frags``: packets may come in several buffers (MTU above one page). Everything is handed up until
        ``configure`` has been called. Raises BpfError, which says what is missing.
        """
        if not 0 < workers <= words.WORKERS_MAX:
            raise ValueError(f"workers must be 1 to {words.WORKERS_MAX}, got {workers}")
        if slots < BUCKET_SLOTS or slots % BUCKET_SLOTS:
            raise ValueError(f"slots must be whole sets of {BUCKET_SLOTS}, got {slots}")
        try:
            path = object_path()
        except BuildError as error:
            raise BpfError(str(error)) from None
        rows = workers * slots
        entries = {"hot": rows, "tags": rows // BUCKET_SLOTS, "addresses": rows, "sockets": queues}
        self._object = BpfObject(path, "cutthrough_frags" if frags else "cutthrough", entries, frags=frags)
        self._link: Link | None = None
        try:
            self.hot = self._object.array("hot").view(np.int64)
            self.tags = self._object.array("tags").reshape(-1)
            self.addresses = self._object.array("addresses").view(np.int64)
            self.control = self._object.array(".bss").reshape(-1).view(np.int64)[: words.WORDS]
        except OSError as error:
            self._object.close()  # its maps would hold their memory for as long as the process lives
            raise BpfError(f"the tables of the cut-through cannot be mapped: {error.strerror}") from None
        self.control[words.WORKERS] = workers
        self.control[words.SETS] = slots // BUCKET_SLOTS

    def configure(
        self, *, seed: int, sources: Sequence[IPv4Network], addresses: Sequence[IPv4Address] = ()
    ) -> None:
        """Say whose GENEVE is ours, and let sessions be bounced that are offloaded.

        ``addresses``: this node's data addresses, none = every one. Of more sources than there
        is room for, the rest is handed up; the engine judges sources by its own list.
        """
        control = self.control
        control[words.ENABLED] = 0
        control[words.SEED] = seed
        for k in range(words.SECRETS):
            control[words.SECRET + k] = secret(seed, k + 1)
        ranges = [(int(net.network_address), int(net.broadcast_address)) for net in sources]
        for k, (first, last) in enumerate(ranges[: words.SOURCES_MAX]):
            control[words.SOURCE + 2 * k : words.SOURCE + 2 * k + 2] = first, last
        control[words.SOURCES] = min(len(ranges), words.SOURCES_MAX)
        if len(addresses) > words.ADDRESSES_MAX:
            raise ValueError(f"{len(addresses)} data addresses, at most {words.ADDRESSES_MAX} are possible")
        for k, address in enumerate(addresses):
            control[words.ADDRESS + k] = int(address)
        control[words.ADDRESSES] = len(addresses)
        control[words.ENABLED] = 1

    def attach(self, interface: str) -> str:
        """Attach to an interface of this network namespace; returns ``native``, the only mode there is.

        Raises BpfError: no native XDP in the driver, an MTU too large for it, another program there.
        """
        self._link = self._object.attach(interface)
        return "native"

    def set_socket(self, queue: int, descriptor: int) -> None:
        """Hand packets of a receive queue up to this AF_XDP socket; before, they go on to the kernel."""
        self._object.update("sockets", queue, descriptor)

    def room_at(self, queue: int) -> int:
        """Address of the words that tell how much a queue's socket takes; 0 for a queue beyond QUEUES_MAX."""
        if queue >= words.QUEUES_MAX:
            return 0
        return int(self.control[words.ROOM + queue * words.ROOM_WORDS :].ctypes.data)

    def counters(self) -> dict[str, int]:
        """Packets by outcome since the program was loaded, and the bounced bytes."""
        total = self._object.per_cpu("counters").sum(axis=0)
        return {outcome.label: int(total[outcome]) for outcome in Outcome}

    def test_run(self, packet: bytes, repeat: int = 1) -> tuple[int, bytes, int]:
        """Run the program over an Ethernet frame: (action, frame afterwards, ns for one run)."""
        return self._object.test_run(packet, repeat)

    def close(self) -> None:
        """Detach and let go; the arrays stay readable as long as somebody holds them."""
        if self._link is not None:
            self._link.close()
        self._link = None
        self._object.close()
