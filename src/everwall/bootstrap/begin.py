"""A new package, with comments for whoever fills it in and a cluster secret of its own."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from everwall.bootstrap.faults import PackageError
from everwall.bootstrap.package import CONFIG, INIT_CFG, NEEDED
from everwall.limits import CLUSTER_SECRET_BYTES_MIN

SECRET_FILE = "cluster-secret"
POLICY_FILE = "policy.yaml"

_INIT_CFG = """\
# What an Everwall node is told before it starts. One key=value a line, no spaces around the equals sign; a line
# that begins with # is a comment. Every key: docs/configuration.md.
# Look it over with: everwall bootstrap check FOLDER

# The addresses are the machine's own.
type=dhcp-client
# The node's name in logs and reports; without it the machine's.
#hostname=firewall-a

# Gateway load balancers send to the first interface: it carries data, the second management.
# jumbo-frame: inner packets of up to 8500 bytes are expected.
op-command-modes=mgmt-interface-swap

# set-sess-ress:True           keep sessions in the store, so that they outlive this node
# aws-gwlb-inspect:enable      accept GENEVE; without it every packet is refused
# set-dp-cores:2               workers that share the packets
# aws-gwlb-associate-vpce:vpce-0123456789abcdef0@ethernet1/1.10      an endpoint's zone, by its subinterface
plugin-op-commands=set-sess-ress:True,aws-gwlb-inspect:enable

# The session store, Redis 7 or Valkey 8 and later, over TLS; reached through the management interface.
#redis-endpoint=master.sessions.abc123.use1.cache.amazonaws.com:6379
#redis-auth=
# Base64 of the PEM certificate that its certificate is checked against; without it the system's authorities.
#redis-certificate=

# The key that seals sessions in the store: the same on all nodes of the cluster, and on nobody else.
everwall-cluster-secret-file=cluster-secret

# Whose GENEVE is believed: the subnets of the load balancer. Without it the data interface's, with a warning.
#everwall-geneve-sources=10.0.1.0/24,10.0.2.0/24

# What may pass. Without rules, nothing.
everwall-policy=policy.yaml
"""

_POLICY = """\
# The policy: rules are read from the top, the first that matches decides. The form: docs/policy.md.
# What is not allowed here is denied.

# As soon as one endpoint is in a zone, packets of all others are dropped.
#zones:
#  inside:
#    endpoints: vpce-0123456789abcdef0

rules: []
#  - name: the site is public
#    source: any
#    destination: 10.0.0.0/16
#    service: [tcp/80, tcp/443]
#    action: allow
"""


def begin_package(folder: Path) -> list[Path]:
    """Write a package into a folder that is empty or not there yet; returns the files. Raises PackageError.

    Only its owner may read what is in config/: a secret is there, and passwords will be.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise PackageError(folder, "an empty folder, or none: nothing is overwritten")
        for name in NEEDED:
            (folder / name).mkdir(mode=0o700 if name == CONFIG else 0o755)
        secret = secrets.token_hex(CLUSTER_SECRET_BYTES_MIN) + "\n"
        texts = {INIT_CFG: _INIT_CFG, POLICY_FILE: _POLICY, SECRET_FILE: secret}
        return [_write(folder / CONFIG / name, text) for name, text in texts.items()]
    except OSError as error:
        raise PackageError(folder, f"a folder that can be written ({error.strerror or error})") from None


def _write(path: Path, text: str) -> Path:
    # Made with its mode: there is no moment at which others can read it.
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return path
