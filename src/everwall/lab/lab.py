"""The lab as a whole: sweep, warm, run with and without resiliency, always clean up."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from everwall.lab import capabilities, rundir
from everwall.lab.cluster import Site
from everwall.lab.measure import Run
from everwall.lab.processes import LabError
from everwall.lab.run import Experiment, Options
from everwall.lab.site_loopback import LoopbackSite
from everwall.lab.site_namespaces import NamespaceSite
from everwall.lab.topology import sweep_namespaces
from everwall.warm import WarmError, is_warm, warm

Progress = Callable[[str], None]


def sweep() -> list[str]:
    """Remove what labs left behind that are gone; returns their names."""
    # Namespaces first: a lab is recognised as gone by its directory's lock.
    return sorted({*sweep_namespaces(), *rundir.sweep()})


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the lab as Ctrl-C does, so that it cleans up behind itself."""

    def end(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Cleaning up is not interrupted by a second Ctrl-C; it takes a second at most."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    previous = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def prepare(progress: Progress) -> None:
    """Sweep leftovers and compile what is not compiled yet; raises LabError."""
    for name in sweep():
        progress(f"removed what the lab {name} left behind")
    if not is_warm():
        try:
            warm(progress)
        except WarmError as error:
            raise LabError(f"the kernels do not compile: {error}") from error


def perform(
    options: Options, rung: str, resiliency: bool, progress: Progress, finished: Callable[[Run], None]
) -> list[str]:
    """One run. ``finished`` gets its figures even when the run was not completed.

    Returns how to look inside, when the lab was asked to stay. Raises LabError, KeyboardInterrupt.
    """
    directory = rundir.create()
    site: Site
    if rung == capabilities.LOOPBACK:
        site = LoopbackSite(directory, options.firewalls)
    else:
        site = NamespaceSite(directory, options.firewalls, options.port, options.cut_through, rung)
    experiment = Experiment(options, directory, site, resiliency)
    stays = False
    try:
        finished(experiment.perform(progress))
        stays = options.keep
    finally:
        with undisturbed():
            if stays:
                directory.close(remove=False)
            else:
                experiment.close()
                directory.close(remove=True)
    return _look_inside(experiment) if stays else []


def _look_inside(experiment: Experiment) -> list[str]:
    cluster = experiment.cluster
    script = Path(sys.executable).parent / "everwall"
    everwall = str(script) if script.exists() else f"{sys.executable} -m everwall"
    lines = [f"{everwall} show targets --control {cluster.control('gwlb')}"]
    for name, program in cluster.firewalls.items():
        if program.running:
            lines.append(f"{everwall} show sessions --control {cluster.control(name)}")
    lines.append(f"less {experiment.directory.path}/*.log")
    return lines + experiment.site.look_inside(cluster.gateway.pid)
