"""The index of a block store, by itself."""

from __future__ import annotations

from prime_dht.storage.blocks_index import BlockIndex


def test_what_is_added_is_noted_only_while_others_reach_the_disk() -> None:
    index = BlockIndex(":memory:")
    with index.transaction():
        index.add({b"before": 1})
        assert not index._added
        digests = index.unsynced()
        index.add({b"meanwhile": 1})
        assert index._added == {b"meanwhile"}
        index.synced(digests)
        index.add({b"after": 1})
        assert not index._added
        assert index.unsynced() == [b"after", b"meanwhile"]
    index.close()
