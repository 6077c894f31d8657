"""Every example of a bootstrap in the repository, found and not listed."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"


def sources() -> dict[str, str]:
    """What ``--bootstrap`` is given for each, by its place: packages anywhere in docs/ and tests/, and user data."""
    found = {}
    for top in ("docs", "tests"):
        for init_cfg in (ROOT / top).glob("**/config/*init-cfg.txt"):
            package = init_cfg.parents[1]
            found[str(package.relative_to(ROOT))] = str(package)
        for data in (ROOT / top).glob("**/*user-data*.txt"):
            found[str(data.relative_to(ROOT))] = f"user-data:{data}"
    return dict(sorted(found.items()))
