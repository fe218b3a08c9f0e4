"""The examiner: a round's contributions as one member has them, and the aggregates that it computed of them itself.

An outcome is *valid* if what it names are contributions of different members who are a quorum, and if their aggregate,
by the rule that all share, has the CID that it says: that of its safetensors file, cut by tensors. Aggregation is the
same to the bit for everybody, and so is the file, so who has the same contributions finds the same outcomes valid.

That contributions come from a quorum keeps a bad proposer from choosing just those that suit it, and it means that
fewer than half of what is aggregated is bad. Contributions that are not finite are named like all others; the aggregate
says that they were rejected.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from prime_dht.errors import QueryError, ValidationError
from prime_dht.ids import OpId, PeerId
from prime_dht.ml.aggregation import Aggregate, aggregate
from prime_dht.ml.agreement import Outcome
from prime_dht.ml.rounds.terms import Terms
from prime_dht.ml.tensors import Tensors
from prime_dht.ml.weights import blob_cid_of, write_safetensors

if TYPE_CHECKING:
    from prime_dht.ml.gradients import Collected, Gradient, Gradients

AGGREGATES_KEPT = 2
"""The own one, and that of the outcome found valid last."""


class Examiner:
    """See the module."""

    def __init__(self, gradients: Gradients, terms: Terms, round_number: int) -> None:
        self._gradients = gradients
        self._terms = terms
        self._round_number = round_number
        self._held: dict[OpId, Gradient] = {}
        self._proposed: Sequence[OpId] = ()
        self._aggregates: dict[bytes, Aggregate] = {}

    def propose(self, collected: Collected) -> Outcome:
        """The outcome that comes of what this member has collected.

        Raises:
            ValidationError: there are too few contributions.
        """
        self._proposed = ()
        self._held = {gradient.op_id: gradient for gradient in collected.gradients.values()}
        return self._propose(self._held)

    def leave_out_what_is_gone(self, there: Collection[OpId]) -> Outcome | None:
        """What to propose instead, if something that is proposed is not among the ops that are ``there``.

        ``None``: nothing is gone, or too much to propose anything else.
        """
        left = [op_id for op_id in self._proposed if op_id in there]
        if len(left) == len(self._proposed):
            return None
        try:
            return self._propose(left)
        except ValidationError:
            return None

    def propose_late(self, newest: Mapping[PeerId, OpId], *, timeout_s: float) -> Outcome | None:
        """What to propose where what was collected is too little, or gone: of each member what it published last.

        What comes in that time is kept for the next attempt, if it is not enough yet (``None``).
        """
        self._proposed = ()
        named = set(newest.values())
        held = {op_id: gradient for op_id, gradient in self._held.items() if op_id in named}
        self._held = held | self._fetch(sorted(named - held.keys()), timeout_s)
        try:
            return self._propose(self._held)
        except ValidationError:
            return None

    def proposes(self, there: Collection[OpId]) -> bool:
        """Whether it proposes something, and all of that is among the ops that are ``there``."""
        return bool(self._proposed) and all(op_id in there for op_id in self._proposed)

    def examine(self, outcome: Outcome, *, timeout_s: float) -> bool | None:
        """Whether an outcome is valid; ``None`` if some contribution has not come in that time."""
        if outcome.digest in self._aggregates:
            return True
        if len(outcome.op_ids) > len(self._terms.members):
            return False
        missing = [op_id for op_id in outcome.op_ids if op_id not in self._held]
        gradients = self._held | self._fetch(missing, timeout_s)
        if not gradients.keys() >= set(outcome.op_ids):
            return None
        try:
            combined, cid = self._combine([gradients[op_id] for op_id in outcome.op_ids])
        except ValidationError:
            return False
        if cid != outcome.aggregate:
            return False
        if len(self._aggregates) == AGGREGATES_KEPT:
            self._aggregates.popitem()
        self._aggregates[outcome.digest] = combined
        return True

    def aggregate_of(self, outcome: Outcome) -> Aggregate | None:
        """What this member computed itself of an outcome's contributions, if it has that still."""
        return self._aggregates.get(outcome.digest)

    def _propose(self, op_ids: Iterable[OpId]) -> Outcome:
        named = tuple(sorted(op_ids))
        combined, cid = self._combine([self._held[op_id] for op_id in named])
        outcome = Outcome(round_number=self._round_number, op_ids=named, aggregate=cid)
        self._proposed = named
        self._aggregates = {outcome.digest: combined}
        return outcome

    def _fetch(self, op_ids: Sequence[OpId], timeout_s: float) -> dict[OpId, Gradient]:
        if not op_ids:
            return {}
        members = list(self._terms.members.weights)
        try:
            return self._gradients.fetch(
                self._round_number, op_ids, timeout=timeout_s, members=members, spec=self._terms.spec
            )
        except QueryError:  # nobody could be asked
            return {}

    def _combine(self, gradients: Sequence[Gradient]) -> tuple[Aggregate, bytes]:
        """The aggregate of contributions, and its CID.

        Raises:
            ValidationError: they are not of different members who are a quorum, or cannot be aggregated.
        """
        terms = self._terms
        contributors = {gradient.member for gradient in gradients}
        if len(contributors) < len(gradients) or not all(member in terms.members for member in contributors):
            raise ValidationError("contributions are those of different members")
        if not terms.members.is_quorum(contributors):
            raise ValidationError(f"contributions of {len(gradients)} of {len(terms.members)} members are no quorum")
        contributions = [gradient.contribution() for gradient in gradients]
        combined = aggregate(contributions, terms.spec, terms.rule, bad=terms.bad)
        return combined, cid_of(combined.tensors)


def cid_of(tensors: Tensors) -> bytes:
    """The binary CID of the safetensors file of tensors."""
    file = io.BytesIO()
    write_safetensors(file, tensors)
    file.seek(0)
    return bytes(blob_cid_of(file))
