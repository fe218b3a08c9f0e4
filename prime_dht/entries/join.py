"""The join: a key's state is one entry for each of its slots, and replicas merge states.

The state of a key maps each slot to the entry that stands in it. Joining two states keeps, slot by slot, the entry that
:func:`standing` prefers. That is the greater of a total order, so the join is idempotent, commutative and associative:
replicas that saw the same entries, in any order and any number of times, hold the same state (a state-based CRDT,
Shapiro et al. 2011, a map of last-writer-wins registers).

Time acts on each replica alone, which drops the values that have expired and the entries that have retired. Given the
authoring rule (:mod:`prime_dht.entries.slot`), a replica whose clock does not step back never shows an entry after one
that superseded it, whatever the others' clocks say: when the newer has retired, the older has expired. The same holds
for a reader of several replicas whose clock is behind none of theirs.

A reader joins what replicas sent and then chooses with a :class:`Selection`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prime_dht.entries.entry import Entry, Slot
from prime_dht.ids import OpId, PeerId

KeyState = Mapping[Slot, Entry]
"""Which entry stands in each slot."""


def standing(a: Entry, b: Entry) -> Entry:
    """Which of two entries of one slot stands: the newer; of one entry twice, the copy that still has its value.

    Two envelopes of one op, possible because a signature is not unique, go by their bytes: any fixed choice will do.
    """
    return a if _order(a) >= _order(b) else b


def state_of(entries: Iterable[Entry]) -> dict[Slot, Entry]:
    """The join of single entries."""
    return _joined({}, ((entry.slot, entry) for entry in entries))


def join(a: KeyState, b: KeyState) -> dict[Slot, Entry]:
    """The least state that knows all that ``a`` and ``b`` know."""
    return _joined(dict(a), b.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What a reader wants of a key: whose entries, which subkeys, and whether only the newest.

    ``publishers`` is one publisher or a trusted set, ``subkeys`` one subkey or some; ``None`` means any.
    """

    publishers: frozenset[PeerId] | None = None
    subkeys: frozenset[bytes] | None = None
    newest: bool = True

    def includes(self, slot: Slot) -> bool:
        return (self.publishers is None or slot.publisher in self.publishers) and (
            self.subkeys is None or slot.subkey in self.subkeys
        )

    def choose(self, state: KeyState, now_us: int) -> tuple[Entry, ...]:
        """The live entries it wants, in the order of (publisher, subkey); at most one if only the newest.

        Only live entries compete to be newest: a publisher's tombstone or expired entry empties its own slot, and hides
        nobody else's.
        """
        wanted = [entry for slot, entry in state.items() if self.includes(slot) and entry.is_live(now_us)]
        if self.newest:
            return (max(wanted, key=lambda entry: entry.version),) if wanted else ()
        return tuple(sorted(wanted, key=lambda entry: (entry.publisher, entry.header.subkey)))


def _joined(state: dict[Slot, Entry], others: Iterable[tuple[Slot, Entry]]) -> dict[Slot, Entry]:
    for slot, entry in others:
        held = state.get(slot)
        state[slot] = entry if held is None else standing(held, entry)
    return state


def _order(entry: Entry) -> tuple[int, OpId, bool, bytes]:
    """By version, and then as said in :func:`standing`."""
    return entry.header.created_at_us, entry.op_id, entry.value is not None, entry.envelope
