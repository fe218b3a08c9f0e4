"""What a contained block leaves: its exceptions, and nothing in memory."""

from __future__ import annotations

from collections.abc import Callable
from weakref import ref

import pytest

from prime_dht.net.hardening.containment import contained


class Held:
    """Something that a block refers to."""


@pytest.mark.parametrize(
    ("make", "faults", "passes"),
    [
        (ValueError, 1, False),
        (lambda: ExceptionGroup("two", [ValueError(), OSError()]), 2, False),
        (KeyboardInterrupt, 0, True),
        (lambda: BaseExceptionGroup("mixed", [ValueError(), KeyboardInterrupt()]), 1, True),
    ],
    ids=["a fault", "a group", "no fault", "a mixed group"],
)
@pytest.mark.usefixtures("uncollected")
def test_what_is_raised_does_not_keep_the_frames_it_went_through(
    make: Callable[[], BaseException], faults: int, *, passes: bool
) -> None:
    def fail() -> None:
        held = Held()
        gone.append(ref(held))
        raise make()

    gone: list[ref[Held]] = []
    seen: list[int] = []
    passed = False
    try:
        with contained(lambda group: seen.append(len(group.exceptions))):
            fail()
    except BaseException:  # noqa: BLE001 (interrupts are what is tested)
        passed = True
    assert (sum(seen), passed) == (faults, passes)
    assert gone[0]() is None
