"""What a node says: its own log on standard error, and a traffic log of sessions that end, or begin."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import structlog


def configure() -> None:
    """Log lines with time and level on standard error, coloured where that is a terminal."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S.%f"),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        # Looked up for every line: whoever redirects standard error later gets the lines.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )


class TrafficLog:
    """One JSON object a line, written when a session begins or ends; ``path`` None writes nothing."""

    def __init__(self, path: Path | None) -> None:
        self._file = path.open("a", buffering=1) if path is not None else None

    def write(self, lines: list[dict[str, Any]]) -> None:
        """Append lines; one that cannot be written is lost, the traffic is not held up."""
        if self._file is None:
            return
        for line in lines:
            with contextlib.suppress(OSError):
                self._file.write(json.dumps(line, separators=(",", ":")) + "\n")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
