"""Ten thousand identities fill an open key: it has so many slots, and whoever was there before keeps theirs."""

from __future__ import annotations

from collections import Counter

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import PrivateKey

from prime_dht.config import DhtConfig
from prime_dht.entries.access import own_key
from prime_dht.entries.codec import encode_entry_set, inline
from prime_dht.entries.entry import Entry, EntryHeader
from prime_dht.entries.limits import DEFAULT_LIMITS
from prime_dht.entries.signing import sign_entry
from prime_dht.ids import Key, TimestampUs
from prime_dht.net.identity import peer_id_of
from prime_dht.testing.serving import NOW_US, Serving
from prime_dht.wire.kad import GetValue, PutValue, Record, SlotQuery, StatusCode

OPEN = Key(b"/prime/model")
IDENTITIES = 10_000
PER_REQUEST = 100
VICTIM = create_new_key_pair(b"victim".ljust(32))


def signed(writer: PrivateKey, value: bytes, *, key: Key = OPEN, created_at_us: int = NOW_US) -> Entry:
    header = EntryHeader(
        network_id=DhtConfig().network_id,
        key=key,
        created_at_us=TimestampUs(created_at_us),
        expires_at_us=TimestampUs(created_at_us + 10**9),
        retain_until_us=TimestampUs(created_at_us + 10**9),
        content=inline(value),
    )
    return sign_entry(header, writer, value)


async def put(serving: Serving, *entries: Entry) -> Counter[StatusCode]:
    record = Record(entries[0].header.key, encode_entry_set(entries))
    return Counter(status.code for status in (await serving.handle(PutValue((record,), no_echo=True))).statuses)


async def test_ten_thousand_identities_get_the_slots_there_are_and_nobody_loses_one_to_them() -> None:
    serving = Serving()
    assert await put(serving, signed(VICTIM.private_key, b"before")) == {StatusCode.STORED: 1}
    outcomes: Counter[StatusCode] = Counter()
    for first in range(0, IDENTITIES, PER_REQUEST):
        crowd = [
            signed(create_new_key_pair(number.to_bytes(32, "big")).private_key, b"spam")
            for number in range(first, first + PER_REQUEST)
        ]
        outcomes += await put(serving, *crowd)
        await trio.lowlevel.checkpoint()
    slots = DEFAULT_LIMITS.max_slots_per_key
    assert outcomes == {StatusCode.STORED: slots - 1, StatusCode.REFUSED: IDENTITIES - slots + 1}
    stats = await serving.storage.stats()
    assert (stats.keys, stats.entries) == (1, slots)
    assert len(serving.server.verified) <= 16_384

    updated = signed(VICTIM.private_key, b"after", created_at_us=NOW_US + 1)
    assert await put(serving, updated) == {StatusCode.STORED: 1}
    victim = peer_id_of(VICTIM)
    reply = await serving.handle(GetValue(OPEN, SlotQuery(publishers=(victim,))))
    assert reply.record is not None
    assert reply.record.value == encode_entry_set([updated]), "its readers ask for its slot, however many there are"

    late = create_new_key_pair(b"late".ljust(32))
    assert await put(serving, signed(late.private_key, b"late")) == {StatusCode.REFUSED: 1}
    own = own_key(peer_id_of(late), b"model")
    assert await put(serving, signed(late.private_key, b"late", key=own)) == {StatusCode.STORED: 1}
