"""The small parts of a node that have a law of their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from prime_dht.background import background_nursery
from prime_dht.errors import ValidationError
from prime_dht.events import EntriesExpired
from prime_dht.ids import Key, OpId, PeerId, TimestampUs
from prime_dht.node.arguments import bytes_of, entry_key, peer_id_of, publishers_of
from prime_dht.node.cache import OVERHEAD_BYTES, Question, ReadCache
from prime_dht.node.feed import Feed
from prime_dht.node.results import Found

EVENT = EntriesExpired(values_dropped=1, retired=0)


def found(value: bytes, *, created_at_us: int = 0, expires_at_us: int = 1000) -> Found:
    return Found(
        key=Key(b"/prime/k"),
        subkey=b"",
        value=value,
        blob=None,
        publisher=PeerId(b"p"),
        op_id=OpId(b"o"),
        created_at_us=TimestampUs(created_at_us),
        expires_at_us=TimestampUs(expires_at_us),
        content_type="",
        metadata={},
        envelope=b"",
        answered=2,
    )


def question(name: bytes, *, publishers: frozenset[PeerId] | None = None) -> Question:
    return Question(Key(name), b"", publishers)


def remember(cache: ReadCache, asked: Question, answer: Found, now_s: float = 0.0) -> None:
    with cache.reading(asked) as note:
        note(answer, now_s)


def test_the_cache_forgets_what_was_used_longest_ago_and_never_holds_more_than_its_bound() -> None:
    cache = ReadCache(ttl_s=10, max_bytes=3 * (OVERHEAD_BYTES + 101))
    for name in (b"a", b"b", b"c"):
        remember(cache, question(name), found(bytes(100)))
    assert cache.get(question(b"a"), now_us=0, now_s=1.0) is not None
    remember(cache, question(b"d"), found(bytes(100)))
    held = [name for name in (b"a", b"b", b"c", b"d") if cache.get(question(name), now_us=0, now_s=1.0)]
    assert held == [b"a", b"c", b"d"]
    remember(cache, question(b"e"), found(bytes(100_000)))
    assert cache.get(question(b"e"), now_us=0, now_s=1.0) is None, "larger than all of the cache"


def test_a_question_about_many_publishers_counts_for_its_size() -> None:
    cache = ReadCache(ttl_s=10, max_bytes=10_000)
    trusted = frozenset(PeerId(b"%d" % number) for number in range(100))
    remember(cache, question(b"a", publishers=trusted), found(b""))
    assert cache.get(question(b"a", publishers=trusted), now_us=0, now_s=0.0) is None


def test_an_answer_is_used_until_its_time_or_its_entrys() -> None:
    cache = ReadCache(ttl_s=10, max_bytes=10_000)
    remember(cache, question(b"a"), found(b"", expires_at_us=500))
    assert cache.get(question(b"a"), now_us=499, now_s=9.9) is not None
    assert cache.get(question(b"a"), now_us=500, now_s=9.9) is None
    remember(cache, question(b"b"), found(b""))
    assert cache.get(question(b"b"), now_us=0, now_s=10.0) is None


def test_a_cache_whose_answers_last_no_time_remembers_nothing() -> None:
    cache = ReadCache(ttl_s=0, max_bytes=10_000)
    remember(cache, question(b"a"), found(b""))
    assert cache.get(question(b"a"), now_us=0, now_s=0.0) is None


def test_an_answer_that_was_on_its_way_when_the_key_was_written_is_not_remembered() -> None:
    cache = ReadCache(ttl_s=10, max_bytes=10_000)
    with cache.reading(question(b"a")) as note:
        cache.drop(Key(b"a"))
        note(found(b"older"), 0.0)
    assert cache.get(question(b"a"), now_us=0, now_s=0.0) is None
    remember(cache, question(b"a"), found(b"newer"))
    assert cache.get(question(b"a"), now_us=0, now_s=0.0) is not None


def test_of_two_reads_at_once_the_older_answer_does_not_take_the_newer_one_s_place() -> None:
    cache = ReadCache(ttl_s=10, max_bytes=10_000)
    with cache.reading(question(b"a")) as note_late, cache.reading(question(b"a")) as note:
        note(found(b"newer", created_at_us=2), 0.0)
        note_late(found(b"older", created_at_us=1), 0.0)
    remembered = cache.get(question(b"a"), now_us=0, now_s=0.0)
    assert remembered is not None
    assert remembered.value == b"newer"


def test_an_older_answer_that_was_asked_for_later_takes_the_place_of_what_was_deleted_meanwhile() -> None:
    cache = ReadCache(ttl_s=10, max_bytes=10_000)
    remember(cache, question(b"a"), found(b"deleted", created_at_us=2))
    remember(cache, question(b"a"), found(b"of another", created_at_us=1))
    remembered = cache.get(question(b"a"), now_us=0, now_s=0.0)
    assert remembered is not None
    assert remembered.value == b"of another"


def test_a_newer_answer_that_is_not_for_others_ends_the_older_one() -> None:
    cache = ReadCache(ttl_s=10, max_bytes=10_000)
    remember(cache, question(b"a"), found(b"older", created_at_us=1))
    with cache.reading(question(b"a")) as note:
        note(found(b"newer", created_at_us=2), None)
    assert cache.get(question(b"a"), now_us=0, now_s=0.0) is None


def test_the_same_answer_that_is_not_for_others_leaves_what_is_remembered() -> None:
    cache = ReadCache(ttl_s=10, max_bytes=10_000)
    remember(cache, question(b"a"), found(b"value"))
    with cache.reading(question(b"a")) as note:
        note(found(b"value"), None)
    assert cache.get(question(b"a"), now_us=0, now_s=0.0) is not None


async def test_a_subscription_ends_with_the_feed_and_one_after_it_is_empty() -> None:
    feed = Feed()
    with feed.subscribe() as before:
        feed.publish(EVENT)
        feed.close()
        feed.publish(EVENT)
        assert [event async for event in before] == [EVENT]
    with feed.subscribe() as after:
        assert [event async for event in after] == []


async def test_a_subscription_whose_block_has_ended_gets_no_more_events() -> None:
    feed = Feed()
    with feed.subscribe() as events:
        pass
    feed.publish(EVENT)
    assert [event async for event in events] == []
    assert feed.dropped == 0


class OwnError(Exception):
    """Some error."""


async def test_an_error_of_the_block_leaves_a_background_nursery_as_itself() -> None:
    async def run() -> None:
        async with background_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise OwnError

    with pytest.raises(OwnError):
        await run()


async def test_an_error_of_a_background_task_is_a_group_that_has_the_blocks_with_it() -> None:
    async def fail() -> None:
        raise ValueError

    with pytest.RaisesGroup(ValueError):
        async with background_nursery() as nursery:
            nursery.start_soon(fail)
            await trio.sleep_forever()

    async def fail_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError

    with pytest.RaisesGroup(OwnError, ValueError):
        async with background_nursery() as nursery:
            nursery.start_soon(fail_when_cancelled)
            await wait_all_tasks_blocked()
            raise OwnError


async def test_background_tasks_end_with_the_block() -> None:
    with trio.fail_after(5):
        async with background_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: bytes_of("a value", "text"),
        lambda: bytes_of("a value", 5),
        lambda: entry_key("", 1024),
        lambda: entry_key(b"x" * 1018, 1024),
        lambda: entry_key("\ud800", 1024),
        lambda: peer_id_of("nobody"),
        lambda: peer_id_of(b"nobody"),
        lambda: publishers_of(b"nobody", None),
        lambda: publishers_of(None, ["nobody"]),
    ],
)
def test_what_no_argument_can_be_is_a_validation_error(wrong: Callable[[], object]) -> None:
    with pytest.raises(ValidationError):
        wrong()


def test_what_may_be_text_says_so() -> None:
    for wrong, said in ((lambda: entry_key(5, 1024), "a key"), (lambda: peer_id_of(5), "a peer id")):  # type: ignore[arg-type]
        with pytest.raises(ValidationError, match=f"{said} is bytes or text, not int"):
            wrong()


def test_a_key_may_be_as_long_as_the_limit() -> None:
    assert entry_key("x" * 1017, 1024) == b"/prime/" + b"x" * 1017
    assert entry_key(b"/prime/k", 1024) == entry_key("k", 1024)
    assert bytes_of("a value", bytearray(b"v")) == bytes_of("a value", memoryview(b"v")) == b"v"
