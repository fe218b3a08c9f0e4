from __future__ import annotations

import pytest

from prime_dht.kad.contact import IP4, IP6, UNPLACED, subnets_of

TCP_4001 = b"\x06\x0f\xa1"
V4_MAPPED = b"\x00" * 10 + b"\xff\xff"


def ip4(*octets: int) -> bytes:
    return bytes([IP4, *octets]) + TCP_4001


def ip6(address: bytes) -> bytes:
    return bytes([IP6]) + address.ljust(16, b"\x00") + TCP_4001


def test_a_subnet_is_the_first_16_bits_of_ipv4_and_32_of_ipv6() -> None:
    assert subnets_of([ip4(8, 8, 1, 2)]) == (b"\x08\x08",)
    assert subnets_of([ip6(b"\x2a\x00\x14\x50\x40\x01")]) == (b"\x2a\x00\x14\x50",)


def test_addresses_of_one_subnet_count_once() -> None:
    assert subnets_of([ip4(8, 8, 1, 2), ip4(8, 8, 3, 4), ip4(9, 9, 9, 9)]) == (b"\x08\x08", b"\x09\x09")


def test_an_ipv4_address_written_as_ipv6_is_in_the_same_subnet() -> None:
    assert subnets_of([ip6(V4_MAPPED + b"\x08\x08\x01\x02")]) == (b"\x08\x08",)


@pytest.mark.parametrize(
    "address",
    [ip4(127, 0, 0, 1), ip4(10, 1, 2, 3), ip4(192, 168, 0, 1), ip6(b"\xfe\x80"), ip6(b"\xfd\x12"), ip6(b"")],
)
def test_loopback_and_private_addresses_are_in_no_subnet(address: bytes) -> None:
    assert subnets_of([address]) == ()


@pytest.mark.parametrize("address", [b"", b"\x36\x03a.b" + TCP_4001, bytes([IP4, 8, 8]), bytes([IP6, 1, 2])])
def test_names_and_malformed_addresses_share_one_subnet(address: bytes) -> None:
    assert subnets_of([address]) == (UNPLACED,)
