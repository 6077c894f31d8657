"""Engines and a store with a bug in them, to see that the simulator would find it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from everwall.engine import Engine, EngineConfig
from everwall.policy.match import (
    ANSWER_RESET_CLIENT,
    ANSWER_RESET_SERVER,
    RULE_ANSWER,
    CompiledPolicy,
    allow_all,
)
from everwall.session import image
from everwall.sim.storage import touched
from everwall.sim.storelink import StoreLink
from everwall.store.layout import Epoch
from everwall.store.memory import MemoryStore
from everwall.store.protocol import CLOCK_SCRIPT, DELETE_SCRIPT, Command, Protocol, script_sha
from everwall.store.resp import Wording

Rows = npt.NDArray[np.int64]


class NoRestore(Engine):
    """Does not believe the store."""

    def inbox(self, replies: Rows, now: int) -> list[tuple[int, bytes]]:
        replies = replies.copy()
        replies[replies[:, image.OP] == image.FOUND, image.OP] = image.MISSING
        return super().inbox(replies, now)


class NoPolicyCheck(Engine):
    """Believes the store too much: a restored session is let in whatever policy says."""

    def inbox(self, replies: Rows, now: int) -> list[tuple[int, bytes]]:
        policy = self.state.policy
        self.replace_policy(allow_all())
        released = super().inbox(replies, now)
        self.replace_policy(policy)
        return released


class AlwaysAnswers(Engine):
    """Resets whatever it refuses, also what no rule speaks of."""

    def __init__(self, config: EngineConfig, policy: CompiledPolicy) -> None:
        policy.rules[:, RULE_ANSWER] = ANSWER_RESET_CLIENT | ANSWER_RESET_SERVER
        super().__init__(config, policy)


class NeverRefreshed(Engine):
    """Writes a session when it changes, and never because time has passed."""

    def outbox(self) -> Rows:
        rows = super().outbox()
        told = self.__dict__.setdefault("told", {})
        news = []
        for row in rows:
            key = tuple(row[image.ENDPOINT : image.KEY2 + 1].tolist())
            said = tuple(row[[image.START, image.GENERATION, image.STATE]].tolist())
            refresh = row[image.OP] == image.WRITE and told.get(key) == said
            if row[image.OP] in (image.WRITE_FIRST, image.WRITE):
                told[key] = said
            news.append(not refresh)
        return rows[np.array(news, np.bool_)] if len(rows) else rows


class NeverWaits(Engine):
    """Takes a strict session for stored as soon as it has asked for it."""

    def outbox(self) -> Rows:
        rows = super().outbox()
        asked = rows[(rows[:, image.OP] != image.LOOKUP) & (rows[:, image.CONFIRM] != 0)].copy()
        asked[:, image.OP] = image.WRITTEN
        self.__dict__.setdefault("early", []).extend(super().inbox(asked, 0))
        return rows

    def inbox(self, replies: Rows, now: int) -> list[tuple[int, bytes]]:
        early = self.__dict__.pop("early", [])
        return early + super().inbox(replies, now)


class NeverCompares(Engine):
    """Writes every record as if nobody else could have the session."""

    def outbox(self) -> Rows:
        rows = super().outbox()
        rows[rows[:, image.OP] == image.WRITE, image.OP] = image.WRITE_FIRST
        return rows


class BlindDelete(MemoryStore):
    """A store whose script deletes a record whoever owns it by now."""

    def execute(self, command: Command, now: float = 0.0) -> Any:
        if command[:2] != (b"EVALSHA", script_sha(DELETE_SCRIPT)):
            return super().execute(command, now)
        answers = []
        for bucket, field, _ in touched(command):
            super().execute((b"HDEL", bucket, field), now)
            answers.append(1)
        return answers


class ServersTime(MemoryStore):
    """A store that tells the time of its own clock, wherever that was set to."""

    def execute(self, command: Command, now: float = 0.0) -> Any:
        if command[:2] == (b"EVALSHA", script_sha(CLOCK_SCRIPT)):
            return super().execute((b"TIME",), now)
        return super().execute(command, now)


class NewPlaceOnly(Protocol):
    """Asks where records are written to, and not where they were written to before."""

    def _worded(self, epochs: tuple[Epoch, ...]) -> Wording:
        wording = super()._worded(epochs)
        return wording._replace(others=wording.others[:0])


class NeverHears(StoreLink):
    """Takes what it heard of the layout when it connected for true from then on."""

    def _hear(self, said: bytes | None, asked: int) -> None:
        self._confirmed = asked
