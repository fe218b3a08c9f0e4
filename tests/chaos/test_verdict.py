"""What is judged to be wrong, and what is not."""

from __future__ import annotations

from prime_dht.entries.entry import Slot, Version
from prime_dht.ids import OpId, PeerId, TimestampUs, kad_key, wire_key

from .verdict import Astray, Behind, Lost, Stored, astray, behind, closest, lost

R = 3
NODES = [PeerId(bytes([number])) for number in range(8)]
SLOT = Slot(wire_key("k"), PeerId(b"publisher"), b"")
FIRST, SECOND, THIRD, *_, LAST = closest(kad_key(SLOT.key), NODES, len(NODES))
OLD, NEW = (Version(TimestampUs(time_us), OpId(bytes(32))) for time_us in (1, 2))


def stores(**versions: Version) -> dict[PeerId, Stored]:
    """What all nodes store if those named by place have these versions in the slot."""
    places = {"first": FIRST, "second": SECOND, "third": THIRD, "last": LAST}
    held = {places[place]: {SLOT: version} for place, version in versions.items()}
    return {node: held.get(node, {}) for node in NODES}


def test_replicas_that_have_the_same_agree() -> None:
    agreeing = stores(first=NEW, second=NEW, third=NEW)
    assert list(behind(agreeing, r=R)) == []
    assert list(astray(agreeing, r=R)) == []
    assert list(lost({SLOT: NEW}, agreeing)) == []


def test_a_replica_with_an_older_entry_or_none_is_behind() -> None:
    assert list(behind(stores(first=NEW, second=OLD), r=R)) == [
        Behind(SLOT, SECOND, 2, OLD, NEW, (FIRST,)),
        Behind(SLOT, THIRD, 3, None, NEW, (FIRST,)),
    ]


def test_what_others_store_beside_the_replicas_does_not_matter_unless_it_is_newer() -> None:
    assert list(astray(stores(first=NEW, second=NEW, third=NEW, last=OLD), r=R)) == []
    newer = stores(first=OLD, second=OLD, third=OLD, last=NEW)
    assert list(behind(newer, r=R)) == []
    assert list(astray(newer, r=R)) == [Astray(SLOT, NEW, (LAST,), OLD)]
    assert list(astray(stores(last=NEW), r=R)) == [Astray(SLOT, NEW, (LAST,), None)]


def test_what_was_acknowledged_is_lost_if_nobody_has_it_or_anything_newer() -> None:
    assert list(lost({SLOT: OLD}, stores(first=NEW))) == []
    assert list(lost({SLOT: NEW}, stores(first=OLD, last=NEW))) == []
    assert list(lost({SLOT: NEW}, stores(first=OLD))) == [Lost(SLOT, NEW, OLD)]
    assert list(lost({SLOT: NEW}, stores())) == [Lost(SLOT, NEW, None)]
