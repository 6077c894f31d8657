"""The lab's files are read by the same code that reads everybody's, and without a warning."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from everwall.bootstrap.load import load_bootstrap
from everwall.lab import certificates, configuration, rundir
from everwall.lab.processes import Program
from everwall.lab.site_loopback import LoopbackSite
from everwall.lab.site_namespaces import NamespaceSite
from everwall.lab.store import Store
from everwall.policy.rules import read_policy


@pytest.fixture(params=[NamespaceSite, LoopbackSite])
def site(request: pytest.FixtureRequest) -> NamespaceSite | LoopbackSite:
    directory = rundir.create()
    try:
        if request.param is LoopbackSite:
            return LoopbackSite(directory, 3)
        return NamespaceSite(directory, 3, port="xdp", cut_through=True)
    finally:
        directory.close(remove=True)


def a_store(site: NamespaceSite | LoopbackSite, folder: Path, program: Program) -> Store:
    authority = certificates.make(folder, site.store_host).authority
    return Store(site.store_host, site.store_port, "secret", authority, [], program)


@pytest.mark.parametrize("resiliency", [True, False])
def test_a_node_reads_its_init_cfg(
    site: NamespaceSite | LoopbackSite, tmp_path: Path, resiliency: bool
) -> None:
    store = a_store(site, tmp_path, None)  # type: ignore[arg-type]
    for place in site.nodes:
        text = configuration.init_cfg(
            place, site.gateway.address, store, configuration.new_secret(), resiliency, tmp_path / "fw.sock"
        )
        path = configuration.write(tmp_path / place.name / "init-cfg.txt", text)
        configuration.write(tmp_path / place.name / "policy.yaml", configuration.policy())
        bootstrap = load_bootstrap(path)
        read = bootstrap.config
        assert bootstrap.warnings == ()
        assert read.hostname == place.name
        assert read.resiliency.enabled is resiliency
        assert read.gwlb_inspect
        assert read.redis_tls
        assert (read.port, read.cut_through) == (place.port, place.cut_through)
        assert path.stat().st_mode & 0o077 == 0


def test_what_bounces_has_an_xdp_program_at_the_other_end() -> None:
    """XDP_TX through a veth is lost where the peer has none."""
    directory = rundir.create()
    try:
        assert NamespaceSite(directory, 2, port="xdp", cut_through=True).gateway.xdp_pass == ("fw1", "fw2")
        assert NamespaceSite(directory, 2, port="raw", cut_through=False).gateway.xdp_pass == ()
    finally:
        directory.close(remove=True)


def test_the_policy_has_one_zone_and_one_rule_that_opens_it(tmp_path: Path) -> None:
    path = configuration.write(tmp_path / "policy.yaml", configuration.policy())
    policy = read_policy(path)
    assert [zone.name for zone in policy.zones] == [configuration.ZONE]
    assert [(rule.name, rule.action) for rule in policy.rules] == [("lab-traffic", "allow")]
    assert policy.intrazone_default.action == "deny"
    (warning,) = policy.warnings
    assert warning.endswith("rule lab-traffic allows everything in its zones"), "which is what it is for"


def test_the_load_balancer_notices_within_the_bound_that_is_promised(
    site: NamespaceSite | LoopbackSite,
) -> None:
    written = yaml.safe_load(yaml.safe_dump(configuration.gateway(site.gateway, site.nodes)))
    interval, timeout = (
        written["health_check_interval_seconds"],
        written["health_check_timeout_seconds"],
    )
    assert (interval, timeout, written["unhealthy_threshold_count"]) == (0.2, 0.2, 2)
    assert round(configuration.DETECTION_BOUND_MS) == 2 * 200 + 200 + 200
    assert [target["id"] for target in written["targets"]] == ["fw1", "fw2", "fw3"]
