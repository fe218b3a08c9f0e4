"""Ops that this node declined, so that it need not be offered them again, round after round.

An entry may be refused for good: its publisher is not welcome here, it is too large for this node's limits. Another
node, with other limits, has it. Were the op simply missing here, the two would differ for ever. So a declined op is
remembered until it retires, and while two nodes compare, each counts those it declined as if it had them.

The set is bounded. An op for which there is no room leaves its sector *unheld*: this node cannot say any more that it
knows all that belongs there.

>>> declined = Declined(limit=1)
>>> declined.add(DeclinedOp(op_id=b"a" * 32, location=0, created_at_us=5, retain_until_us=50))
True
>>> declined.add(DeclinedOp(op_id=b"b" * 32, location=0, created_at_us=6, retain_until_us=60))
False
>>> declined.retire(51)
>>> len(declined)
0
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclinedOp:
    """What the partition sees of an entry, and until when it matters."""

    op_id: bytes
    location: int
    created_at_us: int
    retain_until_us: int


class Declined:
    """At most ``limit`` declined ops, each once."""

    def __init__(self, *, limit: int = 4096) -> None:
        self._limit = limit
        self._ops: dict[bytes, DeclinedOp] = {}

    def add(self, op: DeclinedOp) -> bool:
        """Remember an op; returns whether it is in the set now. If not, its sector is no longer held."""
        if op.op_id not in self._ops and len(self._ops) >= self._limit:
            return False
        self._ops[op.op_id] = op
        return True

    def discard(self, op_id: bytes) -> None:
        """Forget an op, for it was stored after all."""
        self._ops.pop(op_id, None)

    def retire(self, before_us: int) -> None:
        """Forget the ops that were retained until before this time (:mod:`prime_dht.entries.lifetime`)."""
        self._ops = {op_id: op for op_id, op in self._ops.items() if op.retain_until_us >= before_us}

    def __contains__(self, op_id: bytes) -> bool:
        return op_id in self._ops

    def __iter__(self) -> Iterator[DeclinedOp]:
        return iter(self._ops.values())

    def __len__(self) -> int:
        return len(self._ops)
