"""Writes the pages of docs/ that are made from code; with --check only says which are out of date."""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from everwall.policy.schema import schema  # noqa: E402
from everwall.verdict import Verdict, is_drop  # noqa: E402

SECTIONS = [
    (0, "Packets that live"),
    (2, "The outer packet (GENEVE)"),
    (20, "The inner packet"),
    (40, "Session and policy"),
    (60, "Store"),
    (70, "Port"),
    (80, "Load balancer"),
]


def verdicts() -> str:
    """The page about every outcome of a packet."""
    lines = [
        "# What became of a packet",
        "",
        "Every packet has exactly one outcome, and every outcome one counter: `everwall show counters`.",
        "A *normal* one is seen every day in a healthy cluster (strays, scans, policy at work). One that is",
        "not normal says that something is misconfigured, overloaded or broken.",
        "",
        "*This page is written by `make docs` from `src/everwall/verdict.py`.*",
    ]
    starts = [start for start, _ in SECTIONS]
    for (start, title), end in zip(SECTIONS, [*starts[1:], 1 << 30], strict=True):
        lines += [
            "",
            f"## {title}",
            "",
            "| name | number | drop | normal | meaning |",
            "|---|---:|---|---|---|",
        ]
        for verdict in Verdict:
            if start <= verdict < end:
                drop = "yes" if is_drop(verdict) else "no"
                normal = "yes" if verdict.normal else "**no**"
                lines.append(
                    f"| `{verdict.label}` | {verdict.value} | {drop} | {normal} | {verdict.meaning} |"
                )
    return "\n".join(lines) + "\n"


def policy_schema() -> str:
    """The form of a policy file, for editors."""
    return json.dumps(schema(), indent=1) + "\n"


PAGES = {"docs/verdicts.md": verdicts, "docs/policy.schema.json": policy_schema}


def main() -> int:
    check = "--check" in sys.argv[1:]
    stale = []
    for name, page in PAGES.items():
        path = ROOT / name
        text = page()
        if path.exists() and path.read_text() == text:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"wrote {name}")
    if check and stale:
        print(f"out of date, run `make docs`: {', '.join(stale)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
