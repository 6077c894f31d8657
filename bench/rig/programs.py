"""The benchmark's programs in the kernel (``bpf/bench.bpf.c``): built where necessary, loaded together."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from everwall.ports.bpf_build import build, why_stale
from everwall.ports.libbpf import BpfObject, Link, open_program, run, run_live

_OBJECT = Path(__file__).resolve().parent / "bench.bpf.o"
_PROGRAMS = ("receive_geneve", "receive_plain", "generate_geneve", "generate_plain", "sink", "cycle")


class Programs:
    """All of them in one object; ``words`` is the struct that they share."""

    def __init__(self) -> None:
        """Raises BuildError or BpfError, which say what is missing."""
        if why_stale(_OBJECT):
            build("bench", _OBJECT)
        self._object = BpfObject(_OBJECT, "bounce", others=_PROGRAMS)
        self.words: npt.NDArray[np.uint64] = self._object.array(".bss").reshape(-1).view(np.uint64)
        self._links: list[Link] = []

    def attach(self, program: str, interface: str) -> None:
        """To an interface of this thread's namespace, until ``close``."""
        self._links.append(self._object.attach(interface, program))

    def run_live(self, program: str, packet: bytes, repeat: int, batch: int) -> None:
        """Run over real frames; a signal ends it."""
        run_live(self._object.descriptors[program], packet, repeat, batch)

    def time(self, program: int | str, packet: bytes, repeat: int) -> int:
        """Nanoseconds of one run by BPF_PROG_TEST_RUN behind ``cycle``, which makes the packets.

        ``program``: one of these by name, or any by its number.
        """
        if isinstance(program, str):
            self._object.update("target", 0, self._object.descriptors[program])
        else:
            descriptor = open_program(program)
            try:
                self._object.update("target", 0, descriptor)
            finally:
                os.close(descriptor)  # the map holds it
        return run(self._object.descriptors["cycle"], packet, repeat)[2]

    def frame(self, program: str, packet: bytes) -> bytes:
        """What a program makes of a frame, which then goes nowhere."""
        return run(self._object.descriptors[program], packet, 1)[1]

    def close(self) -> None:
        for link in self._links:
            link.close()
        self._object.close()
