"""Seals of what is small and rare in the store: host names, and what nodes say of themselves.

Keyed BLAKE2b (RFC 7693), with keys derived from the cluster secret for each purpose. Sessions have their own seal, in
``session.record``.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

TAG_BYTES = 8


class Seal:
    """Makes seals with the first of the secrets and believes those of each."""

    def __init__(self, secrets: Sequence[bytes], purpose: bytes) -> None:
        """``purpose``: at most 16 bytes, so that what is sealed for one place holds nowhere else."""
        self._keys = [hashlib.blake2b(secret, digest_size=32, person=purpose).digest() for secret in secrets]

    def digest(self, size: int, *parts: bytes) -> bytes:
        """``size`` bytes that nobody without the secret can tell beforehand."""
        return _digest(self._keys[0], size, parts)

    def close(self, place: bytes, text: bytes) -> bytes:
        """The text as it is stored: its tag, then itself. It opens only at this place."""
        return self.digest(TAG_BYTES, place, text) + text

    def open(self, place: bytes, stored: bytes) -> bytes | None:
        """The text, or None when it was not sealed for this place, or altered."""
        tag, text = stored[:TAG_BYTES], stored[TAG_BYTES:]
        for key in self._keys:
            if hmac.compare_digest(tag, _digest(key, TAG_BYTES, (place, text))):
                return text
        return None


def _digest(key: bytes, size: int, parts: Sequence[bytes]) -> bytes:
    whole = b"".join(b"%d:%b" % (len(part), part) for part in parts)
    return hashlib.blake2b(whole, key=key, digest_size=size).digest()
