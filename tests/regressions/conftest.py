"""Every story of this folder is told on the engine alone and on each real port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import needs
from tests.namespaces import Linked
from tests.regressions.appliance import KINDS, Appliance, PortAppliance, open_link


@pytest.fixture(scope="session")
def link() -> Iterator[Linked]:
    """The network of the firewalls on real ports."""
    needs.namespaces()
    needs.binary("ip")
    opened = open_link()
    yield opened
    opened.close()


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Appliance]]:
    """Makes a firewall on one kind of port; the arguments are policy and engine settings."""
    kind = str(request.param)
    made: list[Appliance] = []

    def build(*arguments: Any, **config: Any) -> Appliance:
        if kind == "engine":
            made.append(Appliance(*arguments, **config))
        else:
            made.append(PortAppliance(kind, request.getfixturevalue("link"), *arguments, **config))
        return made[-1]

    yield build
    for each in made:
        each.close()


@pytest.fixture
def firewall(make: Callable[..., Appliance]) -> Appliance:
    """A firewall that allows everything and asks no store."""
    return make(resiliency=False)
