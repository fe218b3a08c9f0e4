"""Admission: whether a replica takes an entry that somebody offers, decided from bytes, rules and the time alone.

The checks go from the cheap to the dear. Only the date is judged after the signature, so that nothing is postponed for
a publisher that never was. A verdict also says whether the *relayer* is at fault: only for what no honest node could
have passed on, a malformed entry or a bad signature. Clocks, limits and policies differ between honest nodes.

Counting what a store holds is not done here (:meth:`prime_dht.entries.limits.Limits.check_room`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from prime_dht.entries.access import check_writer, key_rule
from prime_dht.entries.codec import Undecodable
from prime_dht.entries.entry import Compression, Entry, Inline
from prime_dht.entries.envelope import VerifiedEnvelopes
from prime_dht.entries.lifetime import UNIT_US, as_of, is_retired
from prime_dht.entries.limits import Limits
from prime_dht.entries.signing import verify_signature
from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId, TimestampUs


class Reason(Enum):
    """Why an entry is refused."""

    MALFORMED = "malformed"
    """No entry, or a value that is not the one its header names."""

    BAD_SIGNATURE = "bad signature"
    """The publisher did not sign it."""

    WRONG_NETWORK = "wrong network"
    BAD_KEY = "bad key"
    """Not a key that entries can have."""

    UNREADABLE = "unreadable"
    """Its value is compressed, and nothing here decompresses it: a reader would take the bytes for the value."""

    OVER_LIMIT = "over limit"
    RETIRED = "retired"
    """A tick has passed since its retain_until: everybody has forgotten it, or will."""

    VALUE_MISSING = "value missing"
    """Not expired, but without its value. The relayer's clock may be ahead of ours."""

    NOT_PERMITTED = "not permitted"
    """The publisher may not write this key."""

    PUBLISHER_REFUSED = "publisher refused"
    """This node does not take the publisher's entries."""


_RELAYERS_FAULT = frozenset({Reason.MALFORMED, Reason.BAD_SIGNATURE})


@dataclass(frozen=True, slots=True)
class Admitted:
    """Store it, as it is here: without its value if that has expired."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Refused:
    """Do not store it; ``text`` says why in a sentence for people."""

    reason: Reason
    text: str

    @property
    def blame(self) -> bool:
        """Whether whoever relayed it misbehaved, and is to be charged."""
        return self.reason in _RELAYERS_FAULT


@dataclass(frozen=True, slots=True)
class Deferred:
    """It is dated too far ahead of this node's clock; at ``until_us`` it no longer is. Nobody is to blame."""

    until_us: TimestampUs


Verdict = Admitted | Refused | Deferred


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionRules:
    """What a node judges entries by.

    Attributes:
        publishers: whose entries it takes; ``None`` is anybody's.
    """

    network_id: str
    limits: Limits = field(default_factory=Limits)
    publishers: frozenset[PeerId] | None = None
    unit_us: int = UNIT_US


def admit(
    candidate: Entry | Undecodable,
    *,
    now_us: int,
    rules: AdmissionRules,
    verified: VerifiedEnvelopes | None = None,
) -> Verdict:
    """Judge one item of a decoded entry set. ``verified`` saves verifying again what was verified before."""
    if isinstance(candidate, Undecodable):
        return Refused(Reason.MALFORMED, candidate.reason)
    header = candidate.header
    if header.network_id != rules.network_id:
        return Refused(Reason.WRONG_NETWORK, f"the entry is of network {header.network_id!r}, not {rules.network_id!r}")
    if header.compression is not Compression.NONE:
        return Refused(Reason.UNREADABLE, f"its value is compressed ({header.compression.name}): nobody reads that yet")
    if is_retired(candidate, now_us, rules.unit_us):
        return Refused(Reason.RETIRED, "the entry has retired: the tick after its retain_until has passed")
    entry = as_of(candidate, now_us)
    if isinstance(header.content, Inline) and entry.value is None and now_us < header.expires_at_us:
        return Refused(Reason.VALUE_MISSING, "the entry has not expired, but comes without its value")
    if rules.publishers is not None and entry.publisher not in rules.publishers:
        return Refused(Reason.PUBLISHER_REFUSED, "this node does not take this publisher's entries")
    try:
        rules.limits.check(entry)
    except ValidationError as error:
        return Refused(Reason.OVER_LIMIT, str(error))
    try:
        rule = key_rule(header.key)
    except ValidationError as error:
        return Refused(Reason.BAD_KEY, str(error))
    try:
        check_writer(entry, rule, verified)
    except ValidationError as error:
        return Refused(Reason.NOT_PERMITTED, str(error))
    if not verify_signature(entry, verified):
        return Refused(Reason.BAD_SIGNATURE, "the publisher did not sign the entry")
    if header.created_at_us > now_us + rules.limits.clock_skew_us:
        return Deferred(TimestampUs(header.created_at_us - rules.limits.clock_skew_us))
    return Admitted(entry)
