"""What is read of a table while its worker goes on."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def comes_and_goes(tags: np.ndarray) -> Iterator[None]:
    """Everything in a table is there, and is not, by turns."""
    ended = threading.Event()

    def turn() -> None:
        while not ended.is_set():
            np.bitwise_xor(tags, 1, out=tags)

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
