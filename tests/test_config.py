from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields, replace
from enum import Enum

import numpy as np
import pytest
from multiaddr import Multiaddr

from prime_dht import ConfigError, DhtConfig, Limits, Mode, NodeConfig
from prime_dht.partition.parameters import PartitionParameters

PEER = "12D3KooWLRPJAA5o6Ue7HZ1ZUKzNx1bmXZzHnQXEMNvvTHDsdc1B"


def test_the_defaults_are_the_documented_ones() -> None:
    config = DhtConfig()
    assert (config.k_bucket_size, config.alpha, config.replication_factor) == (20, 3, 3)
    assert (config.refresh_interval, config.ttl) == (3600.0, 86400.0)
    assert config.write_quorum == 2
    assert (config.kad_protocol, config.rpc_protocol) == ("/prime/kad/1.0.0", "/prime/rpc/1.0.0")


def test_numbers_of_numpys_become_pythons_own() -> None:
    config = DhtConfig(rpc_timeout_s=np.float32(3), cache_ttl_s=np.float16(0), alpha=np.int64(2))  # type: ignore[arg-type]
    numbers = (config.rpc_timeout_s, config.cache_ttl_s, config.alpha)
    assert [(number, type(number)) for number in numbers] == [(3.0, float), (0.0, float), (2, int)]


def test_times_that_the_nodes_of_a_network_agree_on_are_exact_whoever_gave_the_numbers() -> None:
    ours = DhtConfig(unit_s=3600, factor=5, limits=Limits(max_ttl_s=100_003))
    for number in (np.int32, np.float32):
        limits = Limits(max_ttl_s=number(100_003))  # type: ignore[arg-type]
        numpys = DhtConfig(unit_s=number(3600), factor=np.int8(5), limits=limits)  # type: ignore[arg-type]
        assert (numpys.limits.max_ttl_us, numpys.partition) == (100_003_000_000, ours.partition)


def test_networks_have_protocols_of_their_own_unless_told_otherwise() -> None:
    lab = DhtConfig(network_id="Labor-é.1")
    assert (lab.kad_protocol, lab.rpc_protocol) == ("/prime/Labor-é.1/kad/1.0.0", "/prime/Labor-é.1/rpc/1.0.0")
    assert replace(lab, protocol_prefix="/ipfs").kad_protocol == "/ipfs/kad/1.0.0"
    assert replace(lab, protocol_prefix="/a/b").rpc_protocol == "/a/b/rpc/1.0.0"


def test_the_parameters_of_the_network_are_those_of_its_partition() -> None:
    assert DhtConfig().partition == PartitionParameters()
    tuned = DhtConfig(unit_s=60.0, factor=5, sector_bits=12).partition
    assert (tuned.unit_us, tuned.factor, tuned.sector_count) == (60_000_000, 5, 4096)


@pytest.mark.parametrize(
    ("preset", "values"),
    [
        (DhtConfig.high_performance(), (32, 8, 5, 1800.0, 172800.0)),
        (DhtConfig.low_latency(), (10, 2, 2, 7200.0, 43200.0)),
    ],
)
def test_the_presets_are_the_documented_ones(preset: DhtConfig, values: tuple[float, ...]) -> None:
    assert (
        preset.k_bucket_size,
        preset.alpha,
        preset.replication_factor,
        preset.refresh_interval,
        preset.ttl,
    ) == values


@pytest.mark.parametrize(
    "wrong",
    [
        {"alpha": 21},
        {"alpha": 0},
        {"replication_factor": 21},
        {"replication_factor": 0},
        {"k_bucket_size": 0},
        {"k_bucket_size": 2},
        {"read_quorum": 0},
        {"read_quorum": 4},
        {"ttl": 0.0},
        {"ttl": float("nan")},
        {"ttl": 31 * 86400.0},
        {"refresh_interval": float("inf")},
        {"rpc_timeout_s": -1.0},
        {"operation_timeout_s": 0.0},
        {"cache_ttl_s": -1.0},
        {"unit_s": 0.5},
        {"unit_s": 86_401.0},
        {"unit_s": float("nan")},
        {"factor": 0},
        {"factor": 54},
        {"sector_bits": 4},
        {"sector_bits": 13},
        {"cache_bytes": -1},
        {"network_id": ""},
        {"network_id": "n" * 65},
        {"network_id": "two words"},
        {"network_id": "a/b"},
        {"network_id": "a\nb"},
        {"network_id": "\ud800"},
        {"protocol_prefix": ""},
        {"protocol_prefix": "/"},
        {"protocol_prefix": "prime"},
        {"protocol_prefix": "/prime/"},
        {"protocol_prefix": "/prime//lab"},
        {"protocol_prefix": "/prime lab"},
        {"allow_publishers": frozenset({"no peer id"})},
        {"allow_peers": frozenset({"no peer id"})},
    ],
)
def test_what_is_out_of_range_or_contradicts_itself_is_a_config_error(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        DhtConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "wrong", "told"),
    [
        (DhtConfig, {"alpha": "3"}, "alpha is a number, not str"),
        (DhtConfig, {"alpha": None}, "alpha is a number, not NoneType"),
        (DhtConfig, {"factor": 3.5}, "factor is a whole number, not 3.5"),
        (DhtConfig, {"read_quorum": "1"}, "read_quorum is a number, not str"),
        (DhtConfig, {"ttl": "1h"}, "ttl is a number, not str"),
        (DhtConfig, {"unit_s": None}, "unit_s is a number, not NoneType"),
        (DhtConfig, {"mode": "Client"}, "mode is a Mode, or server or client or auto, not 'Client'"),
        (DhtConfig, {"network_id": None}, "network_id is text, not NoneType"),
        (DhtConfig, {"protocol_prefix": b"/ipfs"}, "protocol_prefix is text, not bytes"),
        (DhtConfig, {"pipelining": "no"}, "pipelining is True or False, not 'no'"),
        (DhtConfig, {"allow_peers": PEER}, "allow_peers is a list of texts, not str"),
        (DhtConfig, {"allow_peers": [1]}, "allow_peers is a list of texts, but in it is int"),
        (DhtConfig, {"limits": {"max_ttl_s": 60}}, "limits is a Limits, not dict"),
        (NodeConfig, {"max_connections": "9"}, "max_connections is a number, not str"),
        (NodeConfig, {"peers": f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}"}, "peers is a list of texts, not str"),
        (NodeConfig, {"listen": None}, "listen is a list of texts, not NoneType"),
        (NodeConfig, {"mdns": None}, "mdns is True or False, not None"),
        (NodeConfig, {"redis_url": 6379}, "redis_url is text, not int"),
        (NodeConfig, {"dht": {"alpha": 2}}, "dht is a DhtConfig, not dict"),
        (Limits, {"max_slots_per_key": 3.7}, "max_slots_per_key is a whole number, not 3.7"),
        (Limits, {"max_ttl_s": "1d"}, "max_ttl_s is a number, not str"),
    ],
)
def test_what_is_of_another_kind_is_a_config_error_that_names_it(
    config: type, wrong: dict[str, object], told: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**wrong)
    assert str(caught.value) == told


def test_what_is_plainly_meant_is_taken() -> None:
    dht = DhtConfig(mode="client", cache_bytes=1e6, allow_peers=[PEER])  # type: ignore[arg-type]
    assert (dht.mode, dht.cache_bytes, type(dht.cache_bytes)) == (Mode.CLIENT, 1_000_000, int)
    assert dht.allow_peers == frozenset({PEER})
    address = f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}"
    node = NodeConfig(peers=[Multiaddr(address)], mdns=np.True_)  # type: ignore[arg-type]
    assert (node.peers, node.mdns) == ((address,), True)
    assert hash(node) == hash(NodeConfig(peers=(address,), mdns=True))


def test_a_text_is_taken_as_it_is_whatever_else_it_is() -> None:
    class Known(str, Enum):  # noqa: UP042 - whose text is its name
        NODE = f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}"
        PUBLISHER = PEER

    assert NodeConfig(listen=(), peers=(Known.NODE,)).peers == (f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}",)
    assert DhtConfig(allow_publishers=frozenset({Known.PUBLISHER})).allow_publishers == frozenset({PEER})


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("/dns4/localhost/tcp/4999", "/dns4/localhost/tcp/4999 does not begin with an IP address"),
        ("/dnsaddr/localhost", "/dnsaddr/localhost does not begin with an IP address"),
        ("/unix/tmp/x", "/unix/tmp/x does not begin with an IP address"),
        ("/tcp/4001", "/tcp/4001 does not begin with an IP address"),
        ("", "'' does not begin with an IP address"),
        ("/ip4/127.0.0.1", "/ip4/127.0.0.1 has no port"),
        ("/ip4/127.0.0.1/udp/4001", "/ip4/127.0.0.1/udp/4001 is not TCP alone"),
        ("/ip4/127.0.0.1/udp/4601/quic-v1", "/ip4/127.0.0.1/udp/4601/quic-v1 is not TCP alone"),
        ("/ip6/::1/tcp/4601/ws", "/ip6/::1/tcp/4601/ws is not TCP alone"),
        ("/ip4/127.0.0.1/tcp/4601/tls/ws", "/ip4/127.0.0.1/tcp/4601/tls/ws is not TCP alone"),
    ],
)
def test_a_node_listens_on_an_ip_address_and_a_tcp_port(address: str, fault: str) -> None:
    allowed = "a node listens on an IP address and a TCP port, such as /ip4/127.0.0.1/tcp/4001"
    with pytest.raises(ConfigError) as caught:
        NodeConfig(listen=(address,))
    assert str(caught.value) == f"listen: {fault}: {allowed}"


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("/ip4/0.0.0.0/tcp/4001", "leads to no one machine"),
        ("/ip6/ff02::1/tcp/4001", "leads to no one machine"),
        ("/ip4/192.0.2.1/tcp/0", "has no port"),
        ("/dns4/node.example/tcp/0", "has no port"),
        ("/ip4/192.0.2.1", "has no port"),
        ("/dns4/node.example/udp/4001", "is not TCP"),
        ("/ip4/192.0.2.1/udp/4001/quic-v1", "is not TCP"),
        (f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}/p2p-circuit", "leads through another peer"),
        ("/unix/tmp/x", "does not begin with an IP address or a DNS name"),
        ("/tcp/4001", "does not begin with an IP address or a DNS name"),
    ],
)
def test_a_node_announces_what_others_can_dial(address: str, fault: str) -> None:
    allowed = "others dial an IP address or a DNS name and a TCP port, such as /dns4/node.example/tcp/4001"
    with pytest.raises(ConfigError) as caught:
        NodeConfig(announce=(address,))
    assert str(caught.value) == f"announce: {address} {fault}: {allowed}"


@pytest.mark.parametrize(
    "host", ["ip4/192.0.2.1", "ip6/2001:db8::1", "dns/a.example", "dns4/a.example", "dns6/a.example"]
)
@pytest.mark.parametrize("end", ["", "/ws", f"/p2p/{PEER}"])
def test_a_name_and_what_stands_before_the_node_may_be_announced(host: str, end: str) -> None:
    address = f"/{host}/tcp/4001{end}"
    assert NodeConfig(announce=(address,)).announce == (address,)


def test_a_node_config_checks_itself_too() -> None:
    with pytest.raises(ConfigError):
        NodeConfig(max_connections=0)
    with pytest.raises(ConfigError):
        NodeConfig(synchronous="OFF")  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        Limits(max_key_bytes=0)
    with pytest.raises(ConfigError, match="listen: foo is not a multiaddr"):
        NodeConfig(listen=("foo",))
    with pytest.raises(ConfigError, match=r"announce: /ip4/1\.2\.3\.4/tcp/99999 is not a multiaddr"):
        NodeConfig(announce=("/ip4/1.2.3.4/tcp/99999",))
    with pytest.raises(ConfigError, match=r"listen: /ip4/127\.0\.0\.1/tcp/0 is there twice"):
        NodeConfig(listen=("/ip4/127.0.0.1/tcp/0", "/ip6/::1/tcp/0", "/ip4/127.0.0.1/tcp/0"))


def test_a_longer_ttl_needs_a_network_that_allows_it() -> None:
    assert DhtConfig(ttl=60 * 86400.0, limits=Limits(max_ttl_s=90 * 86400.0)).ttl == 60 * 86400.0


def test_configuration_cannot_be_changed_afterwards() -> None:
    with pytest.raises(FrozenInstanceError):
        DhtConfig().alpha = 4  # type: ignore[misc]


@pytest.mark.parametrize("config", [DhtConfig, NodeConfig, Limits])
def test_every_option_has_a_sentence_that_documents_it(config: type) -> None:
    lines = inspect.getsource(config).splitlines()
    for field in fields(config):
        (place,) = [index for index, line in enumerate(lines) if line.startswith(f"    {field.name}:")]
        assert lines[place + 1].lstrip().startswith('"""'), field.name
