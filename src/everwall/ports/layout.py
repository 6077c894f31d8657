"""The arrays of a port, one shape for all kinds, so that one compiled worker serves them all.

A port of sockets (``ports/sockets.py``) uses the structures of recvmmsg and sendmmsg; an AF_XDP port
(``ports/xdp.py``) uses a row of ``queues`` for each queue of its interface. What a kind does not use is empty.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from everwall.limits import UDP_SOURCE_PORTS_MAX

RAW = 1
UDP = 2
XDP = 3

# Columns of Port.info
KIND = 0
RECEIVER = 1  # the descriptor to poll; -1 of a port that only sends
SENDER = 2
SOCKETS = 3  # rows of ``sockets`` in use
SHARED = 4  # 1: other ports of this process have the same addresses
BATCH_DATA = 5  # address and row length of the batch that is received into
BATCH_STRIDE = 6
QUEUES = 7  # rows of ``queues`` in use
LINK = 8  # our Ethernet address: six bytes as they stand in memory, the first one lowest
BUSY = 9  # 1: the queues are polled by us, not by interrupt
GENERATION = 10  # of the batch in ``held``
HELD = 11  # rows of ``held`` in use
TURN = 12  # the queue that is asked first
CHUNK_BYTES = 13  # of a frame
PIECES = 14  # frames that one packet may have
INFO_COLUMNS = 16

# Columns of Port.queues
DESCRIPTOR = 0
FRAMES_AT = 1  # address and length of the queue's own frame memory
FRAMES_BYTES = 2
RX_PRODUCER, RX_CONSUMER, RX_RING, RX_MASK = 4, 5, 6, 7  # addresses; RING: of the descriptors
TX_PRODUCER, TX_CONSUMER, TX_RING, TX_MASK = 8, 9, 10, 11
FILL_PRODUCER, FILL_CONSUMER, FILL_RING, FILL_MASK = 12, 13, 14, 15
DONE_PRODUCER, DONE_CONSUMER, DONE_RING, DONE_MASK = 16, 17, 18, 19  # the completion ring
TX_FLAGS, FILL_FLAGS = 20, 21
ROOM_AT = 22  # address of the words in which the program before the queue is told how much it takes; 0: none
RX_NEXT = 24  # free-running, 32 bits: the next descriptor that we read or write
TX_NEXT = 25
FILL_NEXT = 26
DONE_NEXT = 27
FREE = 28  # frames in the queue's row of ``free``
QUEUE_NUMBER = 29  # of the interface
QUEUE_COLUMNS = 32

# Columns of Port.held
HELD_QUEUE = 0
HELD_FRAME = 1  # where the data begin, counted from FRAMES_AT; -1 when the frame has been sent
HELD_LENGTH = 2
HELD_MORE = 3  # 1: the packet goes on in the next row
HELD_COLUMNS = 4


class Port(NamedTuple):
    """Sockets, rings and scratch structures; made by the ``open_`` functions of ``ports/port.py``."""

    info: npt.NDArray[np.int64]
    messages: npt.NDArray[np.int64]
    vectors: npt.NDArray[np.int64]
    names: npt.NDArray[np.uint8]
    control: npt.NDArray[np.uint8]
    sockets: npt.NDArray[np.int64]  # rows (local address, port, descriptor) of the UDP kind
    queues: npt.NDArray[np.int64]
    held: npt.NDArray[np.int64]  # frames of the packets that were received last
    free: npt.NDArray[np.int64]  # [queue, n]: frames that neither we nor the kernel use
    mapped: npt.NDArray[np.int64]  # rows (address, bytes) of memory to give back


CONTROL_ROOM = 32


def make_port(
    kind: int,
    receiver: int,
    sender: int,
    *,
    batch: int = 0,
    shared: bool = False,
    queues: int = 0,
    held: int = 0,
    free: int = 0,
) -> Port:
    """The arrays of a port without a queue in use; the socket kinds need ``batch`` rows."""
    info = np.zeros(INFO_COLUMNS, np.int64)
    info[KIND], info[RECEIVER], info[SENDER], info[SHARED] = kind, receiver, sender, shared
    return Port(
        info,
        np.zeros((2 * batch, 8), np.int64),
        np.zeros((2 * batch, 2), np.int64),
        np.zeros((2 * batch, 16), np.uint8),
        np.zeros((batch, CONTROL_ROOM), np.uint8),
        np.zeros((UDP_SOURCE_PORTS_MAX, 3), np.int64),
        np.zeros((queues, QUEUE_COLUMNS), np.int64),
        np.zeros((held, HELD_COLUMNS), np.int64),
        np.zeros((queues, free), np.int64),
        np.zeros((queues * 5, 2), np.int64),
    )
