from __future__ import annotations

import inspect

import pytest

import prime_dht
from prime_dht import PrimeDHT, PrimeDHTError


def test_each_public_name_is_exported_once_and_is_there() -> None:
    assert prime_dht.__all__ == sorted(set(prime_dht.__all__))
    for name in prime_dht.__all__:
        assert getattr(prime_dht, name).__name__ == name
        assert getattr(prime_dht, name).__doc__


def test_every_error_is_one_root_and_wrong_values_are_value_errors() -> None:
    errors = [getattr(prime_dht, name) for name in prime_dht.__all__ if name.endswith("Error")]
    assert all(issubclass(error, PrimeDHTError) for error in errors)
    assert {error.__name__ for error in errors if issubclass(error, ValueError)} == {"ConfigError", "ValidationError"}


@pytest.mark.parametrize(
    ("operation", "parameters"),
    [
        ("put", {"key", "value", "subkey", "ttl", "expires_at", "replication", "metadata", "keep"}),
        ("get", {"key", "subkey", "publisher", "trusted", "quorum", "latest"}),
        ("get_all", {"key", "subkeys", "publishers", "limit", "cursor"}),
        ("delete", {"key", "subkey"}),
        ("put_many", {"items"}),
        ("get_many", {"keys"}),
        ("put_record", {"key", "value"}),
        ("get_record", {"key"}),
        ("provide", {"cid", "announce"}),
        ("find_providers", {"cid", "count"}),
        ("find_provider_iter", {"cid", "count"}),
        ("find_peer", {"peer_id"}),
        ("find_closest", {"key"}),
        ("bootstrap", set()),
        ("add_peer", {"address"}),
        ("peers", set()),
        ("stats", set()),
        ("health", set()),
        ("cleanup_expired", set()),
        ("subscribe", set()),
    ],
)
def test_a_node_offers_what_is_promised_and_documents_it(operation: str, parameters: set[str]) -> None:
    method = getattr(PrimeDHT, operation)
    assert parameters <= set(inspect.signature(method).parameters)
    assert inspect.getdoc(method)


def test_a_name_that_is_not_public_is_no_attribute() -> None:
    with pytest.raises(AttributeError):
        _ = prime_dht.Node
