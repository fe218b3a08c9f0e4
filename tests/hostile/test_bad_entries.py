"""Entries that must not be stored, put to a node: what becomes of each, who is blamed, and that the next one is served.

What no honest peer could have relayed is a breach of protocol. What clocks, limits and policies decide, in which honest
nodes differ, is answered with a status and a reason, and blames nobody.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair

from prime_dht.config import DhtConfig
from prime_dht.entries.access import group_key, own_key
from prime_dht.entries.capability import grant
from prime_dht.entries.codec import decode_entry, encode_entry_set, encode_header, inline
from prime_dht.entries.entry import Entry, EntryHeader
from prime_dht.entries.envelope import ENTRY, seal
from prime_dht.errors import RemoteProtocolError, ValidationError
from prime_dht.ids import Key, TimestampUs
from prime_dht.net.identity import peer_id_of
from prime_dht.testing.serving import NOW_US, Serving
from prime_dht.wire.kad import GetValue, PutValue, Record, StatusCode

WRITER, OTHER, ROOT = (create_new_key_pair(bytes([seed]) * 32) for seed in (1, 2, 3))
NETWORK = DhtConfig().network_id
MINUTE_US = 60_000_000
GOOD = EntryHeader(
    network_id=NETWORK,
    key=Key(b"/prime/model"),
    created_at_us=TimestampUs(NOW_US),
    expires_at_us=TimestampUs(NOW_US + 60 * MINUTE_US),
    retain_until_us=TimestampUs(NOW_US + 60 * MINUTE_US),
    content=inline(b"value"),
)
GROUP = replace(GOOD, key=group_key(ROOT.public_key, b"model"))


def sealed(header: EntryHeader, value: bytes = b"value") -> Entry:
    """An entry of a writer who obeys no rule."""
    return decode_entry(seal(WRITER.private_key, ENTRY, header.network_id, encode_header(header)), value)


def dated(minutes: int) -> EntryHeader:
    """As good, but created so many minutes later."""
    by_us = minutes * MINUTE_US
    return replace(
        GOOD,
        created_at_us=TimestampUs(GOOD.created_at_us + by_us),
        expires_at_us=TimestampUs(GOOD.expires_at_us + by_us),
        retain_until_us=TimestampUs(GOOD.retain_until_us + by_us),
    )


def granted(member: KeyPair = WRITER, *, minutes: int = 60, network_id: str = NETWORK) -> bytes:
    """A capability of the group."""
    expires_at_us = NOW_US + minutes * MINUTE_US
    return grant(ROOT.private_key, member=peer_id_of(member), expires_at_us=expires_at_us, network_id=network_id)


def forged(entry: Entry) -> Entry:
    return decode_entry(entry.envelope[:-64] + bytes(64), entry.value)


def under_anothers_key(entry: Entry) -> Entry:
    """The statement and its signature, beside the public key of somebody who never made it."""
    own, anothers = (pair.public_key.serialize() for pair in (WRITER, OTHER))
    return decode_entry(entry.envelope.replace(own, anothers, 1), entry.value)


REFUSED = {
    "of another network": (sealed(replace(GOOD, network_id="another")), "wrong network"),
    "expired and retired": (sealed(dated(-120)), "retired"),
    "a value over the limit": (sealed(replace(GOOD, content=inline(bytes(65_537))), bytes(65_537)), "over limit"),
    "a life over the limit": (
        sealed(replace(GOOD, retain_until_us=TimestampUs(NOW_US + 40 * 24 * 60 * MINUTE_US))),
        "over limit",
    ),
    "under another peer's own key": (sealed(replace(GOOD, key=own_key(peer_id_of(OTHER), b"x"))), "not permitted"),
    "under a group's key without a capability": (sealed(GROUP), "not permitted"),
    "with a capability that ends before it": (
        sealed(replace(GROUP, capability=granted(minutes=59))),
        "not permitted",
    ),
    "with another member's capability": (sealed(replace(GROUP, capability=granted(OTHER))), "not permitted"),
    "with another network's capability": (
        sealed(replace(GROUP, capability=granted(network_id="another"))),
        "not permitted",
    ),
    "with a capability that is none": (sealed(replace(GROUP, capability=b"trust me")), "not permitted"),
}


async def status_of(serving: Serving, entry: Entry) -> tuple[StatusCode, str]:
    record = Record(entry.header.key, encode_entry_set([entry]))
    (status,) = (await serving.handle(PutValue((record,)))).statuses
    return status.code, status.reason


async def assert_serves(serving: Serving, *, entries_before: int = 0) -> None:
    """Nothing was stored but what is expected, and a good entry still is."""
    assert (await serving.storage.stats()).entries == entries_before
    good = sealed(GOOD)
    assert await status_of(serving, good) == (StatusCode.STORED, "")
    reply = await serving.handle(GetValue(GOOD.key))
    assert reply.record is not None
    assert reply.record.value == encode_entry_set([good])


@pytest.mark.parametrize(("entry", "reason"), REFUSED.values(), ids=REFUSED)
async def test_what_is_not_to_be_stored_is_refused_with_a_reason_and_nobody_is_blamed(
    entry: Entry, reason: str
) -> None:
    serving = Serving()
    code, said = await status_of(serving, entry)
    assert code is StatusCode.REFUSED
    assert said.startswith(f"{reason}: ")
    await assert_serves(serving)


async def test_with_a_capability_that_covers_it_an_entry_is_stored() -> None:
    serving = Serving()
    assert await status_of(serving, sealed(replace(GROUP, capability=granted()))) == (StatusCode.STORED, "")
    await assert_serves(serving, entries_before=1)


@pytest.mark.parametrize("entry", [forged(sealed(GOOD)), under_anothers_key(sealed(GOOD))], ids=["forged", "anothers"])
async def test_a_wrong_signature_or_key_is_a_breach_of_protocol(entry: Entry) -> None:
    serving = Serving()
    with pytest.raises(RemoteProtocolError, match="bad signature"):
        await status_of(serving, entry)
    await assert_serves(serving)


async def test_an_entry_beside_the_wrong_key_is_a_breach_of_protocol() -> None:
    serving = Serving()
    with pytest.raises(RemoteProtocolError, match="of another key"):
        await serving.handle(PutValue((Record(Key(b"/prime/other"), encode_entry_set([sealed(GOOD)])),)))
    await assert_serves(serving)


async def test_an_entry_dated_more_than_ten_minutes_ahead_is_deferred() -> None:
    serving = Serving()
    assert (await status_of(serving, sealed(dated(11))))[0] is StatusCode.DEFERRED
    await assert_serves(serving)


async def test_a_record_of_a_namespace_that_nobody_registered_is_refused() -> None:
    serving = Serving()
    with pytest.raises(ValidationError, match="no validator"):
        await serving.handle(PutValue((Record(Key(b"/nobody/knows"), b"value"),)))
    assert (await serving.storage.stats()).records == 0
    await assert_serves(serving)
