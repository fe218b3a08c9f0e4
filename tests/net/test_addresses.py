"""Which addresses are believed of whom."""

from __future__ import annotations

import pytest
from multiaddr import Multiaddr

from prime_dht.ids import PeerId
from prime_dht.net.addresses import Reach, credible, credible_reply, is_tcp, reach_of
from prime_dht.wire.kad import PeerRecord, Reply


def raw(text: str) -> bytes:
    return bytes(Multiaddr(text).to_bytes())


MACHINE, LOCAL_NETWORK = raw("/ip4/127.0.0.1/tcp/22"), raw("/ip4/192.168.1.7/tcp/4001")
INTERNET = raw("/ip4/8.8.8.8/tcp/4001")
ALL = (MACHINE, LOCAL_NETWORK, INTERNET)
PEER = "12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B"


@pytest.mark.parametrize(
    ("text", "reach"),
    [
        ("/ip4/127.9.9.9/tcp/1", Reach.MACHINE),
        ("/ip4/0.0.0.0/tcp/1", Reach.MACHINE),
        ("/ip6/::1/tcp/1", Reach.MACHINE),
        ("/ip6/::ffff:127.0.0.1/tcp/1", Reach.MACHINE),
        ("/ip4/10.0.0.1/tcp/1", Reach.LOCAL_NETWORK),
        ("/ip4/172.16.0.1/tcp/1", Reach.LOCAL_NETWORK),
        ("/ip4/169.254.169.254/tcp/80", Reach.LOCAL_NETWORK),
        ("/ip4/100.64.0.1/tcp/1", Reach.LOCAL_NETWORK),
        ("/ip6/fe80::1/tcp/1", Reach.LOCAL_NETWORK),
        ("/ip6/fd00::1/tcp/1", Reach.LOCAL_NETWORK),
        ("/ip6/::ffff:10.0.0.1/tcp/1", Reach.LOCAL_NETWORK),
        ("/ip4/8.8.8.8/udp/1/quic-v1", Reach.INTERNET),
        ("/ip6/2600::1/tcp/1", Reach.INTERNET),
        ("/dns4/example.org/tcp/1", Reach.INTERNET),
    ],
)
def test_an_address_reaches_so_far(text: str, reach: Reach) -> None:
    assert reach_of(raw(text)) is reach


@pytest.mark.parametrize("hostile", [b"", b"\x04", b"\x84\x00" + MACHINE[1:], b"\x29\x00", b"\xff" * 20])
def test_what_is_no_plain_address_is_believed_of_nobody_from_afar(hostile: bytes) -> None:
    assert reach_of(hostile) is Reach.MACHINE


def test_no_bytes_are_too_short_to_look_for_a_port() -> None:
    for text in ("/ip4/10.0.0.1/tcp/1/p2p/" + PEER, "/ip6/::1/tcp/1/p2p/" + PEER, "/dns4/a.example/tcp/1/p2p/" + PEER):
        whole = raw(text)
        assert [is_tcp(whole[:end]) for end in range(len(whole) - 38, len(whole) + 1)] == [False] * 38 + [True]
        assert not any(is_tcp(whole[:end]) for end in range(5))


@pytest.mark.parametrize(
    ("told_from", "believed"),
    [
        (MACHINE, ALL),
        (LOCAL_NETWORK, (LOCAL_NETWORK, INTERNET)),
        (INTERNET, (INTERNET,)),
        (None, (INTERNET,)),
    ],
)
def test_a_peer_is_believed_what_lies_no_nearer_than_itself(
    told_from: bytes | None, believed: tuple[bytes, ...]
) -> None:
    assert credible(ALL, told_from=told_from) == believed
    peer = PeerId(b"peer")
    reply = Reply(closer=(PeerRecord(peer, ALL),), providers=(PeerRecord(peer, ALL),), held=True)
    records = (PeerRecord(peer, believed),)
    assert credible_reply(reply, told_from=lambda: told_from) == Reply(closer=records, providers=records, held=True)


def test_of_a_peer_that_listens_with_many_transports_the_addresses_that_can_be_dialled_come_first() -> None:
    others = [raw(f"/ip4/8.8.8.{n}/{end}") for n in range(4) for end in ("udp/1/quic-v1", "tcp/1/ws")]
    tcp = [raw(f"/{host}/tcp/1{end}") for host in ("dns4/a.example", "ip6/2600::1") for end in ("", f"/p2p/{PEER}")]
    reply = credible_reply(Reply(closer=(PeerRecord(PeerId(b"peer"), (*others, *tcp)),)), told_from=lambda: INTERNET)
    assert reply.closer[0].addresses == (*tcp, *others)


def test_a_reply_that_names_the_internet_alone_needs_no_look_at_who_sent_it() -> None:
    peer = PeerId(b"peer")
    reply = Reply(closer=(PeerRecord(peer, (INTERNET,)), PeerRecord(peer)), providers=(PeerRecord(peer, (INTERNET,)),))
    looks: list[None] = []
    assert credible_reply(reply, told_from=lambda: looks.append(None)) is reply
    assert not looks
