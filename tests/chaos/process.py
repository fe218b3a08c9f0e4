"""The process of a node, as its owner has it: start it, kill it, tell it to do something."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from prime_dht.ids import PeerId
from prime_dht.net.identity import IDENTITY_FILE, load_or_create_identity, peer_id_of

from .node import Settings

if TYPE_CHECKING:
    from trio_typing import TaskStatus

ANSWER_WITHIN_S = 120.0
"""Twice as long as an operation of a node may take."""

Answer = dict[str, Any]


class Down(Exception):
    """The node is not there, or died before it answered."""


class Failed(Exception):
    """The node could not do it; it says why."""


class Process:
    """A node that runs, or does not now; its data directory stays.

    Args:
        number: in the run.
        folder: for its data directory and its log.

    Attributes:
        peer: its peer id.
        kills: how often it was killed.
        complaints: what it did that it should not.
    """

    def __init__(self, number: int, folder: Path) -> None:
        self.number = number
        self.log = folder / f"{self}.log"
        self.data_dir = folder / str(self)
        self.peer: PeerId = peer_id_of(load_or_create_identity(self.data_dir / IDENTITY_FILE))
        self.kills = 0
        self.complaints: list[str] = []
        self._life: _Life | None = None
        self._changing = trio.Lock()  # what is done to it is done in order: who is to start is not killed before it has

    def __str__(self) -> str:
        return f"n{self.number:02}"

    @property
    def runs(self) -> bool:
        """Whether it can be told anything now."""
        return self._life is not None

    async def start(
        self, nursery: trio.Nursery, settings: Settings, *, prefix: Sequence[str], places: trio.CapacityLimiter
    ) -> None:
        """Start it, and wait until it is ready. It is killed with the nursery.

        Args:
            prefix: the command under which it runs.
            places: for those that start at a time.

        Raises:
            Down: it ended before that.
        """
        command = [*prefix, sys.executable, "-m", "tests.chaos.node", settings.to_json()]
        async with self._changing, places:
            life: _Life = await nursery.start(_live, command, self.log)
            with trio.move_on_after(ANSWER_WITHIN_S):
                await life.ready.wait()
            if not life.is_ready:
                raise Down(f"{self} did not become ready: see {self.log}")
            self._life = life
        nursery.start_soon(self._watch, life)

    async def kill(self) -> None:
        """SIGKILL it, if it runs, and wait until it is gone."""
        async with self._changing:
            life, self._life = self._life, None
            if life is not None:
                self.kills += 1
                life.process.kill()
                await life.over.wait()

    async def tell(self, do: str, **arguments: object) -> Answer:
        """Have it do something.

        Raises:
            Down: it does not run, or dies meanwhile.
            Failed: it could not.
        """
        if self._life is None:
            raise Down(f"{self} does not run")
        try:
            with trio.fail_after(ANSWER_WITHIN_S):
                answer = await self._life.ask({"do": do, **arguments})
        except trio.TooSlowError as error:
            self.complaints.append(f"{self} did not answer to {do!r} within {ANSWER_WITHIN_S:g} s")
            raise Failed("no answer") from error
        if answer is None:
            raise Down(f"{self} died")
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    async def _watch(self, life: _Life) -> None:
        await life.over.wait()
        if self._life is life:
            self._life = None
            self.complaints.append(f"{self} ended by itself, with status {life.process.returncode}: see {self.log}")


class _Life:
    """One process, from its start to its end.

    Attributes:
        ready: it can be told something, or has ended; ``is_ready`` says which.
        over: it has ended.
    """

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.is_ready = False
        self.ready = trio.Event()
        self.over = trio.Event()
        self._numbers = count()
        self._waiting: dict[int, trio.Event] = {}
        self._answers: dict[int, Answer] = {}
        self._speaking = trio.Lock()

    async def ask(self, order: Answer) -> Answer | None:
        """What it answers; ``None`` if it dies first."""
        number, answered = next(self._numbers), trio.Event()
        if self.over.is_set():
            return None
        self._waiting[number] = answered
        assert self.process.stdin is not None
        try:
            async with self._speaking:
                await self.process.stdin.send_all(json.dumps({"id": number, **order}).encode() + b"\n")
            await answered.wait()
        except trio.BrokenResourceError:
            return None
        finally:
            del self._waiting[number]
        return self._answers.pop(number, None)

    async def listen(self) -> None:
        """Hear what it says until it ends."""
        unread = b""
        assert self.process.stdout is not None
        async for piece in self.process.stdout:
            *lines, unread = (unread + piece).split(b"\n")
            for line in lines:
                self._heard(json.loads(line))

    def end(self) -> None:
        """It has ended: nobody need wait any longer."""
        self.ready.set()
        self.over.set()
        for answered in self._waiting.values():
            answered.set()

    def _heard(self, said: Answer) -> None:
        number = said.get("id")
        if number is None:
            self.is_ready = True
            self.ready.set()
        elif number in self._waiting:
            self._answers[number] = said
            self._waiting[number].set()


async def _live(
    command: Sequence[str], log: Path, *, task_status: TaskStatus[_Life] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a process to its end, or to that of this task."""
    with log.open("ab") as errors:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
    life = _Life(process)
    task_status.started(life)
    try:
        await life.listen()
        await process.wait()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        life.end()
