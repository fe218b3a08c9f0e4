"""Limits: each is inclusive, each says what it is about, and none can be set to nonsense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest

from prime_dht.entries.codec import inline
from prime_dht.entries.entry import BlobRef, Content, Entry, EntryHeader, Tombstone
from prime_dht.entries.envelope import MAX_ENVELOPE_BYTES
from prime_dht.entries.limits import MAX_ENTRY_BYTES, Limits, Occupancy
from prime_dht.errors import ConfigError, ValidationError
from prime_dht.ids import Key, OpId, PeerId, TimestampUs

LIMITS = Limits(
    max_key_bytes=10,
    max_subkey_bytes=3,
    max_inline_bytes=5,
    max_envelope_bytes=100,
    max_metadata_items=2,
    max_metadata_bytes=6,
    max_content_type_bytes=4,
    max_capability_bytes=7,
    max_ttl_s=60,
    max_blob_bytes=1 << 30,
)
BLOB_LIMIT = "the limit is 1,073,741,824 bytes"
ENTRY = Entry(
    header=EntryHeader(
        network_id="testnet",
        key=Key(b"/prime/key"),
        subkey=b"sub",
        created_at_us=TimestampUs(1),
        expires_at_us=TimestampUs(2),
        retain_until_us=TimestampUs(60_000_001),
        content=inline(b"value"),
        content_type="text",
        metadata={"é": "é", "a": "b"},
        capability=b"capable",
    ),
    publisher=PeerId(b"p"),
    op_id=OpId(bytes(32)),
    envelope=bytes(100),
    value=b"value",
)


def with_header(**changes: object) -> Entry:
    return replace(ENTRY, header=replace(ENTRY.header, **changes))  # type: ignore[arg-type]  # a test's shorthand


def test_an_entry_at_every_limit_passes() -> None:
    LIMITS.check(ENTRY)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (with_header(key=b"/prime/keys"), "key: 11 bytes; the limit is 10 bytes"),
        (with_header(subkey=b"subs"), "subkey: 4 bytes; the limit is 3 bytes"),
        (with_header(content=inline(b"values")), "inline value: 6 bytes; the limit is 5 bytes"),
        (replace(ENTRY, envelope=bytes(101)), "signed header: 101 bytes; the limit is 100 bytes"),
        (with_header(content=BlobRef(b"cid", 1 + (1 << 30), "")), f"blob: {1 + (1 << 30):,} bytes; {BLOB_LIMIT}"),
        (with_header(metadata={"a": "", "b": "", "c": ""}), "metadata: 3 items; the limit is 2 items"),
        (with_header(metadata={"é": "é", "a": "bc"}), "metadata: 7 bytes; the limit is 6 bytes"),
        (with_header(content_type="texté"), "content type: 6 bytes; the limit is 4 bytes"),
        (with_header(capability=b"capable!"), "capability: 8 bytes; the limit is 7 bytes"),
        (with_header(retain_until_us=60_000_002), "ttl: 60.000001 s; the limit is 60 s"),
    ],
)
def test_one_more_is_refused_with_a_message_that_says_what_and_how_much(entry: Entry, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        LIMITS.check(entry)
    assert str(caught.value) == message


@pytest.mark.parametrize("content", [Tombstone(), BlobRef(b"cid", 1 << 30, "")])
def test_the_inline_limit_is_about_inline_values(content: Content) -> None:
    LIMITS.check(with_header(content=content))


def test_the_defaults_are_those_the_design_names() -> None:
    limits = Limits()
    assert limits.max_key_bytes == 1024
    assert limits.max_subkey_bytes == 256
    assert limits.max_inline_bytes == 65_536
    assert limits.clock_skew_us == 600_000_000
    assert limits.max_ttl_us == 2_592_000_000_000


@pytest.mark.parametrize("name", [field.name for field in fields(Limits)])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 1e300])
def test_a_limit_that_is_no_positive_number_or_beyond_all_measure_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        Limits(**{name: value})  # type: ignore[arg-type]  # wrong on purpose


def test_a_limit_cannot_exceed_the_format() -> None:
    Limits(max_envelope_bytes=MAX_ENVELOPE_BYTES)
    with pytest.raises(ConfigError, match="format"):
        Limits(max_envelope_bytes=MAX_ENVELOPE_BYTES + 1)


def test_a_limit_cannot_exceed_what_travels_between_replicas() -> None:
    most = MAX_ENTRY_BYTES - (8 << 10)
    Limits(max_inline_bytes=most)
    with pytest.raises(ConfigError, match=f"max_inline_bytes cannot exceed {most:,}"):
        Limits(max_inline_bytes=most + 1)
    with pytest.raises(ConfigError, match="max_inline_bytes"):
        Limits(max_inline_bytes=most, max_envelope_bytes=(8 << 10) + 1)


STORE = Limits(
    max_slots_per_key=2,
    max_store_entries=4,
    max_store_bytes=405,
    max_publisher_entries=3,
    max_publisher_bytes=305,
)
ALMOST_FULL = Occupancy(slots_of_key=1, store_entries=3, store_bytes=300, publisher_entries=2, publisher_bytes=200)


def test_an_entry_that_just_fits_has_room() -> None:
    STORE.check_room(ENTRY, ALMOST_FULL)


@pytest.mark.parametrize(
    ("occupancy", "message"),
    [
        (ALMOST_FULL._replace(slots_of_key=2), "the key: 3 slots; the limit is 2 slots"),
        (ALMOST_FULL._replace(store_entries=4), "the store: 5 entries; the limit is 4 entries"),
        (ALMOST_FULL._replace(store_bytes=301), "the store: 406 bytes; the limit is 405 bytes"),
        (ALMOST_FULL._replace(publisher_entries=3), "the publisher: 4 entries; the limit is 3 entries"),
        (ALMOST_FULL._replace(publisher_bytes=201), "the publisher: 306 bytes; the limit is 305 bytes"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused(occupancy: Occupancy, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        STORE.check_room(ENTRY, occupancy)
    assert str(caught.value) == message


OF_OTHER_THINGS = Limits(
    max_publisher_blob_bytes=10,
    max_records=2,
    max_records_bytes=20,
    max_providers=3,
    max_providers_bytes=30,
    max_providers_per_key=4,
)


def test_blobs_and_records_may_come_to_their_limits() -> None:
    OF_OTHER_THINGS.check_blobs(10)
    OF_OTHER_THINGS.check_records(2, 20)
    OF_OTHER_THINGS.check_providers(3, 30)
    OF_OTHER_THINGS.check_providers_of_key(4)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: OF_OTHER_THINGS.check_blobs(11), "the publisher: 11 bytes of blobs; the limit is 10 bytes of blobs"),
        (lambda: OF_OTHER_THINGS.check_records(3, 1), "the store: 3 plain records; the limit is 2 plain records"),
        (
            lambda: OF_OTHER_THINGS.check_records(1, 21),
            "the store: 21 bytes of plain records; the limit is 20 bytes of plain records",
        ),
        (lambda: OF_OTHER_THINGS.check_providers(4, 1), "the store: 4 providers; the limit is 3 providers"),
        (
            lambda: OF_OTHER_THINGS.check_providers(1, 31),
            "the store: 31 bytes of providers; the limit is 30 bytes of providers",
        ),
        (lambda: OF_OTHER_THINGS.check_providers_of_key(5), "the content: 5 providers; the limit is 4 providers"),
    ],
)
def test_one_more_of_them_is_refused(attempt: Callable[[], object], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        attempt()
    assert str(caught.value) == message
