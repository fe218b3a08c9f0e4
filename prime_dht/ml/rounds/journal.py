"""The journal: what a member is about to say in a round, on its own disk before anybody else can hear it.

A put may reach one replica when its writer crashes, and reads need not show it until later. A member that relied on
reads alone could then say something else in the same phase, and would have equivocated. So a statement is noted first,
and what is noted is said again after a crash (:mod:`~prime_dht.ml.rounds.deliberation`).

The file has one line of JSON for each statement, its subkey and value in hexadecimal. A line is synced before it
counts; the last one, if a crash cut it off, never counted, so nobody heard it.

A client without a data directory has an identity that ends with it; so its notes last as long (:class:`Journals`).
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from prime_dht.durability import sync_path
from prime_dht.errors import LocalProtocolError, StorageError

if TYPE_CHECKING:
    from prime_dht.blocking import BlockingDHT


class Journal:
    """The notes of one round.

    Raises:
        StorageError: the file cannot be read, or is damaged: then it is not known what was said.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._end = 0
        self.notes: dict[bytes, bytes] = {}
        """The values of statements, by subkey, in the order of noting."""
        if path is not None and path.exists():
            self._read(path)

    def note(self, subkey: bytes, value: bytes) -> None:
        """Note a statement, durably; nothing happens if it is noted.

        Raises:
            StorageError: the file cannot be written.
        """
        if subkey in self.notes:
            return
        if self._path is not None:
            self._append(self._path, json.dumps([subkey.hex(), value.hex()]).encode() + b"\n")
        self.notes[subkey] = value

    def discard(self) -> None:
        """The round is over: nothing will be said in it any more.

        Raises:
            StorageError: the file cannot be removed.
        """
        self.notes.clear()
        self._end = 0
        if self._path is not None:
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                raise StorageError(f"cannot remove {self._path}: {error.strerror}") from error

    def _read(self, path: Path) -> None:
        try:
            data = path.read_bytes()
            self._end = data.rfind(b"\n") + 1
            for line in data[: self._end].splitlines():
                subkey, value = json.loads(line)
                self.notes[bytes.fromhex(subkey)] = bytes.fromhex(value)
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            raise StorageError(f"{path} is damaged, so it is not known what this member said in the round") from error

    def _append(self, path: Path, line: bytes) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
                file.truncate(self._end)
                file.seek(self._end)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            if not self._end:
                sync_path(path.parent)
                sync_path(path.parent.parent)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error
        self._end += len(line)


class Journals:
    """Those of a client; of each round one, which is open once at a time, lest the node says this and that.

    Args:
        directory: where they are; ``None``: in memory.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._open: set[str] = set()
        self._kept: dict[str, Journal] = {}
        self._lock = threading.Lock()

    @contextmanager
    def opened(self, name: str) -> Iterator[Journal]:
        """The journal of a round.

        Raises:
            LocalProtocolError: it is open.
            StorageError: the file cannot be read, or is damaged.
        """
        with self._lock:
            if name in self._open:
                raise LocalProtocolError("this node is in the same round already")
            self._open.add(name)
        try:
            journal = self._kept.pop(name, None) or Journal(self._directory and self._directory / f"{name}.jsonl")
            try:
                yield journal
            finally:
                if self._directory is None and journal.notes:
                    self._kept[name] = journal
        finally:
            self._open.discard(name)


_journals: WeakKeyDictionary[BlockingDHT, Journals] = WeakKeyDictionary()
_journals_lock = threading.Lock()


def journals_of(dht: BlockingDHT) -> Journals:
    """The journals of a client: the same for all its members."""
    with _journals_lock:
        return _journals.setdefault(dht, Journals(dht.data_dir and dht.data_dir / "rounds"))
