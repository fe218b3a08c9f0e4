"""The plain records and provider records of the memory backend: each a dictionary in the order of its names.

Beside it is an index for each way in which they are looked for, as with entries
(:mod:`prime_dht.storage.memory_entries`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from prime_dht.ids import Key, PeerId
from prime_dht.storage.base import PlainRecord, ProviderRecord
from prime_dht.storage.capacity import location_of
from prime_dht.storage.deadlines import Deadlines
from prime_dht.storage.ordered import Ordered
from prime_dht.storage.room import Load, ProviderName, ProviderShelf, Shelf

N = TypeVar("N", bound="bytes | tuple[bytes, bytes]")
R = TypeVar("R", bound="PlainRecord | ProviderRecord")


class MemoryShelf(Shelf[N], Generic[N, R]):
    """What is held under names of one kind.

    Attributes:
        by_name: all of it.
    """

    def __init__(self, location_of_name: Callable[[N], int]) -> None:
        self._location_of = location_of_name
        self.by_name: Ordered[N, R] = Ordered()
        self._by_location: Ordered[int, dict[N, None]] = Ordered()
        self._bytes = 0
        self._expiry = Deadlines[N](self._expires_at, self.by_name.values.__len__)

    def load(self) -> Load:
        return Load(len(self.by_name.values), self._bytes)

    def size_of(self, name: N) -> int | None:
        record = self.by_name.values.get(name)
        return None if record is None else record.size_bytes

    def held_in(self, block: range) -> tuple[int, int] | None:
        return self._by_location.ends(block)

    def held_at(self, location: int) -> Iterator[tuple[N, int]]:
        records = self.by_name.values
        for name in sorted(self._by_location.values[location], key=lambda name: (records[name].expires_at_us, name)):
            yield name, records[name].size_bytes

    def evict_expired(self, now_us: int) -> bool:
        return self.delete_expired(now_us, limit=1) > 0

    def delete_expired(self, now_us: int, limit: int) -> int:
        """Remove at most ``limit`` that have expired; returns how many."""
        count = 0
        for name in self._expiry.due(now_us + 1, limit):
            self.evict(name)
            count += 1
        return count

    def hold(self, name: N, record: R) -> None:
        """Put a record under a name, in place of what is there."""
        if name in self.by_name.values:
            self.evict(name)
        self.by_name.put(name, record)
        location = self._location_of(name)
        here = self._by_location.values.get(location)
        if here is None:
            here = {}
            self._by_location.put(location, here)
        here[name] = None
        self._bytes += record.size_bytes
        self._expiry.add(record.expires_at_us, name)

    def evict(self, name: N) -> None:
        self._bytes -= self.by_name.values[name].size_bytes
        self.by_name.remove(name)
        location = self._location_of(name)
        here = self._by_location.values[location]
        del here[name]
        if not here:
            self._by_location.remove(location)

    def _expires_at(self, name: N) -> int | None:
        record = self.by_name.values.get(name)
        return None if record is None else record.expires_at_us


class MemoryRecords(MemoryShelf[Key, PlainRecord]):
    """Plain records, by key."""

    def __init__(self) -> None:
        super().__init__(location_of)


class MemoryProviders(MemoryShelf[ProviderName, ProviderRecord], ProviderShelf):
    """Provider records, by content and provider."""

    def __init__(self) -> None:
        super().__init__(lambda name: location_of(name[0]))
        self._of_content: dict[bytes, dict[PeerId, ProviderRecord]] = {}
        self._of_peer: dict[PeerId, Ordered[tuple[int, bytes], None]] = {}  # by (expires_at_us, multihash)

    def unexpired_of(self, multihash: bytes, now_us: int) -> Iterator[ProviderRecord]:
        """The providers of a content, in any order."""
        records = self._of_content.get(multihash, {}).values()
        return (record for record in records if now_us < record.expires_at_us)

    def others_of(self, name: ProviderName, now_us: int) -> int:
        multihash, provider = name
        return sum(record.provider != provider for record in self.unexpired_of(multihash, now_us))

    def count_of(self, provider: PeerId) -> int:
        provided = self._of_peer.get(provider)
        return 0 if provided is None else len(provided.values)

    def addresses_of(self, name: ProviderName) -> tuple[bytes, ...] | None:
        record = self.by_name.values.get(name)
        return None if record is None else record.addresses

    def oldest_of(self, provider: PeerId) -> ProviderName:
        _, multihash = next(self._of_peer[provider].behind(None))
        return multihash, provider

    def hold(self, name: ProviderName, record: ProviderRecord) -> None:
        super().hold(name, record)
        multihash, provider = name
        self._of_content.setdefault(multihash, {})[provider] = record
        provided = self._of_peer.get(provider)
        if provided is None:
            provided = self._of_peer[provider] = Ordered()
        provided.put((record.expires_at_us, multihash), None)

    def evict(self, name: ProviderName) -> None:
        super().evict(name)
        multihash, provider = name
        providers, provided = self._of_content[multihash], self._of_peer[provider]
        provided.remove((providers.pop(provider).expires_at_us, multihash))
        if not providers:
            del self._of_content[multihash]
        if not provided.values:
            del self._of_peer[provider]
