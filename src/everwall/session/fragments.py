"""IP fragments: the first one tells the ports, the later ones follow it.

Nothing is reassembled. A later fragment whose first one was not seen, or was not let through, has
no ports to be judged by and is dropped by name. IPv4 identifies a datagram by addresses, protocol
and identification (RFC 791), IPv6 by addresses and identification alone (RFC 8200 section 4.5).
"""

from __future__ import annotations

from everwall.flow import hash_of, signature
from everwall.kernels import kernel
from everwall.limits import BUCKET_SLOTS, FRAGMENT_NS
from everwall.session import state
from everwall.session import table as t
from everwall.verdict import Verdict
from everwall.wire import meta as m

_FORWARD = int(Verdict.FORWARD)
_FRAGMENT_UNMATCHED = int(Verdict.FRAGMENT_UNMATCHED)
_FRAGMENT_TABLE_FULL = int(Verdict.FRAGMENT_TABLE_FULL)


@kernel
def _key(meta, i, seed):
    """The key of a datagram; unlike a flow's it has a direction."""
    if meta[i, m.FAMILY] == 4:
        key1 = (meta[i, m.SOURCE_LOW] << 32) | meta[i, m.DESTINATION_LOW]
        protocol = meta[i, m.PROTOCOL]
    else:
        key1 = signature(
            meta[i, m.SOURCE_HIGH],
            meta[i, m.SOURCE_LOW],
            meta[i, m.DESTINATION_HIGH],
            meta[i, m.DESTINATION_LOW],
            seed,
        )
        protocol = 0
    return key1, meta[i, m.FRAGMENT_ID] | (protocol << 32) | (meta[i, m.FAMILY] << 40)


@kernel
def _set_start(fragments, hashed):
    sets = fragments.shape[0] // BUCKET_SLOTS
    return (hashed & (sets - 1)) * BUCKET_SLOTS


@kernel
def _entry(fragments, meta, i, key1, key2, hashed, now):
    """(slot of the datagram or -1, a slot that may be taken or -1)."""
    free = -1
    start = _set_start(fragments, hashed)
    for slot in range(start, start + BUCKET_SLOTS):
        if fragments[slot, state.FRAGMENT_EXPIRY] <= now:
            free = slot
            continue
        if (
            fragments[slot, t.KEY2] == key2
            and fragments[slot, t.KEY1] == key1
            and fragments[slot, t.KEY0] == meta[i, m.ENDPOINT]
            and fragments[slot, state.FRAGMENT_ADDRESSES] == meta[i, m.SOURCE_HIGH]
            and fragments[slot, state.FRAGMENT_ADDRESSES + 1] == meta[i, m.SOURCE_LOW]
            and fragments[slot, state.FRAGMENT_ADDRESSES + 2] == meta[i, m.DESTINATION_HIGH]
            and fragments[slot, state.FRAGMENT_ADDRESSES + 3] == meta[i, m.DESTINATION_LOW]
        ):
            return slot, free
    return -1, free


@kernel
def datagram_hash(meta, i, seed):
    """The hash of the datagram that a fragment is part of."""
    key1, key2 = _key(meta, i, seed)
    return hash_of(meta[i, m.ENDPOINT], key1, key2, seed)


@kernel
def complete(fragments, meta, i, seed, now):
    """Fill the ports and the protocol of a later fragment from its first one; FORWARD or why not.

    ``fragments``: int64[slots, FRAGMENT_COLUMNS], a power of two number of sets.
    """
    key1, key2 = _key(meta, i, seed)
    hashed = hash_of(meta[i, m.ENDPOINT], key1, key2, seed)
    slot, _ = _entry(fragments, meta, i, key1, key2, hashed, now)
    if slot < 0:
        return _FRAGMENT_UNMATCHED
    meta[i, m.SOURCE_PORT] = fragments[slot, state.FRAGMENT_SOURCE_PORT]
    meta[i, m.DESTINATION_PORT] = fragments[slot, state.FRAGMENT_DESTINATION_PORT]
    meta[i, m.PROTOCOL] = fragments[slot, state.FRAGMENT_PROTOCOL]
    return _FORWARD


@kernel
def remember(fragments, meta, i, seed, now, displace):
    """Let the later fragments of a datagram follow its first one; FORWARD, or FRAGMENT_TABLE_FULL.

    With ``displace`` the oldest entry makes room where there is none.
    """
    key1, key2 = _key(meta, i, seed)
    hashed = hash_of(meta[i, m.ENDPOINT], key1, key2, seed)
    slot, free = _entry(fragments, meta, i, key1, key2, hashed, now)
    if slot < 0:
        slot = free
    if slot < 0:
        if not displace:
            return _FRAGMENT_TABLE_FULL
        slot = _oldest(fragments, hashed)
    fragments[slot, t.KEY0] = meta[i, m.ENDPOINT]
    fragments[slot, t.KEY1] = key1
    fragments[slot, t.KEY2] = key2
    fragments[slot, state.FRAGMENT_ADDRESSES] = meta[i, m.SOURCE_HIGH]
    fragments[slot, state.FRAGMENT_ADDRESSES + 1] = meta[i, m.SOURCE_LOW]
    fragments[slot, state.FRAGMENT_ADDRESSES + 2] = meta[i, m.DESTINATION_HIGH]
    fragments[slot, state.FRAGMENT_ADDRESSES + 3] = meta[i, m.DESTINATION_LOW]
    fragments[slot, state.FRAGMENT_SOURCE_PORT] = meta[i, m.SOURCE_PORT]
    fragments[slot, state.FRAGMENT_DESTINATION_PORT] = meta[i, m.DESTINATION_PORT]
    fragments[slot, state.FRAGMENT_PROTOCOL] = meta[i, m.PROTOCOL]
    fragments[slot, state.FRAGMENT_EXPIRY] = now + FRAGMENT_NS
    return _FORWARD


@kernel
def _oldest(fragments, hashed):
    """The entry of a set that was made first."""
    start = _set_start(fragments, hashed)
    oldest = start
    for slot in range(start + 1, start + BUCKET_SLOTS):
        if fragments[slot, state.FRAGMENT_EXPIRY] < fragments[oldest, state.FRAGMENT_EXPIRY]:
            oldest = slot
    return oldest
