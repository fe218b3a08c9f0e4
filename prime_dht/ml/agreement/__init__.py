"""Agreement: which contributions a round aggregates, and to what. Pure: events in, actions out.

- ``members``: whose votes count how much; ``statements``: proposals and votes, and how they stand in entries;
- ``certificate``: what proves an outcome to anyone, offline; ``proofs``: how an entry proves a statement;
- ``codec``: proposals and commits as bytes; ``heard``: what is held of what members say;
- ``agreement``: the state machine.
"""

from prime_dht.ml.agreement.agreement import (
    Accuse,
    Action,
    Agreement,
    Backed,
    Broadcast,
    Check,
    Decide,
    ScheduleTimeout,
    Timeout,
    Timeouts,
)
from prime_dht.ml.agreement.certificate import Certificate, Commit, Verify
from prime_dht.ml.agreement.codec import decode_backed, decode_commit, decode_proposal, encode_commit, encode_proposal
from prime_dht.ml.agreement.heard import Equivocation
from prime_dht.ml.agreement.members import Members
from prime_dht.ml.agreement.proofs import entry_proofs
from prime_dht.ml.agreement.statements import (
    NIL,
    Outcome,
    Phase,
    Proposal,
    Signed,
    Statement,
    Vote,
    subkey_of,
    vote_of,
)

__all__ = [
    "NIL",
    "Accuse",
    "Action",
    "Agreement",
    "Backed",
    "Broadcast",
    "Certificate",
    "Check",
    "Commit",
    "Decide",
    "Equivocation",
    "Members",
    "Outcome",
    "Phase",
    "Proposal",
    "ScheduleTimeout",
    "Signed",
    "Statement",
    "Timeout",
    "Timeouts",
    "Verify",
    "Vote",
    "decode_backed",
    "decode_commit",
    "decode_proposal",
    "encode_commit",
    "encode_proposal",
    "entry_proofs",
    "subkey_of",
    "vote_of",
]
