"""The words that engine and cut-through program share, beside the session table: one small array of int64.

The array is the program's ``.bss``, mapped into the process; without a program it is ordinary memory that nobody
reads. The engine writes and the program reads, but for HANDED. The build of the program takes every number here as
a C constant of the same name (``ports/bpf_build.py``).
"""

from __future__ import annotations

from everwall import limits

SEED = 0
"""Of the flow hash; the program reads what is drawn from it, at SECRET."""
WORKERS = 1
SETS = 2
"""Sets of the session table, for each worker."""
SOURCES = 4
"""How many of the ranges at SOURCE hold; a packet from none of them is handed up."""
ADDRESSES = 5
"""How many of the addresses at ADDRESS hold; 0 means that every outer destination is ours."""
ENABLED = 6
"""0: everything is handed up."""
SOURCE = 8
"""SOURCES_MAX pairs: first and last outer IPv4 address that GENEVE is accepted from."""
SOURCES_MAX = 16
ADDRESS = 40
"""ADDRESSES_MAX outer IPv4 addresses of this node."""
ADDRESSES_MAX = 16
SECRET = 56
"""SECRETS words that ``flow.hash_key`` (three) and ``flow.signature`` (four) draw from the seed."""
SECRETS = 7
WORKER = 64
"""WORKER_WORDS words for each worker, in which BEAT and WANT are counted."""
WORKER_WORDS = 8
BEAT = 0
"""CLOCK_MONOTONIC ns at which the worker last passed its loop: the dead man's word."""
WANT = 1
"""What CONTROL & EPOCH_MASK of an offloaded session must equal: epoch << 16 | 1; 0 = nothing is offloaded."""
WORKERS_MAX = 64
"""A number of its own here, because the program's build reads it; see below."""
ROOM = WORKER + WORKERS_MAX * WORKER_WORDS
"""ROOM_WORDS words for each receive queue, in which LIMIT and HANDED are counted, each in a cache line of its own."""
ROOM_WORDS = 16
LIMIT = 0
"""HANDED may come up to here before the socket has no room; 0: nobody has said."""
HANDED = 8
"""Packets that the program has given to the socket of this queue, or tried to; the program writes it."""
ROOM_KEPT = 512
"""Of that room, what packets of no known session leave free for the others."""
QUEUES_MAX = 64
WORDS = ROOM + QUEUES_MAX * ROOM_WORDS

EPOCH_MASK = 0xFFFF0001
"""Of a session's CONTROL: the epoch and the flag; the version between them is left out."""

assert WORKERS_MAX == limits.WORKERS_MAX
assert SOURCE + 2 * SOURCES_MAX <= ADDRESS
assert ADDRESS + ADDRESSES_MAX <= SECRET
assert SECRET + SECRETS <= WORKER
assert ROOM % 8 == 0, "a cache line is eight words"
assert ROOM_KEPT * 2 < limits.XDP_RING_ROWS
