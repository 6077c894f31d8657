"""Where a bootstrap comes from when it is not on this machine: EC2's metadata service, a bucket, a secret.

Nothing here is called unless the operator has named the source, on the command line or in what another source said. The
metadata service is asked by IMDSv2 only: a token by PUT, then the question with it. Buckets and secrets need boto3, the
extra ``aws``; it finds its credentials by itself (an instance profile, in a cloud).
"""

from __future__ import annotations

import http.client
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from everwall.bootstrap.faults import PackageError, SourceError
from everwall.bootstrap.package import CONFIG
from everwall.config import FILE_BYTES_MAX
from everwall.limits import (
    METADATA_ATTEMPTS,
    METADATA_TIMEOUT_S,
    METADATA_TOKEN_S,
    PACKAGE_FILES_MAX,
    USER_DATA_BYTES_MAX,
)

METADATA = "http://169.254.169.254"
METADATA_VARIABLE = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
"""The environment variable by which the AWS tools know another address of the service."""
_TOKEN = "X-aws-ec2-metadata-token"
_AGAIN_S = 0.2
_MEMORY = Path("/dev/shm")


# The instance metadata service ------------------------------------------------------------------------


def user_data() -> bytes:
    """The user data of this EC2 instance. Raises SourceError: where there is none, too."""
    answer = _ask_metadata("/latest/user-data")
    if answer is None:
        raise SourceError("user-data", "user data: this instance was started without any")
    return answer


def instance_region() -> str:
    """The region of this EC2 instance. Raises SourceError."""
    answer = _ask_metadata("/latest/meta-data/placement/region")
    if answer is None or not re.fullmatch(rb"[a-z0-9-]{1,40}", answer):
        raise SourceError("user-data", "a region from the metadata service; give --aws-region")
    return answer.decode()


def _ask_metadata(path: str) -> bytes | None:
    """The answer, or None for 404; asked again where the service does not answer or is busy."""
    base = os.environ.get(METADATA_VARIABLE) or METADATA
    why = ""
    for attempt in range(METADATA_ATTEMPTS):
        if attempt:
            time.sleep(_AGAIN_S * 2**attempt)
        try:
            token = _http(base, "PUT", "/latest/api/token", {f"{_TOKEN}-ttl-seconds": str(METADATA_TOKEN_S)})
            if token[0] != 200:
                why = f"no token: status {token[0]}"
                if token[0] in (400, 403, 404, 405):
                    break  # not this service, or switched off for this instance
                continue
            status, body = _http(base, "GET", path, {_TOKEN: token[1].decode("ascii", "replace")})
        except (OSError, http.client.HTTPException) as error:
            why = str(error) or type(error).__name__
            continue
        if status == 404:
            return None
        if status == 200:
            if len(body) > USER_DATA_BYTES_MAX:
                raise SourceError(base + path, f"at most {USER_DATA_BYTES_MAX} bytes")
            return body
        why = f"status {status}"
    raise SourceError(
        base + path,
        f"an answer of the instance metadata service ({why}); is this an EC2 instance with it enabled, "
        "and in a container its hop limit at least 2?",
    )


def _http(base: str, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """Status and body. No proxy is asked: the service is on this machine's host."""
    url = urlsplit(base)
    if url.scheme != "http" or not url.hostname:
        raise SourceError(METADATA_VARIABLE, "the address of a metadata service, as http://169.254.169.254")
    connection = http.client.HTTPConnection(url.hostname, url.port or 80, timeout=METADATA_TIMEOUT_S)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read(USER_DATA_BYTES_MAX + 1)
    finally:
        connection.close()


# Buckets and secrets ----------------------------------------------------------------------------------


class Fetched:
    """A package from a bucket: the names of everything, and the files of config/ in a folder of ours.

    The folder is in memory where the system has such a place, for us alone, and goes with this object.
    """

    def __init__(self, names: list[str], folder: tempfile.TemporaryDirectory[str]) -> None:
        self.names = names
        self.folder = Path(folder.name)
        self._folder = folder


def fetch_bucket(bucket: str, prefix: str, region: str | None = None) -> Fetched:
    """The package under a prefix of a bucket. Raises SourceError or PackageError."""
    place = f"s3://{bucket}/{prefix}".rstrip("/")
    start = f"{prefix}/" if prefix else ""
    client = _client("s3", region, place)
    folder = tempfile.TemporaryDirectory(
        prefix="everwall-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None
    )
    names: list[str] = []
    with _Refusals(place, "s3:ListBucket on the bucket and s3:GetObject on its objects"):
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=start):
            for entry in page.get("Contents", ()):
                name = entry["Key"].removeprefix(start)
                if name:
                    names.append(name)
                if len(names) > PACKAGE_FILES_MAX:
                    raise PackageError(place, f"a package of at most {PACKAGE_FILES_MAX} objects")
                if re.fullmatch(rf"{CONFIG}/[^/]+", name):
                    _fetch_object(client, bucket, entry, Path(folder.name) / name, place)
    if not names:
        raise SourceError(place, "a package: there is no object with this prefix")
    return Fetched(names, folder)


def _fetch_object(client: Any, bucket: str, entry: dict[str, Any], target: Path, place: str) -> None:
    if entry["Size"] > FILE_BYTES_MAX:
        raise PackageError(f"{place}: {entry['Key']}", f"a file of at most {FILE_BYTES_MAX >> 20} MiB")
    if target.name in (".", ".."):
        return
    target.parent.mkdir(mode=0o700, exist_ok=True)
    target.touch(mode=0o600)
    target.write_bytes(client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read())


def secret_text(name: str, region: str | None = None) -> str:
    """The text of a secret by its name or ARN. Raises SourceError; the text is in no message."""
    place = f"secret:{name}"
    if name.startswith("arn:") and region is None:
        region = name.split(":")[3] if name.count(":") > 3 else None
    client = _client("secretsmanager", region, place)
    with _Refusals(
        place, "secretsmanager:GetSecretValue on the secret (and kms:Decrypt on a key of your own)"
    ):
        answer = client.get_secret_value(SecretId=name)
    text = answer.get("SecretString")
    if not isinstance(text, str):
        raise SourceError(place, "a secret of text, not of bytes")
    return text


def _client(service: str, region: str | None, place: str) -> Any:
    try:
        import boto3
        import botocore.config
        import botocore.exceptions
    except ImportError:
        raise SourceError(place, "boto3: install everwall with the extra `aws`") from None
    settings = botocore.config.Config(
        connect_timeout=5, read_timeout=15, retries={"mode": "standard", "total_max_attempts": 3}
    )
    try:
        session = boto3.session.Session(region_name=region)
        if session.region_name is None:
            session = boto3.session.Session(region_name=_region_here(place))
        return session.client(service, config=settings)
    except botocore.exceptions.BotoCoreError as error:
        raise SourceError(place, f"usable AWS settings ({error})") from None


def _region_here(place: str) -> str:
    try:
        return instance_region()
    except SourceError:
        raise SourceError(place, "a region: give --aws-region or AWS_REGION") from None


_ADVICE = {
    "NoSuchBucket": "a bucket that exists, in this region",
    "NoSuchKey": "an object that is still there",
    "ResourceNotFoundException": "a secret that exists, in this region",
    "InvalidRequestException": "a secret that is not marked for deletion",
    "PermanentRedirect": "a bucket in this region: give --aws-region",
    "AuthorizationHeaderMalformed": "a bucket in this region: give --aws-region",
}


class _Refusals:
    """Turns what boto3 raises into a SourceError that says what to do; the asked-for thing is in ``place``."""

    def __init__(self, place: str, permissions: str) -> None:
        self.place = place
        self.permissions = permissions

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import botocore.exceptions as known

        if isinstance(error, known.ClientError):
            code = str(error.response.get("Error", {}).get("Code", "?"))
            refused = "Denied" in code or code in ("403", "DecryptionFailure")
            expected = f"the permission {self.permissions}" if refused else _ADVICE.get(code, "an answer")
            raise SourceError(self.place, f"{expected} ({code})") from None
        if isinstance(error, (known.NoCredentialsError, known.PartialCredentialsError)):
            raise SourceError(self.place, "AWS credentials: an instance profile, or those of the AWS tools")
        if isinstance(error, known.BotoCoreError):
            raise SourceError(self.place, f"an answer from AWS ({error})") from None
