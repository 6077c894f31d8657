"""User data as bytes: is it ours to read, and where does it point?"""

from __future__ import annotations

import base64
import binascii
import re
from typing import NamedTuple

from everwall.bootstrap.entries import Layer, read_user_data
from everwall.bootstrap.faults import ParameterError, UserDataError
from everwall.bootstrap.keys import BUCKET_KEY, SECRET_NAME_KEYS

BUCKET_EXPECTED = "bucket or bucket/folder, as my-bootstrap/firewalls"
_BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
_GZIP = b"\x1f\x8b"


class Bucket(NamedTuple):
    """Where a package is."""

    name: str
    prefix: str
    """Without slashes at its ends; may be empty."""


def decode_user_data(data: bytes, file: str) -> Layer:
    """The layer in user data as the metadata service gives it. Raises UserDataError or LineError."""
    if data.startswith(_GZIP):
        raise UserDataError(file, "plain text, not gzip")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserDataError(file, "UTF-8 text", line=line) from None
    if not text.strip():
        raise UserDataError(file, "key=value, parted by semicolons or line ends; it is empty")
    if _is_base64_of_keys(text.strip()):
        raise UserDataError(file, "plain text: it was encoded twice (base64)", line=1)
    return read_user_data(text, file)


def _is_base64_of_keys(text: str) -> bool:
    try:
        inside = base64.b64decode("".join(text.split()), validate=True)
    except (ValueError, binascii.Error):
        return False
    return re.match(rb"\s*[a-z][a-z_-]+=", inside) is not None


def parse_bucket(text: str) -> Bucket | None:
    """``bucket``, ``bucket/folder`` or ``s3://bucket/folder``; None for anything else."""
    text = text.removeprefix("s3://")
    name, _, prefix = text.partition("/")
    prefix = prefix.strip("/")
    if not re.fullmatch(_BUCKET, name) or ".." in text or "//" in text:
        return None
    return Bucket(name, prefix)


def bucket_of(layer: Layer) -> Bucket | None:
    """The package that user data points to, if any. Raises ParameterError."""
    entry = layer.entries.get(BUCKET_KEY)
    if entry is None or not entry.value:
        return None
    bucket = parse_bucket(entry.value)
    if bucket is None:
        line = entry.line or None
        raise ParameterError(entry.file, BUCKET_EXPECTED, line=line, key=entry.key, value=entry.value)
    return bucket


def secret_name_of(layer: Layer) -> str | None:
    """The secret with more keys that user data points to, if any."""
    found = [layer.entries[key] for key in SECRET_NAME_KEYS if key in layer.entries]
    named = [entry for entry in found if entry.value]
    if len(named) > 1:
        expected = f"only one of {named[0].key} and {named[1].key}"
        raise ParameterError(named[1].file, expected, line=named[1].line or None, key=named[1].key)
    return named[0].value if named else None
