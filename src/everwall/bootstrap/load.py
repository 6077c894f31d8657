"""From a named source to a configuration: what is read, in which order, and what goes before what.

============================= ==========================================================================
``--bootstrap``               what is read
============================= ==========================================================================
a folder                      a package: the init-cfg.txt for this machine, and ``bootstrap.xml``
a file                        an init-cfg.txt
``user-data``                 this EC2 instance's user data, and what that points to: a bucket, a secret
``user-data:FILE``            the same from a file, to try it out
``s3://bucket/folder``        a package in a bucket
``secret:NAME``               a secret in Secrets Manager
============================= ==========================================================================

User data goes before the secret, both before init-cfg.txt, and that before bootstrap.xml.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import SecretBytes

from everwall.bootstrap import sources
from everwall.bootstrap.device import read_device
from everwall.bootstrap.entries import Layer, read_init_cfg, read_secret
from everwall.bootstrap.faults import ClusterSecretError, SourceError
from everwall.bootstrap.init_cfg import InitCfg
from everwall.bootstrap.machine import Machine, this_machine
from everwall.bootstrap.package import Package, look_over, names_in
from everwall.bootstrap.parse import parse_layers
from everwall.bootstrap.secret import ENVIRONMENT, EXPECTED, looks_random, parse_secret, read_secret_file
from everwall.bootstrap.user_data import (
    BUCKET_EXPECTED,
    Bucket,
    bucket_of,
    decode_user_data,
    parse_bucket,
    secret_name_of,
)
from everwall.config import read_bytes, read_text
from everwall.limits import SECRET_FETCH_RETRY_S, SECRET_RETRY_S

USER_DATA = "user-data"
BUCKET_PREFIX = "s3://"
SECRET_PREFIX = "secret:"


Warn = Callable[[str], None]


@dataclass(frozen=True)
class Given:
    """What the command line and the environment say beside the source."""

    serial: str | None = None
    region: str | None = None
    secret: SecretBytes | None = field(default=None, repr=False)
    secret_file: Path | None = None
    secret_id: str | None = None
    accept_ports: bool = False


@dataclass(frozen=True)
class LateSecret:
    """Where the cluster secret may still come from."""

    place: str
    every_s: float
    read: Callable[[Warn], SecretBytes | None]
    """The secret, or None as long as it is not there, and a warning of what is odd about it. Raises ConfigError; may
    take seconds."""


@dataclass(frozen=True)
class Bootstrap:
    """What a source said."""

    config: InitCfg
    source: str
    read: tuple[str, ...]
    """What was read, in the order in which one goes before the other."""
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What only ``everwall bootstrap check`` says."""
    late_secret: LateSecret | None = None
    """Where a cluster secret that is missing is awaited from."""
    fetched: sources.Fetched | None = None
    """Keeps files from a bucket, as long as somebody may read them."""


def given_by_environment(
    secret_file: Path | None = None,
    secret_id: str | None = None,
    serial: str | None = None,
    region: str | None = None,
    accept_ports: bool = False,
) -> Given:
    """The options, and the secret itself from the environment. Raises ClusterSecretError."""
    text = os.environ.get(ENVIRONMENT)
    secret = parse_secret(text) if text else None
    if text and secret is None:
        raise ClusterSecretError(ENVIRONMENT, EXPECTED)
    places = {ENVIRONMENT: secret, f"{ENVIRONMENT}_FILE": secret_file, f"{ENVIRONMENT}_ID": secret_id}
    named = [name for name, value in places.items() if value]
    if len(named) > 1:
        raise ClusterSecretError(named[1], f"only one of {named[0]} and {named[1]} (or their options)")
    return Given(serial, region, secret, secret_file, secret_id, accept_ports)


def load_bootstrap(
    source: str | Path, given: Given | None = None, machine: Machine | None = None
) -> Bootstrap:
    """Read a source and all that it points to. Raises BootstrapError or ConfigError."""
    given = given or Given()
    loader = _Loader(given, machine or this_machine(given.serial))
    return loader.load(str(source))


class _Loader:
    def __init__(self, given: Given, machine: Machine) -> None:
        self.given = given
        self.machine = machine
        self.platform = machine.platform
        self.layers: list[Layer] = []
        self.package: Package | None = None
        self.fetched: sources.Fetched | None = None
        self.xml: Path | None = None
        self.warnings: list[str] = []

    def load(self, source: str) -> Bootstrap:
        self._read(source)
        config, warnings = parse_layers(self.layers, self.platform)
        if self.xml is not None and config.policy is None:
            config = replace(config, policy=self.xml)
        elif self.xml is not None:
            self.warnings.append(f"{self.xml}: its policy is not used, because everwall-policy names another")
        config = replace(config, accept_ports=config.accept_ports or self.given.accept_ports)
        config, late = self._with_secret(config)
        notes: list[str] = []
        if self.package is not None:
            self.warnings += self.package.warnings
            notes += [*self.package.notes, *self._unused(config)]
        return Bootstrap(
            config,
            source,
            tuple(layer.file for layer in self.layers),
            (*warnings, *self.warnings),
            tuple(notes),
            late,
            self.fetched,
        )

    # Sources --------------------------------------------------------------------------------------------

    def _read(self, source: str) -> None:
        if source == USER_DATA:
            self._user_data(sources.user_data(), USER_DATA)
        elif source.startswith(f"{USER_DATA}:"):
            file = source.removeprefix(f"{USER_DATA}:")
            self._user_data(read_bytes(Path(file)), file)
        elif source.startswith(BUCKET_PREFIX):
            bucket = parse_bucket(source)
            if bucket is None:
                raise SourceError(source, f"{BUCKET_PREFIX} and {BUCKET_EXPECTED}")
            self._bucket(bucket)
        elif source.startswith(SECRET_PREFIX):
            self._secret(source.removeprefix(SECRET_PREFIX))
        elif os.path.isdir(source):
            folder = Path(source)
            self._package(names_in(folder), str(folder), folder)
        else:
            self.layers.append(read_init_cfg(read_text(Path(source)), source, Path(source).parent))

    def _user_data(self, data: bytes, file: str) -> None:
        self.platform = "aws"
        layer = decode_user_data(data, file)
        self.layers.append(layer)
        bucket, secret = bucket_of(layer), secret_name_of(layer)
        if secret is not None:
            self._secret(secret)
        if bucket is not None:
            self._bucket(bucket)

    def _secret(self, name: str) -> None:
        self.platform = "aws"
        text = sources.secret_text(name, self.given.region)
        self.layers.append(read_secret(text, f"{SECRET_PREFIX}{name}"))

    def _bucket(self, bucket: Bucket) -> None:
        self.platform = "aws"
        fetched = self.fetched = sources.fetch_bucket(*bucket, self.given.region)
        self._package(fetched.names, f"{BUCKET_PREFIX}{'/'.join(filter(None, bucket))}", fetched.folder)

    def _package(self, names: list[str], place: str, folder: Path) -> None:
        package = self.package = look_over(names, place, self.machine.names)
        path = folder / package.init_cfg
        self.layers.append(read_init_cfg(read_text(path), f"{place}/{package.init_cfg}", path.parent))
        if package.bootstrap_xml is not None:
            self.xml = folder / package.bootstrap_xml
            self.layers.append(read_device(self.xml))

    def _unused(self, config: InitCfg) -> list[str]:
        """Files in config/ that nobody names."""
        assert self.package is not None
        named = {
            Path(layer.entries[key].value).name
            for layer in self.layers
            for key in _FILES
            if key in layer.entries
        }
        return [
            f"{self.package.place}: {name}: not used, because no key names it"
            for name in self.package.others
            if Path(name).name not in named
        ]

    # The cluster secret ---------------------------------------------------------------------------------

    def _with_secret(self, config: InitCfg) -> tuple[InitCfg, LateSecret | None]:
        """With the secret from outside, if it is there; else with where it may come from."""
        late = self._late(config)
        if self.given.secret is None and late is None:
            return config, None
        where = late.place if late else ENVIRONMENT
        if config.cluster_secret is not None:
            self.warnings.append(f"{config.file}: its cluster secret is not used, because of {where}")
        secret = None
        try:
            if late is not None:
                secret = late.read(self.warnings.append)
            else:
                secret = _looked_over(self.given.secret, where, config, self.warnings.append)
        except SourceError as error:
            # Traffic does not wait for a secret: the node starts, and asks again.
            self.warnings.append(f"{error.title}: {error}")
        awaited = late.place if late is not None and secret is None else ""
        config = replace(config, cluster_secret=secret, cluster_secret_awaited=awaited)
        return config, late if awaited else None

    def _late(self, config: InitCfg) -> LateSecret | None:
        file, name = self.given.secret_file, self.given.secret_id
        if self.given.secret is not None:
            return None
        if file is not None:
            return LateSecret(
                str(file),
                SECRET_RETRY_S,
                lambda warn: _looked_over(read_secret_file(file, warn), str(file), config, warn),
            )
        name = name or config.cluster_secret_id
        if name is None:
            return None
        place, region = f"{SECRET_PREFIX}{name}", self.given.region
        return LateSecret(
            place,
            SECRET_FETCH_RETRY_S,
            lambda warn: _looked_over(_fetch_secret(name, region), place, config, warn),
        )


def _looked_over(secret: SecretBytes | None, place: str, config: InitCfg, warn: Warn) -> SecretBytes | None:
    """A secret from outside, whenever it comes. Raises ClusterSecretError where it is the second one again."""
    if secret is not None and not looks_random(secret):
        warn(f"{place}: does not look random; try: openssl rand -hex 32")
    if secret is not None and secret == config.cluster_secret_second:
        raise ClusterSecretError(config.file, "two secrets that differ: the second is the first again")
    return secret


_FILES = (
    "everwall-policy",
    "everwall-cluster-secret-file",
    "everwall-cluster-secret-second-file",
    "everwall-redis-auth-file",
)


def _fetch_secret(name: str, region: str | None) -> SecretBytes:
    """The cluster secret as the text of a secret. Raises SourceError or ClusterSecretError."""
    secret = parse_secret(sources.secret_text(name, region))
    if secret is None:
        raise ClusterSecretError(f"{SECRET_PREFIX}{name}", EXPECTED)
    return secret
