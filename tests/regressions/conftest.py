"""Every story of this folder is told on the engine alone and on each real port."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import needs
from tests.regressions.appliance import KINDS, Appliance, Place, PortAppliance, open_link


@pytest.fixture(scope="session")
def place() -> Iterator[Callable[[str], Place]]:
    """The place of a kind of port, opened when it is first asked for."""
    opened = contextlib.ExitStack()
    places: dict[str, Place] = {}

    def of(kind: str) -> Place:
        needs.namespaces()
        needs.binary("ip")
        if kind in ("xdp", "cut-through"):
            needs.xdp()
        if kind not in places:
            link = open_link()
            opened.callback(link.close)
            places[kind] = Place(kind, link)
            opened.callback(places[kind].close)
        return places[kind]

    with opened:
        yield of


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, place: Callable[[str], Place]) -> Iterator[Callable[..., Appliance]]:
    """Makes a firewall on one kind of port; the arguments are policy and engine settings."""
    kind = str(request.param)
    made: list[Appliance] = []

    def build(*arguments: Any, **config: Any) -> Appliance:
        if kind == "engine":
            made.append(Appliance(*arguments, **config))
        else:
            made.append(PortAppliance(place(kind), *arguments, **config))
        return made[-1]

    yield build
    for each in made:
        each.close()


@pytest.fixture
def firewall(make: Callable[..., Appliance]) -> Appliance:
    """A firewall that allows everything and asks no store."""
    return make(resiliency=False)
