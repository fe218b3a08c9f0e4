"""The index and the files of a block store are made to agree, when its last process did not close it.

The index says which blocks there are. Files that it does not know are removed; blocks whose files are gone are
forgotten, and of those that had not reached the disk the damaged ones as well. The files of what is forgotten are
removed only when the disk has taken the change of the index: one that fails altogether loses nothing by that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from prime_dht.storage.blocks_files import SHARDS, BlockFiles, DiskFiles
from prime_dht.storage.blocks_index import BlockIndex


def recover(index: BlockIndex, files: DiskFiles) -> bool:
    """Note that the store is open, and make files and index agree, if its last process did not close it.

    Returns:
        Whether all files that had to go could be removed. Others take room, and are tried at the next recovery.
    """
    with index.transaction(is_synced=True):
        if index.begin():
            return True
        index.drop_draft()
        gone = {digest for digest in index.unsynced() if read_block(files, digest, verify=True) is None}
        unknown: set[bytes] = set()
        for first in range(SHARDS):
            known, found = index.digests(first), files.digests(first)
            gone |= known - found
            unknown |= found - known
        index.forget(list(gone))
    files.drop_incoming()
    return _remove_all(files, gone | unknown)


def read_block(files: BlockFiles, digest: bytes, *, verify: bool) -> bytes | None:
    """The bytes of a block; with ``verify``, none that are not its own."""
    data = files.read(digest)
    return data if data is None or not verify or hashlib.sha256(data).digest() == digest else None


def _remove_all(files: BlockFiles, digests: Iterable[bytes]) -> bool:
    """Remove files; returns whether all of them could be."""
    are_removed = True
    for digest in digests:
        try:
            files.remove(digest)
        except OSError:
            are_removed = False
    return are_removed
