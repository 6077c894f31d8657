"""The keys of a cluster beside those of the hot path, and which buckets there are."""

from __future__ import annotations

from everwall.store.layout import Epoch, LayoutError, parse


def epochs_in_use(meta: bytes | None) -> tuple[Epoch, ...]:
    """What the value under ``meta_key`` tells, a former epoch too; nothing where it tells nothing known here."""
    try:
        layout = parse(meta)
    except LayoutError:
        return ()
    return tuple(epoch for epoch in (layout.current, layout.former) if epoch is not None)


def shared_key(prefix: str, name: str) -> bytes:
    """A key of which a cluster has one."""
    return b"{%b}:%b" % (prefix.encode(), name.encode())
