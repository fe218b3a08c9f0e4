"""The address book: where peers may be reached, whom to believe, and when to leave a peer alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from multiaddr import Multiaddr

from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId, peer_text
from prime_dht.net import address_book as address_book_module
from prime_dht.net.address_book import AddressBook, BookSettings, canonical_address, split_peer_address
from prime_dht.net.addresses import Reach
from prime_dht.net.identity import peer_id_of
from prime_dht.wire.kad import MAX_ADDRESS_BYTES

PEER = peer_id_of(create_new_key_pair(b"\x01" * 32))
OTHER = peer_id_of(create_new_key_pair(b"\x02" * 32))
REFUSED = Multiaddr("/ip4/127.0.0.1/tcp/1").to_bytes()
AT_A, AT_B, AT_C = (Multiaddr(f"/ip4/10.0.0.{host}/tcp/4001").to_bytes() for host in (1, 2, 3))


def binary(text: str) -> bytes:
    return bytes(Multiaddr(text).to_bytes())


def text(raw: bytes) -> str:
    return str(Multiaddr(raw))


def book_of(*addresses: str, now_s: float = 0.0) -> AddressBook:
    book = AddressBook()
    book.add(PEER, map(binary, addresses), source="test", now_s=now_s)
    return book


def texts(book: AddressBook, peer: PeerId = PEER) -> list[str]:
    return [text(raw) for raw in book.addresses(peer)]


@pytest.mark.parametrize(
    "good",
    [
        "/ip4/192.0.2.1/tcp/4001",
        "/ip6/2001:db8::1/tcp/4001",
        "/dns4/node.example/tcp/4001",
        "/ip4/192.0.2.1/udp/4001/quic-v1",
        "/ip4/192.0.2.1/tcp/443/wss",
    ],
)
def test_an_address_is_kept_without_the_peer_it_names(good: str) -> None:
    assert canonical_address(PEER, binary(good)) == binary(good)
    assert canonical_address(PEER, binary(f"{good}/p2p/{peer_text(PEER)}")) == binary(good)


@pytest.mark.parametrize(
    "bad",
    [
        f"/ip4/192.0.2.1/tcp/4001/p2p/{peer_text(OTHER)}",
        f"/ip4/192.0.2.1/tcp/4001/p2p/{peer_text(OTHER)}/p2p-circuit/p2p/{peer_text(PEER)}",
        f"/p2p/{peer_text(PEER)}",
        "/ip4/0.0.0.0/tcp/4001",
        "/ip6/::/tcp/4001",
        "/ip4/224.0.0.1/tcp/4001",
        "/ip4/192.0.2.1/tcp/0",
        "/ip4/192.0.2.1",
        "/tcp/4001/ip4/192.0.2.1",
        "/unix/tmp/socket",
        "/ip4/192.0.2.1/tcp/4001" + "/ws" * MAX_ADDRESS_BYTES,
    ],
)
def test_an_address_that_is_not_the_peer_s_or_cannot_be_dialled_is_dropped_and_the_peer_kept(bad: str) -> None:
    book = book_of("/ip4/192.0.2.7/tcp/4001")
    book.add(PEER, [binary(bad)], source="test", now_s=1.0)
    assert texts(book) == ["/ip4/192.0.2.7/tcp/4001"]


@settings(derandomize=True, deadline=None, max_examples=500)
@given(st.binary(max_size=80), st.sampled_from([b"", binary("/ip4/192.0.2.1/tcp/4001"), binary("/dns4/x.example")]))
def test_no_bytes_of_a_peer_break_the_book(noise: bytes, before: bytes) -> None:
    book = AddressBook()
    book.add(PEER, [before + noise, noise + before], source="test", now_s=0.0)
    for raw in book.addresses(PEER):
        assert canonical_address(PEER, raw) == raw


def test_addresses_that_worked_come_first_then_the_nearest_then_the_latest() -> None:
    book = book_of("/ip4/127.0.0.1/tcp/1", "/ip4/8.8.8.8/tcp/2", "/ip4/10.0.0.1/tcp/3", "/dns4/x.example/tcp/4")
    book.add(PEER, [binary("/ip4/8.8.4.4/tcp/5"), binary("/ip4/9.9.9.9/tcp/6")], source="test", now_s=1.0)
    assert [line.rsplit("/", 1)[1] for line in texts(book)] == ["3", "5", "6", "2", "4", "1"]
    book.succeeded(PEER, binary("/ip4/127.0.0.1/tcp/1"), now_s=2.0)
    book.succeeded(PEER, binary("/ip4/9.9.9.9/tcp/6"), now_s=3.0)
    assert texts(book)[:3] == ["/ip4/9.9.9.9/tcp/6", "/ip4/127.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/3"]


def test_where_a_peer_said_that_it_listens_and_says_so_no_more_it_is_not() -> None:
    book = AddressBook()
    book.add(PEER, [AT_A, AT_B], source="identify", now_s=0.0)
    book.succeeded(PEER, AT_A, now_s=1.0)
    book.add(PEER, [AT_C], source="identify", now_s=2.0)
    assert book.addresses(PEER) == (AT_C,)
    book.add(PEER, [AT_A], source="kad", now_s=3.0)
    assert book.addresses(PEER) == (AT_C, AT_A), "others still say so, later than itself"


def test_where_the_owner_says_that_a_peer_is_it_stays_though_the_peer_says_so_no_more() -> None:
    book = AddressBook()
    book.add(PEER, [AT_A], source="identify", now_s=0.0)
    book.add(PEER, [AT_A], source="bootstrap", now_s=1.0)
    book.add(PEER, [AT_B], source="identify", now_s=2.0)
    assert book.addresses(PEER) == (AT_B, AT_A)


@pytest.mark.parametrize("source", ["kad", "mdns"])
def test_strangers_words_push_out_neither_the_owner_s_nor_the_peer_s_own(source: str) -> None:
    book = AddressBook()
    book.add(PEER, [AT_A], source="bootstrap", now_s=0.0)
    book.add(PEER, [AT_B], source="identify", now_s=0.0)
    for number in range(100):
        book.add(PEER, [binary(f"/ip4/192.168.7.7/tcp/{1 + number}")], source=source, now_s=1.0 + number)
    assert {AT_A, AT_B} < set(book.addresses(PEER))


def test_two_thousand_addresses_leave_room_for_one_that_works() -> None:
    book = book_of("/ip4/192.0.2.1/tcp/4001")
    book.succeeded(PEER, binary("/ip4/192.0.2.1/tcp/4001"), now_s=0.0)
    for start in range(1, 2001, 16):
        invented = [binary(f"/ip4/10.1.0.1/tcp/{port}") for port in range(start, start + 16)]
        book.add(PEER, invented, source="liar", now_s=float(start))
    assert len(book.addresses(PEER)) == BookSettings().max_addresses_per_peer
    assert texts(book)[0] == "/ip4/192.0.2.1/tcp/4001"


def test_of_one_message_no_more_addresses_are_looked_at_than_are_kept() -> None:
    looked_at = 0

    def endless() -> Iterator[bytes]:
        nonlocal looked_at
        while True:
            looked_at += 1
            yield b"junk"

    AddressBook().add(PEER, endless(), source="liar", now_s=0.0)
    assert looked_at <= BookSettings().max_addresses_per_peer


def test_the_peer_that_was_used_longest_ago_is_forgotten_first() -> None:
    book = AddressBook(BookSettings(max_peers=2))
    first, second, third = (PeerId(bytes([number])) for number in range(3))
    for peer in (first, second):
        book.add(peer, [REFUSED], source="test", now_s=0.0)
    book.succeeded(first, REFUSED, now_s=1.0)
    book.add(third, [REFUSED], source="test", now_s=2.0)
    assert [bool(book.addresses(peer)) for peer in (first, second, third)] == [True, False, True]
    assert len(book) == 2


def test_a_peer_s_source_is_who_named_it_first() -> None:
    book = book_of("/ip4/192.0.2.1/tcp/4001")
    book.add(PEER, [REFUSED], source="later", now_s=1.0)
    assert (book.source_of(PEER), book.source_of(OTHER)) == ("test", "")


def test_a_peer_that_fails_is_left_alone_twice_as_long_each_time() -> None:
    book = AddressBook(BookSettings(backoff_s=1.0, max_backoff_s=5.0))
    book.add(PEER, [REFUSED], source="test", now_s=0.0)
    waits = []
    for _ in range(5):
        book.failed(PEER, now_s=10.0)
        waits.append(book.wait_s(PEER, gives_s=math.inf, now_s=10.0))
    assert waits == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert book.wait_s(PEER, gives_s=math.inf, now_s=14.0) == 1.0
    assert book.wait_s(PEER, gives_s=math.inf, now_s=15.0) == 0.0
    assert book.wait_s(OTHER, gives_s=math.inf, now_s=0.0) == 0.0


def test_a_new_address_or_a_success_ends_the_wait_and_an_old_address_does_not() -> None:
    book = book_of("/ip4/192.0.2.1/tcp/4001")
    book.failed(PEER, now_s=0.0)
    book.add(PEER, [binary("/ip4/192.0.2.1/tcp/4001")], source="test", now_s=0.0)
    assert book.wait_s(PEER, gives_s=math.inf, now_s=0.0) == 1.0
    book.add(PEER, [binary("/ip4/192.0.2.2/tcp/4001")], source="test", now_s=0.0)
    assert book.wait_s(PEER, gives_s=math.inf, now_s=0.0) == 0.0
    book.failed(PEER, now_s=0.0)
    book.succeeded(PEER, binary("/ip4/192.0.2.2/tcp/4001"), now_s=0.0)
    assert book.wait_s(PEER, gives_s=math.inf, now_s=0.0) == 0.0


def test_what_the_owner_vouches_for_is_believed_though_a_peer_said_it_before_or_says_it_again() -> None:
    book, name = AddressBook(), binary("/dns4/node.lan/tcp/4001")
    nearest = []
    for source in ("kad", "mdns", "manual", "kad", "mdns", "identify"):
        book.add(PEER, [name], source=source, now_s=0.0)
        nearest.append(book.nearest_of(PEER, name))
    assert nearest == [Reach.INTERNET, Reach.LOCAL_NETWORK, *[Reach.MACHINE] * 4]


@pytest.mark.parametrize(
    ("source", "lasting"),
    [("kad", ["kad", "mdns", "manual"]), ("mdns", ["mdns", "manual"]), ("manual", ["manual"])],
)
def test_a_name_lasts_if_it_came_from_who_may_tell_of_names_as_near_as_the_peers_source_may(
    source: str, lasting: list[str]
) -> None:
    book = AddressBook()
    book.add(PEER, [binary("/ip4/192.0.2.1/tcp/4001")], source=source, now_s=0.0)
    names = {teller: binary(f"/dns4/{teller}.example/tcp/4001") for teller in ("kad", "mdns", "manual")}
    for teller, name in names.items():
        book.add(PEER, [name], source=teller, now_s=0.0)
    assert set(book.lasting(PEER)) == {binary("/ip4/192.0.2.1/tcp/4001"), *(names[teller] for teller in lasting)}
    assert book.lasting(PeerId(b"\x00\x01?")) == ()


def test_what_is_said_again_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[bytes] = []

    def canonical(peer: PeerId, raw: bytes) -> bytes | None:
        looked_at.append(raw)
        return canonical_address(peer, raw)

    monkeypatch.setattr(address_book_module, "canonical_address", canonical)
    book = AddressBook()
    for _ in range(3):
        book.add(PEER, [REFUSED], source="kad", now_s=0.0)
    assert looked_at == [REFUSED]


def test_a_full_address_is_a_peer_and_where_it_is() -> None:
    full = f"/ip4/192.0.2.1/tcp/4001/p2p/{peer_text(PEER)}"
    assert split_peer_address(full) == (PEER, binary("/ip4/192.0.2.1/tcp/4001"))


@pytest.mark.parametrize(
    "wrong",
    [
        "/ip4/192.0.2.1/tcp/4001",
        "/ip4/192.0.2.1/tcp/4001/p2p/",
        "/ip4/192.0.2.1/tcp/4001/p2p/nobody",
        f"nonsense/p2p/{peer_text(PEER)}",
        f"/ip4/0.0.0.0/tcp/4001/p2p/{peer_text(PEER)}",
        f"/p2p/{peer_text(PEER)}",
        "",
    ],
)
def test_what_is_no_full_address_is_refused(wrong: str) -> None:
    with pytest.raises(ValidationError):
        split_peer_address(wrong)
