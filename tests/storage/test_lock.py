"""A store is open in one process at a time: a lock goes with the process that holds it, whoever that has forked."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from prime_dht.errors import StorageError
from prime_dht.storage.sqlite_file import lock
from prime_dht.testing.forking import forked

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prime.db"


def is_free(path: Path) -> bool:
    with ExitStack() as resources:
        try:
            lock(path, resources)
        except StorageError:
            return False
        return True


def hold_with_a_worker(path: Path, working: int, end: int) -> None:
    """Take the lock and fork a worker, which says when it works, and does so until the end; then wait to be killed."""
    lock(path, ExitStack())
    if not os.fork():
        os.write(working, b"!")
        os.read(end, 1)
        os._exit(0)
    signal.pause()


@contextmanager
def killed_while_its_worker_works(path: Path) -> Iterator[None]:
    """A process that held the lock is dead, and a worker that it forked is not."""
    works, working = os.pipe()
    end, ending = os.pipe()
    holder = os.fork()
    if not holder:
        try:
            os.close(ending)
            hold_with_a_worker(path, working, end)
        finally:
            os._exit(1)
    os.close(working)
    try:
        try:
            assert os.read(works, 1)
            assert not is_free(path)
        finally:
            os.kill(holder, signal.SIGKILL)
            os.waitpid(holder, 0)
        yield
    finally:
        for descriptor in (ending, end, works):
            os.close(descriptor)


def test_a_worker_that_outlives_the_killed_process_that_forked_it_does_not_keep_its_lock(path: Path) -> None:
    with killed_while_its_worker_works(path):
        assert is_free(path)


def test_what_a_forked_child_closes_stays_locked_by_its_parent(path: Path) -> None:
    with ExitStack() as resources:
        lock(path, resources)
        child = os.fork()
        if not child:
            try:
                resources.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert not is_free(path)
    assert is_free(path)


def test_a_lock_that_is_let_go_of_is_free_though_a_child_was_forked_meanwhile(path: Path) -> None:
    resources = ExitStack()
    lock(path, resources)
    with forked():
        resources.close()
        assert is_free(path)


def test_no_file_stays_open(path: Path) -> None:
    free = lowest_free_descriptor()
    with ExitStack() as resources:
        lock(path, resources)
        assert not is_free(path)
    assert lowest_free_descriptor() == free


def lowest_free_descriptor() -> int:
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor
