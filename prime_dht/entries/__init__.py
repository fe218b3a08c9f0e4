"""Entries: the unit of data, pure of I/O, clock and chance.

An *entry* is one signed, immutable statement by one publisher about one slot; the modules, from the bottom up:

- ``entry``: the data classes; ``envelope``: the signed bytes; ``codec``: headers, op ids, entry sets;
- ``limits``, ``capability``, ``access``: what an entry may take up, and who may write where;
- ``signing``, ``slot``: how a writer makes an entry; ``lifetime``: when it expires and retires;
- ``join``: how replicas merge and readers choose; ``admission``: what a replica takes;
- ``validators``: the rules of plain records, in namespaces other than ``/prime/``.
"""

from prime_dht.entries.access import (
    GroupKey,
    KeyRule,
    OpenKey,
    OwnKey,
    check_writer,
    group_key,
    key_rule,
    own_key,
)
from prime_dht.entries.admission import (
    AdmissionRules,
    Admitted,
    Deferred,
    Reason,
    Refused,
    Verdict,
    admit,
)
from prime_dht.entries.capability import Capability, capability_in, check_capability, decode_capability, grant, root_of
from prime_dht.entries.codec import (
    Undecodable,
    decode_entry,
    decode_entry_set,
    decode_header,
    encode_entry_set,
    encode_header,
    inline,
)
from prime_dht.entries.entry import (
    BlobRef,
    Compression,
    Content,
    Entry,
    EntryHeader,
    Inline,
    Slot,
    Tombstone,
    Version,
)
from prime_dht.entries.envelope import VerifiedEnvelopes
from prime_dht.entries.join import KeyState, Selection, join, standing, state_of
from prime_dht.entries.lifetime import UNIT_US, as_of, is_op, is_retired, retire_before_us, tick_of
from prime_dht.entries.limits import DEFAULT_LIMITS, Limits, Occupancy
from prime_dht.entries.signing import sign_entry, verify_signature
from prime_dht.entries.slot import EntryTimes, LastWrite, next_entry_times, tombstone_times
from prime_dht.entries.validators import ForeignValidator, PublicKeyValidator, Validator, ValidatorRegistry

__all__ = [
    "DEFAULT_LIMITS",
    "UNIT_US",
    "AdmissionRules",
    "Admitted",
    "BlobRef",
    "Capability",
    "Compression",
    "Content",
    "Deferred",
    "Entry",
    "EntryHeader",
    "EntryTimes",
    "ForeignValidator",
    "GroupKey",
    "Inline",
    "KeyRule",
    "KeyState",
    "LastWrite",
    "Limits",
    "Occupancy",
    "OpenKey",
    "OwnKey",
    "PublicKeyValidator",
    "Reason",
    "Refused",
    "Selection",
    "Slot",
    "Tombstone",
    "Undecodable",
    "Validator",
    "ValidatorRegistry",
    "Verdict",
    "VerifiedEnvelopes",
    "Version",
    "admit",
    "as_of",
    "capability_in",
    "check_capability",
    "check_writer",
    "decode_capability",
    "decode_entry",
    "decode_entry_set",
    "decode_header",
    "encode_entry_set",
    "encode_header",
    "grant",
    "group_key",
    "inline",
    "is_op",
    "is_retired",
    "join",
    "key_rule",
    "next_entry_times",
    "own_key",
    "retire_before_us",
    "root_of",
    "sign_entry",
    "standing",
    "state_of",
    "tick_of",
    "tombstone_times",
    "verify_signature",
]
