"""The blocking API is the asynchronous one: the same operations, parameters, results and words."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_overloads

import pytest

from prime_dht import BlockingDHT, PrimeDHT
from prime_dht.blocking.blobs import BlockingBlobs
from prime_dht.node.blobs.blobs import Blobs

OWN_WORDS = {"provide", "subscribe", "stream"}
"""Those that return what only trio can wait for, and here something else."""

NOT_HERE = {
    # for hosts and services of py-libp2p
    "find_provider_iter", "get_manager", "manager", "run",
    # for discovery, and for nodes themselves
    "peer_found", "syncs",
    # parts of put and get
    "resolve",
}  # fmt: skip

ONLY_HERE = {"call", "close", "data_dir", "pages"}

TAKEN = ("timeout", "wait")

PAIRS = [(BlockingDHT, PrimeDHT), (BlockingBlobs, Blobs)]


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def parameters(function: Callable[..., object]) -> list[inspect.Parameter]:
    return [one for one in inspect.signature(function).parameters.values() if one.name not in TAKEN]


OPERATIONS = [
    pytest.param(getattr(blocking, name), getattr(asynchronous, name), id=f"{asynchronous.__name__}.{name}")
    for blocking, asynchronous in PAIRS
    for name in sorted(public(blocking) & public(asynchronous))
    if inspect.isfunction(getattr(asynchronous, name))
]


def test_there_is_every_operation_and_no_other() -> None:
    assert public(BlockingDHT) - {"blobs"} == public(PrimeDHT) - NOT_HERE | ONLY_HERE
    assert public(BlockingBlobs) == public(Blobs) - NOT_HERE - {"put"}


@pytest.mark.parametrize(("blocking", "asynchronous"), OPERATIONS)
def test_it_takes_the_same_and_a_timeout(blocking: Callable[..., Any], asynchronous: Callable[..., Any]) -> None:
    assert parameters(blocking) == parameters(asynchronous)
    for overload in get_overloads(blocking):
        assert [(one.name, one.annotation, one.kind) for one in parameters(overload)] == [
            (one.name, one.annotation, one.kind) for one in parameters(asynchronous)
        ]
    if asynchronous.__name__ != "subscribe":
        assert "timeout" in inspect.signature(blocking).parameters


@pytest.mark.parametrize(("blocking", "asynchronous"), OPERATIONS)
def test_it_returns_the_same_or_a_future_of_it(blocking: Callable[..., Any], asynchronous: Callable[..., Any]) -> None:
    if asynchronous.__name__ in OWN_WORDS:
        return
    result = inspect.signature(asynchronous).return_annotation
    overloads = [inspect.signature(one).return_annotation for one in get_overloads(blocking)]
    assert overloads == ([result, f"Future[{result}]"] if overloads else [])
    if not overloads:
        assert inspect.signature(blocking).return_annotation == result


@pytest.mark.parametrize(("blocking", "asynchronous"), OPERATIONS)
def test_it_says_the_same(blocking: Callable[..., Any], asynchronous: Callable[..., Any]) -> None:
    assert inspect.getdoc(blocking)
    if asynchronous.__name__ not in OWN_WORDS:
        assert inspect.getdoc(blocking) == inspect.getdoc(asynchronous)


def test_properties_say_the_same() -> None:
    assert inspect.getdoc(BlockingDHT.peer_id) == inspect.getdoc(PrimeDHT.peer_id)
