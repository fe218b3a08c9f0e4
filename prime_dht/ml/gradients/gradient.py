"""Gradients as they are collected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from prime_dht.ids import OpId, PeerId, TimestampUs
from prime_dht.ml.aggregation.contribution import Contribution
from prime_dht.ml.codecs.codec import Codec
from prime_dht.ml.gradients.announcement import Metric
from prime_dht.ml.tensors import Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """One member's tensors for a round, as everybody decodes them. Two of one op id are the same.

    Attributes:
        member: who published it.
        tensors: to be read only.
        weight: that the member claims for it.
        codec: that the tensors went through, with its parameters.
        op_id: of its entry; what the outcome of a round names it by.
    """

    member: PeerId
    round: int
    tensors: Tensors = field(repr=False, compare=False)
    metrics: Mapping[str, Metric] = field(compare=False)
    weight: float
    codec: Codec
    op_id: OpId
    created_at_us: TimestampUs

    def contribution(self) -> Contribution:
        """It as :func:`prime_dht.ml.aggregation.aggregate` takes it."""
        return Contribution(member=self.member, tensors=self.tensors, weight=self.weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What came of collecting a round's gradients.

    Attributes:
        gradients: of each member the newest.
        missing: members who were asked for, and published nothing in time.
        rejected: those whose gradient cannot be used, or did not come in time, each with the reason; and strangers who
            published among members.
    """

    round: int
    gradients: Mapping[PeerId, Gradient]
    missing: tuple[PeerId, ...]
    rejected: Mapping[PeerId, str]

    def contributions(self) -> list[Contribution]:
        """The gradients as :func:`prime_dht.ml.aggregation.aggregate` takes them, in the order of members."""
        return [gradient.contribution() for _, gradient in sorted(self.gradients.items())]
