"""What all tests share: tasks that run in one order every time, and assertions of a suite that explain themselves."""

from __future__ import annotations

import gc
from importlib import import_module

import pytest
from trio.testing import MockClock

pytest.register_assert_rewrite(
    "prime_dht.testing.storage_conformance",
    "prime_dht.testing.storage_conformance_capacity",
    "prime_dht.testing.storage_conformance_ops",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The test that takes longest begins: at the end it would keep one core busy while the others have nothing left."""
    items.sort(key=lambda item: item.path.name != "test_crash.py")


def pytest_collection_finish() -> None:
    """What there is by now stays, and whole swarms live in memory here: to look for garbage in all that, as often as
    Python does by default, took a fifth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


@pytest.fixture(autouse=True)
def _one_history() -> None:
    """trio shuffles the tasks that are ready to run; from a fixed seed a test goes the same way every time.

    What is shuffled is in the order in which tasks were started: pytest-trio throws the switch that makes it so.
    """
    import_module("trio._core._run")._r.seed(0)


@pytest.fixture
def patient_clock(mock_clock: MockClock) -> MockClock:
    """A clock that jumps to the next deadline when nothing has happened, not even on a socket, for a little while.

    So it stands still while the test computes, and nodes that share a busy machine do not miss each other's deadlines.
    It is not for tests in which worker threads take long.
    """
    mock_clock.autojump_threshold = 0.05
    return mock_clock
