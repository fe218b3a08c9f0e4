"""What no operation takes: said in a line, by the node that is asked for it, before anybody else hears of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from trio.testing import MockClock

from prime_dht.errors import ValidationError
from prime_dht.node.core import Node
from prime_dht.testing.swarm import open_swarm

Operation = Callable[..., Awaitable[object]]

CONTENT = b"\x12\x20" + bytes(32)

WRONG: list[tuple[Callable[[Node], Operation], tuple[object, ...], dict[str, object], str]] = [
    (lambda node: node.get, ("/prime/",), {}, "empty behind /prime/"),
    (lambda node: node.get_all, (b"/prime/",), {}, "empty behind /prime/"),
    (lambda node: node.get_many, (["k", "/prime/"],), {}, "empty behind /prime/"),
    (lambda node: node.put, ("/prime/", b""), {}, "empty behind /prime/"),
    (lambda node: node.get, ("k",), {"subkey": bytes(5_000_000)}, "5,000,000 bytes exceeds the limit of 256"),
    (lambda node: node.get_all, ("k",), {"subkeys": [bytes(257)]}, "257 bytes exceeds the limit of 256"),
    (lambda node: node.get_all, ("k",), {"subkeys": ["a"]}, "a subkey is bytes, not str"),
    (lambda node: node.get_all, ("k",), {"subkeys": b"a"}, "in a list or the like"),
    (lambda node: node.get_all, ("k",), {"cursor": "x"}, "a cursor is bytes, not str"),
    (lambda node: node.get_all, ("k",), {"cursor": b"x"}, "none that a page ended with"),
    (lambda node: node.get_all, ("k",), {"cursor": bytes(4)}, "none that a page ended with"),
    (lambda node: node.get_all, ("k",), {"limit": "2"}, "limit is a whole number, not str"),
    (lambda node: node.get, ("k",), {"quorum": "2"}, "quorum is a whole number, not str"),
    (lambda node: node.get_many, (["k"],), {"quorum": 1.5}, "quorum is a whole number, not float"),
    (lambda node: node.get_record, (b"/pk/k",), {"quorum": "2"}, "quorum is a whole number, not str"),
    (lambda node: node.find_providers, (CONTENT,), {"count": "2"}, "count is a whole number, not str"),
    (lambda node: node.put, ("k", b""), {"replication": "3"}, "replication is a whole number, not str"),
    (lambda node: node.put_many, ({"k": b""},), {"replication": "3"}, "replication is a whole number, not str"),
    (lambda node: node.put, ("k", b""), {"ttl": 1e305}, "ttl must be a number of seconds"),
    (lambda node: node.put, ("k", b""), {"ttl": 10**5000}, "ttl must be a number of seconds"),
    (lambda node: node.put, ("k", b""), {"expires_at": 1e305}, "expires_at must be a number of seconds"),
    (lambda node: node.put, ("k", b""), {"expires_at": -(10**400)}, "expires_at must be a number of seconds"),
    (lambda node: node.put_many, ({"k": b""},), {"ttl": 1e305}, "ttl must be a number of seconds"),
    (lambda node: node.put, ("k", b""), {"metadata": ["a"]}, "metadata maps names to texts"),
    (lambda node: node.put_many, ([1],), {}, "a pair of a key and a value"),
    (lambda node: node.put_many, (["kv"],), {}, "a pair of a key and a value"),
    (lambda node: node.put_many, ([("k", b"v", "x")],), {}, "a pair of a key and a value"),
]


@pytest.mark.parametrize(("operation", "given", "named", "says"), WRONG)
async def test_what_is_not_taken_is_refused_before_anything_is_sent(
    operation: Callable[[Node], Operation],
    given: tuple[object, ...],
    named: dict[str, object],
    says: str,
    autojump_clock: MockClock,
) -> None:
    async with open_swarm(seed=1, size=2) as swarm:
        node = swarm.nodes[0]
        before = swarm.world.requests.copy()
        with pytest.raises(ValidationError, match=says):
            await operation(node)(*given, **named)
        assert swarm.world.requests == before
