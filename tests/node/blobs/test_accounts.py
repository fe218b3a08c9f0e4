"""Accounts: what publishers are charged for the blobs that they refer to."""

from __future__ import annotations

from operator import itemgetter
from random import Random

from prime_dht.blobs.cid import Cid
from prime_dht.ids import PeerId
from prime_dht.node.blobs.accounts import Accounts

PUBLISHERS = [PeerId(b"anne"), PeerId(b"bob")]
ROOTS = [Cid.of_raw(b"%d" % number) for number in range(3)]


def test_a_publisher_is_charged_the_most_that_it_says_of_each_root_however_entries_come_and_go() -> None:
    rng, accounts = Random(1), Accounts()
    said: list[tuple[PeerId, Cid, int]] = []
    for _ in range(3000):
        publisher, root, size = rng.choice(PUBLISHERS), rng.choice(ROOTS), rng.randrange(8)
        each = (publisher, root, size)
        match rng.randrange(5):
            case 0 | 1:
                accounts.add(*each)
                said.append(each)
            case 2 | 3 if said:
                accounts.remove(*said.pop(rng.randrange(len(said))))
            case 4 if any(one[:2] == each[:2] for one in said):
                accounts.raise_to(*each)
                said = [(*one[:2], max(one[2], size)) if one[:2] == each[:2] else one for one in said]
        largest = {one[:2]: one[2] for one in sorted(said, key=itemgetter(2))}
        for peer in PUBLISHERS:
            others = sum(most for (of, at), most in largest.items() if of == peer and at != root)
            assert accounts.bytes_with(peer, root, size) == others + max(largest.get((peer, root), 0), size)
    for each in said:
        accounts.remove(*each)
    assert (accounts._sizes, accounts._bytes) == ({}, {})


def test_whoever_refers_to_one_root_by_very_many_sizes_is_charged_the_largest() -> None:
    accounts, (publisher, _), root, many = Accounts(), PUBLISHERS, ROOTS[0], 100_000
    for size in range(many):
        accounts.add(publisher, root, size)
    accounts.raise_to(publisher, root, many)
    for _ in range(many - 1):
        accounts.remove(publisher, root, many)
    assert accounts.bytes_with(publisher, root, 0) == many
