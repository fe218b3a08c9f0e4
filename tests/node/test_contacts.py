"""Contacts that are made once for many replies, and how many of them are kept."""

from __future__ import annotations

from prime_dht.ids import PeerId, kad_key
from prime_dht.node.contacts import MAX_ADDRESS_BYTES, MAX_CONTACTS, Contacts
from prime_dht.wire.kad import MAX_ADDRESS_BYTES as LONGEST_BYTES

SHORT = (bytes((4, 11, 1, 0, 1, 6, 0x0F, 0xA1)),)


def peer(number: int) -> PeerId:
    return PeerId(b"\x12\x20" + number.to_bytes(32, "big"))


def long_addresses(number: int) -> tuple[bytes, ...]:
    return tuple(b"%d/%d" % (number, each) + bytes(LONGEST_BYTES - 16) for each in range(16))


def test_a_contact_is_made_once_for_a_peer_and_its_addresses() -> None:
    contacts = Contacts()
    one = contacts.get(peer(1), SHORT, syncs=False)
    assert (one.peer, one.kad_key, one.addresses, one.subnets) == (peer(1), kad_key(peer(1)), SHORT, (b"\x0b\x01",))
    assert contacts.get(peer(1), SHORT, syncs=False) is one
    assert contacts.get(peer(1), (), syncs=False).addresses == ()
    assert contacts.get(peer(2), SHORT, syncs=False).peer == peer(2)


def test_one_that_turns_out_to_sync_is_made_anew_in_the_same_place() -> None:
    contacts = Contacts()
    for syncs in (False, True, False):
        assert contacts.get(peer(1), SHORT, syncs=syncs).syncs is syncs
    contacts.get(peer(1), long_addresses(1), syncs=True)
    before = contacts.address_bytes
    contacts.get(peer(1), long_addresses(1), syncs=False)
    assert contacts.address_bytes == before
    assert len(contacts) == 2


def test_so_many_are_kept_of_those_with_short_addresses() -> None:
    contacts = Contacts()
    for number in range(MAX_CONTACTS + 10):
        contacts.get(peer(number), SHORT * 4, syncs=False)
    assert len(contacts) == MAX_CONTACTS


def test_who_names_peers_at_the_longest_addresses_fills_only_so_many_bytes() -> None:
    contacts = Contacts()
    for number in range(MAX_CONTACTS // 4):
        contacts.get(peer(number), long_addresses(number), syncs=False)
    kept = sum(len(address) for contact in contacts._made.values() for address in contact.addresses)
    assert MAX_ADDRESS_BYTES / 2 < kept <= contacts.address_bytes <= MAX_ADDRESS_BYTES
    last = contacts.get(peer(1), long_addresses(1), syncs=False)
    assert contacts.get(peer(1), long_addresses(1), syncs=False) is last
