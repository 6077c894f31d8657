"""Where the records of a cluster lie: epochs of bucket counts, and the text by which all nodes agree on them.

An epoch is a number and how many buckets it has. One key, ``{prefix}:buckets``, says which epoch is the present one:

* ``4688``: epoch 0 with so many buckets, as the first node of a cluster writes it;
* ``v1 epoch 1 buckets 9376``: a later one;
* ``v1 epoch 1 buckets 9376 from 4294967295; epoch 0 buckets 4688 until 4294967295``: a change is announced;
* ``v1 epoch 1 buckets 9376 from 1900000010; epoch 0 buckets 4688 until 1900007810``: a change is under way.

During a change a record may lie in either epoch. While it is announced nodes write to the old epoch and ask both, so
that all of them know both before anything is written to the new one. Then the text gets a ``from`` (store time,
seconds) that has come: they write to the new one. After ``until`` the old one is asked no more, because every record
in it has expired. No clock says when the notice is over, but whoever has waited for it (``relayout.py``): a time to
come that stood in the text might come at once, when the server's clock is set forward.

What does not begin in one of these ways is of another version of Everwall and is never overwritten.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from everwall.limits import BUCKET_TTL_S, BUCKETS_MAX

VERSION = 1
NEVER_S = (1 << 32) - 1
"""Store time that no record could bear."""
_EPOCH_MAX = 1 << 31
_TEXT_BYTES_MAX = 200
_EPOCH = r"epoch (\d{1,10}) buckets (\d{1,8})"
_TEXT = re.compile(rf"v{VERSION} {_EPOCH}(?: from (\d{{1,12}}); {_EPOCH} until (\d{{1,12}}))?")
_OTHER_VERSION = re.compile(r"v(\d{1,6}) ")


class LayoutError(ValueError):
    """The text says no layout, or one that this release does not know; the message is for people."""


@dataclass(frozen=True)
class Epoch:
    """So many buckets, and the number in their keys."""

    number: int
    buckets: int

    def __str__(self) -> str:
        return f"epoch {self.number} buckets {self.buckets}"


@dataclass(frozen=True)
class Layout:
    """The present epoch and, during a change, the former one."""

    current: Epoch
    former: Epoch | None = None
    from_s: int = 0
    """Store time from which the current epoch is written to."""
    until_s: int = 0
    """Store time after which the former epoch is asked no more."""

    def __str__(self) -> str:
        """The text in the store."""
        if self.former is not None:
            return f"v{VERSION} {self.current} from {self.from_s}; {self.former} until {self.until_s}"
        return f"v{VERSION} {self.current}" if self.current.number else str(self.current.buckets)

    def epochs(self, now_s: int) -> tuple[Epoch, ...]:
        """Where to ask at ``now_s`` of store time; the first is the one to write to."""
        if self.former is None or now_s > self.until_s:
            return (self.current,)
        if now_s < self.from_s:
            return (self.former, self.current)
        return (self.current, self.former)

    def changes(self, now_s: int) -> bool:
        """Whether a change is under way."""
        return len(self.epochs(now_s)) > 1

    @property
    def is_announced(self) -> bool:
        """Whether a change is under way, and nothing is written to the current epoch yet."""
        return self.former is not None and self.from_s == NEVER_S

    def changed(self, buckets: int, now_s: int) -> Layout:
        """The layout that announces a change to another number of buckets.

        Raises LayoutError while one is under way, and for a number that is out of range or the present one.
        """
        if self.changes(now_s):
            raise LayoutError(f"a change is under way: {self}")
        if not 1 <= buckets <= BUCKETS_MAX:
            raise LayoutError(f"buckets must be 1 to {BUCKETS_MAX}, got {buckets}")
        if buckets == self.current.buckets:
            raise LayoutError(f"there are {buckets} buckets already")
        return Layout(Epoch(self.current.number + 1, buckets), self.current, NEVER_S, NEVER_S)

    def begun(self, now_s: int) -> Layout:
        """The layout after the notice: the current epoch is written to."""
        # No record that is written before lives longer than its bucket.
        return replace(self, from_s=now_s, until_s=now_s + BUCKET_TTL_S)

    def settled(self) -> Layout:
        """The layout that ends a change."""
        return replace(self, former=None, from_s=0, until_s=0)


def meta_key(prefix: str) -> bytes:
    """The key under which a cluster agrees on its layout."""
    return b"{%s}:buckets" % prefix.encode()


def bucket_key(prefix: str, epoch: Epoch, bucket: int) -> bytes:
    """The key of a bucket."""
    return b"{%s:%d:%x}" % (prefix.encode(), epoch.number, bucket)


def bucket_of(field: bytes, epoch: Epoch) -> int:
    """The bucket that a field belongs to."""
    return int.from_bytes(field, "big") % epoch.buckets


def parse(text: object) -> Layout:
    """The layout that the bytes under the key say. Raises LayoutError."""
    words = text[:_TEXT_BYTES_MAX].decode(errors="replace") if isinstance(text, bytes) else ""
    if re.fullmatch(r"\d{1,8}", words):
        return _checked(Layout(Epoch(0, int(words))), words)
    found = _TEXT.fullmatch(words)
    if found is None:
        other = _OTHER_VERSION.match(words)
        if other is not None and int(other[1]) != VERSION:
            raise LayoutError(
                f"holds a layout of version {other[1]}, and this release knows version {VERSION}: "
                "nothing is read or written until this node runs the release that the others run"
            )
        raise LayoutError(f"holds no bucket count: {text!r:.100}")
    number, buckets, begins, old_number, old_buckets, until = (int(word or 0) for word in found.groups())
    if not begins:
        return _checked(Layout(Epoch(number, buckets)), words)
    return _checked(Layout(Epoch(number, buckets), Epoch(old_number, old_buckets), begins, until), words)


def _checked(layout: Layout, words: str) -> Layout:
    for epoch in filter(None, (layout.current, layout.former)):
        if not (1 <= epoch.buckets <= BUCKETS_MAX and epoch.number < _EPOCH_MAX):
            raise LayoutError(f"holds no bucket count: {words!r}")
    if layout.former is not None and layout.former.number == layout.current.number:
        raise LayoutError(f"holds one epoch twice: {words!r}")
    return layout
