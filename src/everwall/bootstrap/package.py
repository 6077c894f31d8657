"""A bootstrap package: the folders that the vendor's firewall knows, and what becomes of each file in them.

``look_over`` sees names only, so that a folder and a bucket are judged alike. The vendor's firewall gives up on a
package with a folder too few or a file too many; here only a missing init-cfg.txt is an error, the rest is said.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from everwall.bootstrap.faults import NoConfigurationError, PackageError
from everwall.config import did_you_mean, shown
from everwall.limits import PACKAGE_FILES_MAX

CONFIG = "config"
NEEDED = (CONFIG, "content", "license", "software")
OPTIONAL = ("plugins", "ace")
INIT_CFG = "init-cfg.txt"
BOOTSTRAP_XML = "bootstrap.xml"
AUTHCODES = "authcodes"

_WHY_NOT = {
    "content": "applications are told apart by what Everwall brings along, and nothing is updated from a package",
    "license": "Everwall needs no licence",
    "software": "Everwall is upgraded the way it was installed",
    "plugins": "there are no plugins",
    "ace": "applications are told apart by what Everwall brings along",
}
_DEPTH_MAX = 4


@dataclass(frozen=True)
class Package:
    """What is in a package."""

    place: str
    """The folder or bucket, as messages name it."""
    init_cfg: str
    """The name of the file that counts, as ``config/init-cfg.txt``."""
    bootstrap_xml: str | None
    others: tuple[str, ...]
    """More files in config/: used where init-cfg.txt names them."""
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What is worth a line only to somebody who asks."""


def names_in(folder: Path) -> list[str]:
    """Files below a folder, relative to it; folders end with a slash. Raises PackageError."""
    names: list[str] = []
    try:
        for root, folders, files in os.walk(folder, onerror=_raise):
            depth = len(Path(root).relative_to(folder).parts)
            folders[:] = sorted(folders) if depth < _DEPTH_MAX else []
            for name in (*(f"{each}/" for each in folders), *sorted(files)):
                names.append((Path(root).relative_to(folder) / name).as_posix() + "/" * name.endswith("/"))
            if len(names) > PACKAGE_FILES_MAX:
                raise PackageError(folder, f"a package of at most {PACKAGE_FILES_MAX} files")
    except OSError as error:
        raise PackageError(folder, f"a readable folder ({error.strerror or error})") from None
    return names


def _raise(error: OSError) -> None:
    raise error


def look_over(names: Sequence[str], place: str, machine: Sequence[str] = ()) -> Package:
    """What a package of these names holds for a machine of these serial numbers. Raises NoConfigurationError."""
    folders = {name.split("/")[0] for name in names if "/" in name}
    files = [name for name in names if not name.endswith("/")]
    config = [name.removeprefix(f"{CONFIG}/") for name in files if name.startswith(f"{CONFIG}/")]
    init_cfg = _choose(config, machine)
    if init_cfg is None:
        raise NoConfigurationError(place, _missing(config, files, folders, machine))
    warnings, notes = list(_foreign(files, folders, place)), list(_explained(files, place))
    for folder in NEEDED:
        if folder not in folders:
            notes.append(
                f"{place}: {folder}/ is missing: not needed here, but the vendor's firewall wants it"
            )
    others = []
    for name in config:
        if name in (init_cfg, BOOTSTRAP_XML):
            continue
        if name.casefold().endswith(f"-{INIT_CFG}"):
            notes.append(f"{place}: {CONFIG}/{name}: not used, because it is for another machine")
        elif name == INIT_CFG:
            notes.append(f"{place}: {CONFIG}/{name}: not used, because {init_cfg} is for this machine")
        else:
            others.append(f"{CONFIG}/{name}")
            if name.casefold() == BOOTSTRAP_XML or get_close_matches(name, [BOOTSTRAP_XML], cutoff=0.85):
                warnings.append(f"{place}: {CONFIG}/{name}: not read: the name is {BOOTSTRAP_XML}, exactly")
    xml = f"{CONFIG}/{BOOTSTRAP_XML}" if BOOTSTRAP_XML in config else None
    return Package(place, f"{CONFIG}/{init_cfg}", xml, tuple(others), tuple(warnings), tuple(notes))


def _choose(config: Sequence[str], machine: Sequence[str]) -> str | None:
    """The file for this machine before the one for all."""
    for own in machine:
        for name in config:
            if name.casefold() == f"{own}-{INIT_CFG}".casefold():
                return name
    return INIT_CFG if INIT_CFG in config else None


def _missing(config: Sequence[str], files: Sequence[str], folders: set[str], machine: Sequence[str]) -> str:
    """What to do about it."""
    expected = f"a bootstrap package with {CONFIG}/{INIT_CFG} in it"
    others = [name for name in config if name.endswith(f"-{INIT_CFG}")]
    if others:
        known = ", ".join(machine) or "no serial number that can be read here: give --serial"
        return f"{expected}, or one for this machine ({known}); there is {', '.join(others)}"
    if INIT_CFG in files:
        return f"{expected} ({INIT_CFG} stands beside {CONFIG}/, not in it)"
    nested = [name for name in files if name.endswith(f"/{CONFIG}/{INIT_CFG}")]
    if nested:
        return f"{expected} (it is in {nested[0].removesuffix(f'/{CONFIG}/{INIT_CFG}')}/: name that folder)"
    if CONFIG not in folders:
        return f"{expected} ({CONFIG}/ is missing{did_you_mean(CONFIG, sorted(folders))})"
    return f"{expected}{did_you_mean(INIT_CFG, list(config))}"


def _foreign(files: Sequence[str], folders: set[str], place: str) -> Iterator[str]:
    known = (*NEEDED, *OPTIONAL)
    for folder in sorted(folders - {*known}):
        yield (
            f"{place}: {shown(folder + '/')} is not part of a package{did_you_mean(folder, known)}: "
            "ignored here, the vendor's firewall refuses it"
        )
    for name in files:
        if "/" not in name:
            yield (
                f"{place}: {shown(name)} is not part of a package: ignored here, "
                "the vendor's firewall refuses it"
            )


def _explained(files: Sequence[str], place: str) -> Iterator[str]:
    for name in files:
        folder, slash, rest = name.partition("/")
        if not slash or folder not in _WHY_NOT or rest.startswith("."):
            continue  # .gitkeep and the like: what keeps an empty folder where folders cannot be empty
        hint = ""
        if folder == "license" and rest != AUTHCODES and not rest.endswith(".key"):
            hint = f" (and no licence: the vendor reads {AUTHCODES}, without an ending, and *.key)"
        yield f"{place}: {name}: not used, because {_WHY_NOT[folder]}{hint}"
