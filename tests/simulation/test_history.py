"""trio runs tasks in an order that follows from a seed, and the log would show any difference."""

from __future__ import annotations

from random import Random

import trio
from trio.testing import MockClock

from prime_dht.ids import PeerId
from prime_dht.testing.simulation.history import Log, one_history


def order_of_tasks(seed: int) -> list[int]:
    """In which order 20 tasks run that wake at one instant, having been started in an order of their own."""
    order: list[int] = []

    async def sleeper(number: int) -> None:
        await trio.sleep(1.0)
        order.append(number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(sleeper, number)

    with one_history(seed):
        trio.run(main, clock=MockClock(autojump_threshold=0))
    return order


def test_tasks_run_in_an_order_that_follows_from_the_seed() -> None:
    assert order_of_tasks(1) == order_of_tasks(1)
    assert order_of_tasks(1) != order_of_tasks(2)
    assert sorted(order_of_tasks(1)) == list(range(20))


def test_afterwards_trio_is_as_it_was() -> None:
    trio_random: Random = trio._core._run._r  # type: ignore[attr-defined]
    before = trio_random.getstate()
    order_of_tasks(1)
    assert trio_random.getstate() == before


def log_of(message: bytes, *, arrives_after_s: float) -> str:
    log = Log()

    async def main() -> None:
        await trio.sleep(arrives_after_s)
        log.message(PeerId(b"sender"), PeerId(b"receiver"), message)
        await trio.sleep_until(trio.current_time() - arrives_after_s + 1)
        log.note_messages()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    (line,) = log.lines
    return line


def test_the_log_tells_a_message_from_another_and_its_time_from_another() -> None:
    lines = [
        log_of(b"one", arrives_after_s=0.0),
        log_of(b"two", arrives_after_s=0.0),
        log_of(b"one", arrives_after_s=0.5),
    ]
    assert all(line.startswith("0:00:01.000000 1 messages, ") for line in lines)
    assert len(set(lines)) == 3
    assert log_of(b"one", arrives_after_s=0.5) == lines[2]
