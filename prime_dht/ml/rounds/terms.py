"""Terms: what all members of a round must have in common for the same contributions to become the same aggregate.

They are the members and their weights, the rule, the number of bad members that it has to stand, and the spec of the
tensors. Members with other terms would find each other's proposals invalid, and none would know why. So each member
first tells its terms, as a short text, and compares::

    {"bad":1,"members":"<SHA-256>","rule":"TrimmedMean()","tensors":"<SHA-256>"}

What a peer tells may be any bytes; nothing but the comparison is made of it.

>>> from prime_dht.ids import PeerId
>>> from prime_dht.ml.aggregation import CoordinateMedian, TrimmedMean
>>> members = Members.equal([PeerId(b"a"), PeerId(b"b")])
>>> terms = Terms(members=members, rule=TrimmedMean(), bad=1, spec={})
>>> theirs = Terms(members=members, rule=CoordinateMedian(), bad=0, spec={})
>>> terms.differences(theirs.encode())
'bad is 0, not 1; rule is CoordinateMedian(), not TrimmedMean()'
>>> terms.differences(terms.encode()), terms.differences(b"?")
('', 'its terms cannot be read')
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields

from prime_dht.ml.aggregation import Rule
from prime_dht.ml.agreement import Members
from prime_dht.ml.tensors import Spec, as_tensors, dtype_name
from prime_dht.ml.weights import to_safetensors

MAX_TERMS_BYTES = 1024
_SHOWN_CHARS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """By what terms a member takes part in a round."""

    members: Members
    rule: Rule
    bad: int
    spec: Spec

    def encode(self) -> bytes:
        """As they are told to others; the same bytes for the same terms."""
        return json.dumps(self._told(), sort_keys=True, separators=(",", ":")).encode()

    def differences(self, theirs: bytes) -> str:
        """What is different in the terms that another member tells, in words; empty if nothing is."""
        if theirs == self.encode():
            return ""
        try:
            told = json.loads(theirs) if len(theirs) <= MAX_TERMS_BYTES else None
        except (ValueError, RecursionError):
            told = None
        if not isinstance(told, dict):
            return "its terms cannot be read"
        found = [
            f"other {name}" if name in ("members", "tensors") else f"{name} is {_shown(told.get(name))}, not {here}"
            for name, here in self._told().items()
            if told.get(name) != here
        ]
        return "; ".join(found) or "terms of another version"

    def _told(self) -> dict[str, object]:
        members = b"".join(peer + weight.to_bytes(32, "big") for peer, weight in self.members.weights.items())
        tensors = [[name, dtype_name(one.dtype), list(one.shape)] for name, one in sorted(self.spec.items())]
        return {
            "bad": self.bad,
            "members": hashlib.sha256(members).hexdigest(),
            "rule": _rule_text(self.rule),
            "tensors": hashlib.sha256(json.dumps(tensors).encode()).hexdigest(),
        }


def _rule_text(rule: Rule) -> str:
    """The rule with its parameters; of tensors among those, which are not shown, their SHA-256."""
    hidden = {one.name: getattr(rule, one.name) for one in fields(rule) if not one.repr}
    digests = [
        f" with {name} {hashlib.sha256(to_safetensors(as_tensors(tensors))).hexdigest()}"
        for name, tensors in sorted(hidden.items())
        if tensors is not None
    ]
    return repr(rule) + "".join(digests)


def _shown(told: object) -> str:
    text = str(told)
    return text[:_SHOWN_CHARS] if text.isprintable() else "unreadable"
