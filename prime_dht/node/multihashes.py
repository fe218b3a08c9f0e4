"""From whatever names content, a CID or a multihash, to the multihash under which its providers are recorded."""

from __future__ import annotations

import cid
import multihash
from multibase.exceptions import DecodingError, InvalidMultibaseStringError

from prime_dht.errors import ValidationError
from prime_dht.wire.kad import MAX_MULTIHASH_BYTES


def multihash_of(content: bytes | str) -> bytes:
    """The multihash of a CID (text, or binary version 1), or the multihash itself.

    >>> multihash_of("bafybeigdyrzt5sfp7udm7hu76uh7y26nf3efuylqabf3oclgtqy55fbzdi").hex()
    '1220c3c4733ec8affd06cf9e9ff50ffc6bcd2ec85a6170004bb709669c31de94391a'

    Raises:
        ValidationError: it is neither, or longer than the wire allows.
    """
    try:
        if isinstance(content, str):
            found = bytes(cid.make_cid(content).multihash)
        elif multihash.is_valid(content):
            found = bytes(content)
        else:
            found = bytes(cid.from_bytes(content).multihash)
    except (ValueError, TypeError, DecodingError, InvalidMultibaseStringError) as error:
        raise ValidationError(f"neither a CID nor a multihash: {error}") from error
    if not 1 <= len(found) <= MAX_MULTIHASH_BYTES:
        raise ValidationError(f"a multihash has 1 to {MAX_MULTIHASH_BYTES} bytes, not {len(found)}")
    return found
