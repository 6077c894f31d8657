"""What can be wrong with a bootstrap: named errors, each with file, line, key and value.

The first two names are the vendor's ("Verify Bootstrap Completion"), so that a search for what a log says finds what
is known about it; the others are ours. Of the vendor's list three cannot happen here: there is no image to boot, no
licence to install, and no content update to commit. Every one stops the start; what does not is a warning.
"""

from __future__ import annotations

from everwall.config import ConfigError


class BootstrapError(ConfigError):
    """Any of them; ``title`` is the name that logs and ``everwall bootstrap check`` show."""

    title = "Bootstrap error"


class NoConfigurationError(BootstrapError):
    """There is no init-cfg.txt where one is needed."""

    title = "No bootstrap configuration file"


class NetworkingError(BootstrapError):
    """type, addresses, gateways or DNS servers; the message lists the bad value."""

    title = "Bad or no parameters for mandatory networking information in the bootstrap configuration file"


class LineError(BootstrapError):
    """A line that is no ``key=value``, or a key that stands twice."""

    title = "Bad line in the bootstrap configuration"


class ParameterError(BootstrapError):
    """A key whose value cannot be used."""

    title = "Bad parameter in the bootstrap configuration"


class CommandError(BootstrapError):
    """A word of plugin-op-commands or op-command-modes whose argument cannot be used."""

    title = "Bad operational command in the bootstrap configuration"


class ClusterSecretError(BootstrapError):
    """The key that seals sessions cannot be used; its value is never shown."""

    title = "Bad cluster secret"


class PackageError(BootstrapError):
    """A package folder that cannot be read."""

    title = "Bad bootstrap package"


class UserDataError(BootstrapError):
    """User data that is something else: a script, cloud-init, compressed."""

    title = "Bad user data"


class SourceError(BootstrapError):
    """The metadata service, a bucket or a secret does not give what it was asked for."""

    title = "Bootstrap source cannot be read"


class ZoneError(BootstrapError):
    """The policy does not fit the rest: an interface that is in no zone."""

    title = "Bad policy for this bootstrap"


def titled(error: Exception) -> str:
    """The error as a log shows it: its name first, where it has one."""
    return f"{error.title}: {error}" if isinstance(error, BootstrapError) else str(error)
