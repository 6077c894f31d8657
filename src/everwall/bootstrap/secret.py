"""The cluster secret: what it looks like, and where it may come from after the node has started.

A package made for the vendor's firewall has no such key. A node that boots from one runs, with
resiliency held back, and looks again in the places named here until the secret is there.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path

from pydantic import SecretBytes

from everwall.bootstrap.faults import ClusterSecretError
from everwall.config import read_text
from everwall.limits import CLUSTER_SECRET_BYTES_MIN

EXPECTED = f"at least {CLUSTER_SECRET_BYTES_MIN} random bytes in hexadecimal or base64"
ENVIRONMENT = "EVERWALL_CLUSTER_SECRET"
"""The environment variable that may hold the secret itself; ``_FILE`` and ``_ID`` behind it name where it is."""


def decode_secret(text: str) -> bytes | None:
    """Hexadecimal where it can be that, else base64; None where it is neither."""
    if re.fullmatch(r"(?:[0-9a-fA-F]{2})+", text):
        return bytes.fromhex(text)
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None


def is_secret(text: str) -> bool:
    """Whether a text may be a cluster secret, so that no message shows it."""
    return len(decode_secret(text) or b"") >= CLUSTER_SECRET_BYTES_MIN


def parse_secret(text: str) -> SecretBytes | None:
    """The secret, or None where it cannot be one (``EXPECTED`` says what one is)."""
    secret = decode_secret(text.strip())
    if secret is None or len(secret) < CLUSTER_SECRET_BYTES_MIN:
        return None
    return SecretBytes(secret)


def looks_random(secret: SecretBytes) -> bool:
    """False for what somebody typed."""
    value = secret.get_secret_value()
    return len(set(value)) >= len(value) // 4


def read_secret_file(path: Path, warn: Callable[[str], None]) -> SecretBytes | None:
    """The secret in a file, None while there is no such file. Raises ConfigError."""
    if not os.path.isfile(path):
        return None
    secret = parse_secret(read_text(path))
    if secret is None:
        raise ClusterSecretError(path, EXPECTED)
    with contextlib.suppress(OSError):  # it may have gone since it was read
        if path.stat().st_mode & 0o077:
            warn(f"{path}: can be read by others than its owner")
    return secret
