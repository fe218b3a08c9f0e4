"""What writers were told, held against what is stored: an oracle that sees every disc and knows every write.

An acknowledged entry is *kept* while some disc that counts holds it, or what superseded it. Discs of members that are
down count, those of liars, and those that were lost, do not. Where the last such disc is lost, no replica lived, and
the entry is *excused*. So what the ledger demands at all times, with or without sync:

- **Durable when acknowledged.** Whoever a receipt names as having stored an entry has it on its disc at that moment;
  or had it, and has handed it on since: a put may reach others than the replicas, and take longer than that.
- **Not lost.** An acknowledged entry that has not retired is kept or excused.
- **Not superseded**, if the writer wrote nothing to the slot since: nobody else does. (Checked where puts are made.)
- **Authentic.** What a reader finds was written, by that publisher, to that slot.
- **Not expired.** What a reader finds is not expired by its clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import sha256
from random import Random

from prime_dht.entries.entry import Entry, Slot, Version
from prime_dht.entries.lifetime import UNIT_US, retire_before_us
from prime_dht.node.results import Found, PutReceipt
from prime_dht.testing.simulation.disc import Disc
from prime_dht.testing.simulation.member import Member

NAME_BYTES = 100
"""A value of at most so many is its own name in the ledger."""


@dataclass(slots=True, eq=False)
class Acknowledged:
    """A write that was acknowledged.

    Attributes:
        retain_until_us: until when it stands, or what has superseded it does.
    """

    slot: Slot
    version: Version
    retain_until_us: int
    is_excused: bool = False

    def is_kept_by(self, disc: Disc) -> bool:
        """Whether a disc holds it, or what superseded it."""
        standing = disc.standing(self.slot)
        return standing is not None and standing.version >= self.version


class Ledger:
    """See the module.

    Args:
        complain: called with a sentence for each demand that is not met.
    """

    def __init__(self, complain: Callable[[str], None]) -> None:
        self._complain = complain
        self._attempted: dict[bytes, Slot] = {}
        self._acknowledged: list[Acknowledged] = []

    @property
    def slots(self) -> list[Slot]:
        """Every slot that somebody tried to put a value into."""
        return list(dict.fromkeys(self._attempted.values()))

    def value_for(self, slot: Slot) -> bytes:
        """A value that was never put before, noted as put into this slot; whether that succeeds or not."""
        value = f"value {len(self._attempted)}".encode()
        self._attempted[value] = slot
        return value

    def blob_for(self, slot: Slot, size_bytes: int) -> bytes:
        """As :meth:`value_for`, of so many bytes."""
        value = Random(len(self._attempted)).randbytes(size_bytes)  # noqa: S311 - nothing secret
        self._attempted[_name_of(value)] = slot
        return value

    def acknowledged(self, slot: Slot, receipt: PutReceipt, replicas: Iterable[Member]) -> None:
        """A writer has a receipt; ``replicas`` are those it names that count and have the disc that they had then."""
        version = Version(receipt.created_at_us, receipt.op_id)
        stored: Entry | None = None
        for replica in replicas:
            standing = replica.disc.standing(slot)
            if standing is not None and standing.version >= version:
                stored = standing
            elif receipt.op_id not in replica.disc.dropped and not _is_over(receipt.expires_at_us, replica.disc):
                self._complain(f"{replica} is said to have stored {receipt.op_id.hex()[:8]}, and has not")
                return
        if receipt.acknowledged and stored is not None:
            self._acknowledged.append(Acknowledged(slot, version, stored.header.retain_until_us))

    def disc_lost(self, discs: Iterable[Disc]) -> None:
        """A disc that counted is lost; these are left."""
        left = list(discs)
        for write in self._acknowledged:
            if not write.is_excused and not any(map(write.is_kept_by, left)):
                write.is_excused = True

    def check_nothing_lost(self, discs: Iterable[Disc]) -> None:
        """Complain of each acknowledged entry that no disc keeps, though a replica lived."""
        left = list(discs)
        latest_us = max(disc.furthest_us for disc in left)
        for write in self._acknowledged:
            has_retired = write.retain_until_us < retire_before_us(latest_us, UNIT_US)
            if not (write.is_excused or has_retired or any(map(write.is_kept_by, left))):
                self._complain(f"acknowledged entry {write.version.op_id.hex()[:8]} is lost, though a replica lived")

    def found(self, reader: Member, found: Found) -> None:
        """A reader found this just now."""
        slot = Slot(found.key, found.publisher, found.subkey)
        name = _name_of(found.value)
        if found.blob is not None and not found.value:
            pass  # it was not fetched
        elif self._attempted.get(name) != slot:
            self._complain(f"{reader} found {name!r}, which was not put there")
        if found.expires_at_us <= reader.machine.clock.now_us():
            self._complain(f"{reader} found {name!r}, which has expired")


def _name_of(value: bytes) -> bytes:
    """What a value is known by: itself, if it is short."""
    return value if len(value) <= NAME_BYTES else sha256(value).digest()


def _is_over(expires_at_us: int, disc: Disc) -> bool:
    """Whether an entry with this expiry may have retired at a disc."""
    return expires_at_us < retire_before_us(disc.furthest_us, UNIT_US)
