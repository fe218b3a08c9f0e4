"""Signing entries, and verifying that publishers signed them.

Both are Ed25519 over the envelope's signed bytes (:mod:`prime_dht.entries.envelope`): about 25 µs to sign and 40 µs to
verify, the greatest cost of an entry on the hot path. So a node keeps a
:class:`~prime_dht.entries.envelope.VerifiedEnvelopes` and verifies each statement once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prime_dht.entries.access import check_writer, key_rule
from prime_dht.entries.codec import decode_entry, encode_header
from prime_dht.entries.entry import Compression, Entry, EntryHeader
from prime_dht.entries.envelope import ENTRY, VerifiedEnvelopes, is_signed, seal
from prime_dht.entries.limits import DEFAULT_LIMITS, Limits
from prime_dht.errors import ValidationError

if TYPE_CHECKING:
    from libp2p.crypto.keys import PrivateKey


def sign_entry(
    header: EntryHeader, private_key: PrivateKey, value: bytes | None = None, *, limits: Limits = DEFAULT_LIMITS
) -> Entry:
    """Make an entry of a header, and of the value if its content is inline.

    The result is decoded from the bytes it will travel as, and checked as a replica will check it: what this returns,
    others with the same ``limits`` (the defaults unless given) will take.

    Raises:
        ValidationError: header or value do not have the right form or exceed a limit, the header says that the value
            is compressed, the private key is not Ed25519, or its owner may not write the entry's key.
    """
    if header.compression is not Compression.NONE:
        raise ValidationError(f"nobody reads a value that is compressed by {header.compression.name} yet")
    envelope = seal(private_key, ENTRY, header.network_id, encode_header(header))
    entry = decode_entry(envelope, value)
    limits.check(entry)
    check_writer(entry, key_rule(header.key))
    return entry


def verify_signature(entry: Entry, verified: VerifiedEnvelopes | None = None) -> bool:
    """Whether the publisher signed the entry, which was decoded from the bytes of its envelope.

    One that ``verified`` knows is not verified again; others it learns.
    """
    return is_signed(entry.envelope, ENTRY, entry.header.network_id, statement_id=entry.op_id, verified=verified)
