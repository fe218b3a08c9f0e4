"""What becomes of packets between namespaces."""

from __future__ import annotations

import socket
from random import Random

from .switch import Air

ONE, TWO, THREE = "10.0.0.1", "10.0.0.2", "10.0.0.3"


def packet(sender: str, receiver: str, number: int = 0) -> bytes:
    header = bytes([0x45]) + bytes(11) + socket.inet_aton(sender) + socket.inet_aton(receiver)
    return header + number.to_bytes(4, "big")


def test_packets_arrive_late_and_in_order() -> None:
    air = Air(Random(1), delay_s=0.5, loss=0.0)
    assert air.wait_s(now_s=0.0) is None
    packets = [packet(ONE, TWO, number) for number in range(3)]
    for number, one in enumerate(packets):
        air.take(one, now_s=number)
    assert air.wait_s(now_s=0.25) == 0.25
    assert list(air.due(now_s=1.5)) == [(TWO, packets[0]), (TWO, packets[1])]
    assert list(air.due(now_s=2.5)) == [(TWO, packets[2])]


def test_the_share_that_is_lost_is_as_asked_and_the_same_for_a_seed() -> None:
    def arrived(seed: int) -> list[bytes]:
        air = Air(Random(seed), delay_s=0.0, loss=0.02)
        for number in range(10_000):
            air.take(packet(ONE, TWO, number), now_s=0.0)
        assert air.counts.lost == 10_000 - len(air._under_way)
        return [one for _, one in air.due(now_s=0.0)]

    assert 100 < 10_000 - len(arrived(1)) < 300
    assert arrived(1) == arrived(1)
    assert arrived(1) != arrived(2)


def test_nothing_crosses_a_cut_until_it_is_healed() -> None:
    air = Air(Random(1), delay_s=0.0, loss=0.0)
    air.cut(frozenset({ONE, TWO}))
    for sender, receiver in ((ONE, TWO), (ONE, THREE), (THREE, TWO), (THREE, THREE)):
        air.take(packet(sender, receiver), now_s=0.0)
    assert [address for address, _ in air.due(now_s=0.0)] == [TWO, THREE]
    assert air.counts.cut == 2
    air.cut(frozenset())
    air.take(packet(ONE, THREE), now_s=0.0)
    assert [address for address, _ in air.due(now_s=0.0)] == [THREE]


def test_what_is_no_ipv4_goes_nowhere() -> None:
    air = Air(Random(1), delay_s=0.0, loss=0.0)
    for other in (b"", packet(ONE, TWO)[:19], bytes([0x60]) + bytes(60)):
        air.take(other, now_s=0.0)
    assert list(air.due(now_s=1.0)) == []
