"""Members whose gradients come slowly or never hold up nobody else's; what is missing is looked for again, in virtual
time, from a source of whom each test says how it behaves.
"""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from prime_dht.errors import BlobError, QueryError, StorageError
from prime_dht.ids import PeerId
from prime_dht.ml.codecs import encode
from prime_dht.ml.gradients.bringing import (
    AGAIN_AFTER_S,
    FETCHES_AT_ONCE,
    FIRST_PAUSE_S,
    MAX_PAGES,
    PAUSE_AT_MOST_S,
    PUBLISHERS_AT_ONCE,
    TURN_S,
    bring,
)
from prime_dht.ml.gradients.gathering import Expected, Gathering
from prime_dht.node.results import Found, FoundPage
from prime_dht.testing.gradient_samples import ROUND, TENSORS, found, member
from prime_dht.wire.kad import MAX_BATCH

EXPECTED = Expected(round=ROUND)
VALUE = encode(TENSORS)
A_YEAR_S = 3e7


Fetch = Callable[[Path, Callable[[int], None]], Awaitable[None]]


async def never(path: Path, tell: Callable[[int], None]) -> None:
    await trio.sleep_forever()


async def at_once(path: Path, tell: Callable[[int], None]) -> None:
    await trio.lowlevel.checkpoint()
    write(path, VALUE)


def at_pace(bytes_per_s: float, *, stalls_at: float = math.inf) -> Fetch:
    """A fetch of a byte at a time that goes on where it was interrupted, and may stall at some byte."""

    async def fetch(path: Path, tell: Callable[[int], None]) -> None:
        partial = path.with_suffix(".partial")
        come = partial.stat().st_size if partial.exists() else 0
        while come < len(VALUE):
            tell(come)
            await trio.sleep(1 / bytes_per_s if come < stalls_at else math.inf)
            come += 1
            write(partial, VALUE[:come])
        write(path, VALUE)

    return fetch


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


class FakeSource:
    """Entries to look at, and how the blobs of each member come.

    Attributes:
        looks: the publishers that were looked at, and when.
        fetches: the members whose blobs were begun to fetch, in order.
    """

    def __init__(self, *entries: Found, fetch: Callable[[PeerId], Fetch] | None = None) -> None:
        self.entries = list(entries)
        self.looks: list[tuple[float, set[PeerId] | None]] = []
        self.fetches: list[PeerId] = []
        self._fetch = fetch

    async def page(self, publishers: Collection[PeerId] | None, cursor: bytes) -> FoundPage:
        await trio.lowlevel.checkpoint()
        self.looks.append((trio.current_time(), None if publishers is None else set(publishers)))
        return FoundPage(tuple(one for one in self.entries if publishers is None or one.publisher in publishers))

    async def fetch(self, found: Found, path: Path, tell: Callable[[int], None]) -> None:
        self.fetches.append(found.publisher)
        assert self._fetch is not None
        await self._fetch(found.publisher)(path, tell)


async def brought(
    source: FakeSource, members: Collection[PeerId] | None, timeout_s: float = A_YEAR_S
) -> Gathering[PeerId]:
    gathering = Gathering[PeerId](EXPECTED, lambda one: one.publisher, members)
    await bring(gathering, source, EXPECTED, lambda: gathering.sought, timeout_s=timeout_s)
    return gathering


async def test_values_that_are_small_come_with_one_look(autojump_clock: MockClock) -> None:
    members = [member(number) for number in range(200)]
    source = FakeSource(*map(found, members))
    gathering = await brought(source, members)
    assert gathering.gradients.keys() == set(members)
    assert (source.looks, source.fetches) == ([(0.0, None)], [])
    assert trio.current_time() == 0


async def test_members_whose_values_never_come_hold_up_nobody(autojump_clock: MockClock) -> None:
    silent = [member(number) for number in range(2 * FETCHES_AT_ONCE)]
    honest = [member(number) for number in range(100, 100 + 2 * FETCHES_AT_ONCE)]
    source = FakeSource(
        *(found(one, is_blob=True) for one in silent + honest), fetch=lambda one: never if one in silent else at_once
    )
    gathering = await brought(source, silent + honest, timeout_s=3 * TURN_S)
    assert gathering.gradients.keys() == set(honest)
    late = gathering.late("in time")
    assert late.keys() == set(silent)
    assert source.fetches[: 4 * FETCHES_AT_ONCE] == silent + honest


async def test_where_all_are_equally_slow_one_after_the_other_comes_whole(autojump_clock: MockClock) -> None:
    slow = [member(number) for number in range(4 * FETCHES_AT_ONCE)]
    whole_s = 6 * TURN_S
    source = FakeSource(*(found(one, is_blob=True) for one in slow), fetch=lambda one: at_pace(len(VALUE) / whole_s))
    gathering = await brought(source, slow, timeout_s=4 * TURN_S + whole_s)
    assert len(gathering.gradients) == FETCHES_AT_ONCE
    gathering = await brought(source, slow)
    assert gathering.gradients.keys() == set(slow)


@pytest.mark.parametrize("stalls_at", [0, len(VALUE) - 1], ids=["at its first byte", "at its last byte"])
async def test_one_that_stalls_comes_after_those_that_are_slow(autojump_clock: MockClock, stalls_at: int) -> None:
    stalling = [member(number) for number in range(FETCHES_AT_ONCE)]
    slow = [member(number) for number in range(10, 10 + FETCHES_AT_ONCE)]
    pace = len(VALUE) / (3 * TURN_S)
    fetches = dict.fromkeys(stalling, at_pace(1e6, stalls_at=stalls_at)) | dict.fromkeys(slow, at_pace(pace))
    source = FakeSource(*(found(one, is_blob=True) for one in fetches), fetch=fetches.__getitem__)
    gathering = await brought(source, fetches, timeout_s=7 * TURN_S)
    assert gathering.gradients.keys() == set(slow)


async def test_what_came_before_it_was_put_off_is_not_fetched_again(autojump_clock: MockClock) -> None:
    slow, others = member(0), [member(number) for number in range(1, 1 + 2 * FETCHES_AT_ONCE)]
    fetches = {slow: at_pace(len(VALUE) / (1.5 * TURN_S)), **dict.fromkeys(others, at_pace(len(VALUE) / TURN_S * 1.1))}
    source = FakeSource(*(found(one, is_blob=True) for one in fetches), fetch=fetches.__getitem__)
    gathering = await brought(source, fetches)
    assert gathering.gradients.keys() == fetches.keys()
    assert source.fetches.count(slow) == 2
    assert trio.current_time() < 4 * TURN_S


async def test_one_that_is_slow_is_not_disturbed_while_nobody_waits(autojump_clock: MockClock) -> None:
    source = FakeSource(found(member(1), is_blob=True), fetch=lambda one: at_pace(len(VALUE) / (100 * TURN_S)))
    gathering = await brought(source, [member(1)])
    assert gathering.gradients.keys() == {member(1)}
    assert source.fetches == [member(1)]


async def test_what_nobody_has_is_asked_for_again(autojump_clock: MockClock) -> None:
    async def on_its_way(path: Path, tell: Callable[[int], None]) -> None:
        if len(source.fetches) < 3:
            raise BlobError("nobody has it")
        await at_once(path, tell)

    source = FakeSource(found(member(1), is_blob=True), fetch=lambda one: on_its_way)
    gathering = await brought(source, [member(1)])
    assert gathering.gradients.keys() == {member(1)}
    assert trio.current_time() == (1 + 2) * AGAIN_AFTER_S


async def test_what_nobody_has_in_time_is_named_with_the_reason(autojump_clock: MockClock) -> None:
    async def refused(path: Path, tell: Callable[[int], None]) -> None:
        raise BlobError("nobody has it")

    source = FakeSource(found(member(1), is_blob=True), found(member(2)), fetch=lambda one: refused)
    gathering = await brought(source, [member(1), member(2)], timeout_s=10)
    assert gathering.gradients.keys() == {member(2)}
    assert gathering.late("within 10 s") == {
        member(1): f"its {len(VALUE)} bytes did not come within 10 s: nobody has it"
    }
    assert trio.current_time() == 10


async def test_who_publishes_late_is_found_by_looking_again_ever_less_often(autojump_clock: MockClock) -> None:
    source = FakeSource(found(member(1)))

    async def publish_late() -> None:
        await trio.sleep(7)
        source.entries.append(found(member(2)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish_late)
        gathering = await brought(source, [member(1), member(2)])
    assert gathering.gradients.keys() == {member(1), member(2)}
    assert [publishers for _, publishers in source.looks] == [None] + (len(source.looks) - 1) * [{member(2)}]
    pauses = [round(later - sooner, 3) for (sooner, _), (later, _) in zip(source.looks, source.looks[1:], strict=False)]
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.6, PAUSE_AT_MOST_S, PAUSE_AT_MOST_S]
    assert len(pauses) == 7


async def test_of_many_who_are_missing_no_more_are_named_at_once_than_a_request_takes(
    autojump_clock: MockClock,
) -> None:
    many = {member(number) for number in range(3 * PUBLISHERS_AT_ONCE)}
    source = FakeSource()
    await brought(source, many, timeout_s=1.5 * FIRST_PAUSE_S)
    (_, everybody), *named = source.looks
    assert everybody is None
    assert [len(publishers or ()) for _, publishers in named] == 3 * [PUBLISHERS_AT_ONCE]
    assert set().union(*(publishers or () for _, publishers in named)) == many
    assert PUBLISHERS_AT_ONCE <= MAX_BATCH


async def test_who_publishes_too_late_is_missing(autojump_clock: MockClock) -> None:
    gathering = await brought(FakeSource(), [member(1)], timeout_s=3)
    assert (gathering.gradients, gathering.late("in time")) == ({}, {})
    assert trio.current_time() == 3


class Unreachable(FakeSource):
    """Nobody can be asked the first times."""

    def __init__(self, *entries: Found, times: float) -> None:
        super().__init__(*entries)
        self._times = times

    async def page(self, publishers: Collection[PeerId] | None, cursor: bytes) -> FoundPage:
        page = await super().page(publishers, cursor)
        if len(self.looks) <= self._times:
            raise QueryError("no server is known to ask")
        return page


async def test_a_look_that_fails_is_tried_again(autojump_clock: MockClock) -> None:
    source = Unreachable(found(member(1)), times=3)
    gathering = await brought(source, [member(1)])
    assert gathering.gradients.keys() == {member(1)}
    assert len(source.looks) == 4


async def test_if_nobody_can_be_asked_in_all_the_time_that_is_an_error(autojump_clock: MockClock) -> None:
    with pytest.raises(QueryError, match=r"nobody could be asked within 5 s: no server is known to ask"):
        await brought(Unreachable(times=1000), [member(1)], timeout_s=5)


async def test_a_full_disk_is_raised_as_itself(autojump_clock: MockClock) -> None:
    async def full(path: Path, tell: Callable[[int], None]) -> None:
        raise StorageError("no space left on device")

    source = FakeSource(found(member(1), is_blob=True), found(member(2), is_blob=True), fetch=lambda one: full)
    with pytest.raises(StorageError, match="no space left"):
        await brought(source, [member(1), member(2)])


async def test_a_store_that_fails_is_raised_as_itself(autojump_clock: MockClock) -> None:
    class Broken(FakeSource):
        async def page(self, publishers: Collection[PeerId] | None, cursor: bytes) -> FoundPage:
            await super().page(publishers, cursor)
            raise StorageError("the store is closed")

    with pytest.raises(StorageError, match="the store is closed"):
        await brought(Broken(), [member(1)])


async def test_a_key_full_of_rubbish_hides_nobody(autojump_clock: MockClock) -> None:
    class Rubbish(FakeSource):
        """One member fills more pages than a look reads, and all others come behind them."""

        async def page(self, publishers: Collection[PeerId] | None, cursor: bytes) -> FoundPage:
            page = await super().page(publishers, cursor)
            if publishers is not None and member(0) not in publishers:
                return page
            return FoundPage((found(member(0), value=b"rubbish", created_at_us=len(self.looks)),), b"more")

    source = Rubbish(found(member(1)), found(member(2)))
    gathering = await brought(source, [member(0), member(1), member(2)])
    assert gathering.gradients.keys() == {member(1), member(2)}
    assert gathering.rejected.keys() == {member(0)}
    assert len(source.looks) == MAX_PAGES + 1


async def test_behind_however_much_rubbish_everybody_is_found_in_the_end(autojump_clock: MockClock) -> None:
    class Rubbish(FakeSource):
        """As many pages of one member's rubbish as two looks read, and then another's gradient."""

        async def page(self, publishers: Collection[PeerId] | None, cursor: bytes) -> FoundPage:
            await super().page(publishers, cursor)
            number = int(cursor or b"0")
            if number == 2 * MAX_PAGES:
                return FoundPage((found(member(1)),), None)
            return FoundPage((found(member(0), value=b"rubbish", created_at_us=number),), b"%d" % (number + 1))

    source = Rubbish()
    gathering = await brought(source, None)
    assert gathering.gradients.keys() == {member(1)}
    assert len(source.looks) == 2 * MAX_PAGES + 1


async def test_a_file_goes_when_it_was_read_and_all_go_in_the_end(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    beside: list[str] = []

    async def last(path: Path, tell: Callable[[int], None]) -> None:
        await trio.sleep(1)
        beside.extend(os.listdir(path.parent))
        await at_once(path, tell)

    fetches = {member(0): never, member(1): at_once, member(2): last}
    source = FakeSource(*(found(one, is_blob=True) for one in fetches), fetch=fetches.__getitem__)
    gathering = await brought(source, fetches, timeout_s=10)
    assert gathering.gradients.keys() == {member(1), member(2)}
    assert beside == os.listdir(tmp_path) == []
