"""Ops that this node declined, or put off, so that it need not be offered them again, round after round.

An entry may be refused for good: its publisher is not welcome here, it is too large for this node's limits. Another
node, with other limits, has it. Were the op simply missing here, the two would differ for ever. So a declined op is
remembered until it retires, and while two nodes compare, each counts those it declined as if it had them.

An entry whose key or publisher has no room left is *put off*. The room there was is taken by others, which go when
they retire, and that is at a tick (:mod:`prime_dht.entries.lifetime`); so until the next one it is not asked for
again. What was put off may be stored before that all the same, and then it must be forgotten here, or it counts twice.

The set is bounded. An op for which there is no room leaves its sector *unheld*: this node cannot say any more that it
knows all that belongs there. So does one that is put off.

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
from dataclasses import dataclass, replace
from itertools import chain

MAX_DECLINED = 16_384
"""Ops that are remembered as declined. With so many a view takes 30 ms to make."""

MAX_PUT_OFF = 4096
"""Ops that are remembered as put off: as many as one key has slots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclinedOp:
    """What the partition sees of an entry, and until when it matters.

    Attributes:
        is_put_off: whether it was put off, not declined.
    """

    op_id: bytes
    location: int
    created_at_us: int
    retain_until_us: int
    is_put_off: bool = False


class Declined:
    """At most ``limit`` declined ops, and some that are put off, each once."""

    def __init__(self, *, limit: int = MAX_DECLINED) -> None:
        self._limit = limit
        self._ops: dict[bytes, DeclinedOp] = {}
        self._put_off: dict[bytes, DeclinedOp] = {}

    def add(self, op: DeclinedOp) -> bool:
        """Remember an op; returns whether it is in the set now. If not, its sector is no longer held."""
        if op.op_id not in self._ops and len(self._ops) >= self._limit:
            return False
        self._put_off.pop(op.op_id, None)
        self._ops[op.op_id] = op
        return True

    def put_off(self, op: DeclinedOp, *, now_us: int) -> bool:
        """Remember an op until the tick after ``now_us``; returns whether it is in the set now."""
        if op.op_id not in self and len(self._put_off) >= MAX_PUT_OFF:
            return False
        if op.op_id not in self._ops:
            self._put_off[op.op_id] = replace(op, retain_until_us=now_us, is_put_off=True)
        return True

    def discard(self, op_id: bytes) -> None:
        """Forget an op, for it was stored after all."""
        self._ops.pop(op_id, None)
        self._put_off.pop(op_id, None)

    def forget_put_off(self) -> None:
        """Forget what was put off, for some of it may have been stored."""
        self._put_off.clear()

    def retire(self, before_us: int) -> None:
        """Forget the ops that were retained until before this time (:mod:`prime_dht.entries.lifetime`)."""
        self._ops = {op_id: op for op_id, op in self._ops.items() if op.retain_until_us >= before_us}
        self._put_off = {op_id: op for op_id, op in self._put_off.items() if op.retain_until_us >= before_us}

    def __contains__(self, op_id: bytes) -> bool:
        return op_id in self._ops or op_id in self._put_off

    def __iter__(self) -> Iterator[DeclinedOp]:
        return chain(self._ops.values(), self._put_off.values())

    def __len__(self) -> int:
        return len(self._ops) + len(self._put_off)
