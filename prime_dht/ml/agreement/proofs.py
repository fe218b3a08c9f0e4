"""Proofs: the signed envelopes of entries, which need no value, no node and no clock to be checked.

An entry under a round's key, with the subkey of a statement, is that statement, whatever else it says, and whether or
not it has expired since: who signed it has said it.
"""

from __future__ import annotations

from prime_dht.entries import decode_entry, verify_signature
from prime_dht.errors import ValidationError
from prime_dht.ids import Key
from prime_dht.ml.agreement.certificate import Verify
from prime_dht.ml.agreement.statements import Statement, subkey_of


def entry_proofs(network_id: str, key: Key) -> Verify:
    """What checks that proofs are the envelopes of entries in a network, under the key of one round.

    The key must tell the round from others: a vote itself names the round only by it.
    """

    def verify(statement: Statement, proof: bytes) -> bool:
        try:
            entry = decode_entry(proof, None)
        except ValidationError:
            return False
        header = entry.header
        return (
            entry.publisher == statement.member
            and (header.network_id, header.key, header.subkey) == (network_id, key, subkey_of(statement))
            and verify_signature(entry)
        )

    return verify
