"""Admission: every verdict, every reason, and who is blamed for what."""

from __future__ import annotations

from dataclasses import replace

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.keys import KeyPair
from libp2p.peer.id import ID

from prime_dht.entries.access import group_key, own_key
from prime_dht.entries.admission import AdmissionRules, Admitted, Deferred, Reason, Refused, Verdict, admit
from prime_dht.entries.capability import grant
from prime_dht.entries.codec import Undecodable, decode_entry, decode_entry_set, encode_entry_set, encode_header, inline
from prime_dht.entries.entry import Compression, Entry, EntryHeader, Tombstone
from prime_dht.entries.envelope import ENTRY, VerifiedEnvelopes, seal
from prime_dht.entries.limits import Limits
from prime_dht.entries.signing import sign_entry
from prime_dht.errors import ValidationError
from prime_dht.ids import Key, PeerId, TimestampUs

ALICE = create_new_key_pair(b"\x01" * 32)
BOB = create_new_key_pair(b"\x02" * 32)
ROOT = create_new_key_pair(b"\x03" * 32)
VALUE = b"weights"
RULES = AdmissionRules(
    network_id="testnet", limits=Limits(max_ttl_s=0.001, clock_skew_s=0.00001), unit_us=10
)  # max_ttl 1,000 µs, skew 10 µs
HEADER = EntryHeader(
    network_id="testnet",
    key=Key(b"/prime/model"),
    created_at_us=TimestampUs(100),
    expires_at_us=TimestampUs(200),
    retain_until_us=TimestampUs(300),
    content=inline(VALUE),
)


def peer_of(author: KeyPair) -> PeerId:
    return PeerId(ID.from_pubkey(author.public_key).to_bytes())


def signed(header: EntryHeader = HEADER, author: KeyPair = ALICE) -> Entry:
    """An entry whose writer obeyed no limit and no key rule."""
    value = None if header.content == Tombstone() else VALUE
    return decode_entry(seal(author.private_key, ENTRY, header.network_id, encode_header(header)), value)


def forged(entry: Entry) -> Entry:
    return decode_entry(entry.envelope[:-64] + bytes(64), entry.value)


def judge(
    candidate: Entry | Undecodable,
    now_us: int = 150,
    rules: AdmissionRules = RULES,
    verified: VerifiedEnvelopes | None = None,
) -> Verdict:
    return admit(candidate, now_us=now_us, rules=rules, verified=verified)


def assert_refused(verdict: Verdict, reason: Reason, *, blame: bool = False) -> None:
    assert isinstance(verdict, Refused)
    assert verdict.reason is reason
    assert verdict.blame is blame
    assert verdict.text


def test_a_good_entry_is_admitted_as_it_is() -> None:
    assert judge(signed()) == Admitted(signed())


def test_what_a_writer_signs_a_replica_with_the_same_rules_admits() -> None:
    entry = sign_entry(HEADER, ALICE.private_key, VALUE, limits=RULES.limits)
    assert judge(entry) == Admitted(entry)


def test_a_tombstone_is_admitted() -> None:
    entry = signed(replace(HEADER, content=Tombstone()))
    assert judge(entry) == Admitted(entry)


def test_an_expired_entry_that_is_still_retained_is_admitted_as_a_bare_header() -> None:
    bare = replace(signed(), value=None)
    assert judge(signed(), 199) == Admitted(signed())
    assert judge(signed(), 200) == Admitted(bare)
    assert judge(bare, 200) == Admitted(bare)


def test_an_entry_that_has_not_expired_must_bring_its_value() -> None:
    assert_refused(judge(replace(signed(), value=None), 199), Reason.VALUE_MISSING)


def test_a_retired_entry_is_refused() -> None:
    assert judge(signed(), 309) == Admitted(replace(signed(), value=None))
    assert_refused(judge(signed(), 310), Reason.RETIRED)


def test_an_entry_dated_ahead_of_the_clock_is_deferred_and_nobody_blamed() -> None:
    assert judge(signed(), 90) == Admitted(signed())
    assert judge(signed(), 89) == Deferred(TimestampUs(90))
    assert judge(signed(), 0) == Deferred(TimestampUs(90))


def test_nothing_is_deferred_for_a_publisher_that_did_not_sign() -> None:
    assert_refused(judge(forged(signed()), 0), Reason.BAD_SIGNATURE, blame=True)


def test_a_bad_signature_is_refused_and_the_relayer_blamed() -> None:
    assert_refused(judge(forged(signed())), Reason.BAD_SIGNATURE, blame=True)


def test_a_bad_value_is_refused_and_the_relayer_blamed() -> None:
    [item] = decode_entry_set(encode_entry_set([replace(signed(), value=b"poison!")]), max_entries=1)
    assert_refused(judge(item), Reason.MALFORMED, blame=True)


def test_what_is_no_entry_is_refused_and_the_relayer_blamed() -> None:
    [item] = decode_entry_set(b"\x0a\x00", max_entries=1)
    assert_refused(judge(item), Reason.MALFORMED, blame=True)


def test_a_compressed_value_is_refused_as_nothing_decompresses_it_and_nobody_blamed() -> None:
    """A reader would take the compressed bytes for the value. Nodes that took such an entry once may still hold it."""
    compressed = replace(HEADER, compression=Compression.ZSTD)
    assert_refused(judge(signed(compressed)), Reason.UNREADABLE)
    with pytest.raises(ValidationError, match="ZSTD"):
        sign_entry(compressed, ALICE.private_key, VALUE, limits=RULES.limits)


def test_an_entry_of_another_network_is_refused() -> None:
    assert_refused(judge(signed(replace(HEADER, network_id="mainnet"))), Reason.WRONG_NETWORK)


def test_an_entry_cannot_be_replayed_into_another_network() -> None:
    payload = encode_header(HEADER)
    replayed = decode_entry(seal(ALICE.private_key, ENTRY, "mainnet", payload), VALUE)
    assert_refused(judge(replayed), Reason.BAD_SIGNATURE, blame=True)


@pytest.mark.parametrize("key", [b"/pk/x", b"/prime/", b"/prime/own/nobody/x", b"/prime/group/00/x"])
def test_a_key_that_entries_cannot_have_is_refused(key: bytes) -> None:
    assert_refused(judge(signed(replace(HEADER, key=Key(key)))), Reason.BAD_KEY)


def test_an_entry_over_a_limit_is_refused() -> None:
    rules = replace(RULES, limits=replace(RULES.limits, max_inline_bytes=6))
    assert_refused(judge(signed(), rules=rules), Reason.OVER_LIMIT)


@pytest.mark.parametrize(
    "header",
    [
        replace(HEADER, expires_at_us=TimestampUs(1_101), retain_until_us=TimestampUs(1_101)),
        replace(HEADER, retain_until_us=TimestampUs(1_101)),
    ],
    ids=["lives too long", "is retained too long"],
)
def test_a_ttl_beyond_the_networks_is_refused(header: EntryHeader) -> None:
    assert_refused(judge(signed(header)), Reason.OVER_LIMIT)


def test_a_ttl_as_long_as_the_networks_is_admitted() -> None:
    entry = signed(replace(HEADER, expires_at_us=TimestampUs(1_100), retain_until_us=TimestampUs(1_100)))
    assert judge(entry) == Admitted(entry)


def test_a_node_may_take_the_entries_of_some_publishers_alone() -> None:
    rules = replace(RULES, publishers=frozenset({peer_of(BOB)}))
    assert_refused(judge(signed(), rules=rules), Reason.PUBLISHER_REFUSED)
    assert judge(signed(author=BOB), rules=rules) == Admitted(signed(author=BOB))


def test_an_own_key_takes_only_its_owners_entries() -> None:
    header = replace(HEADER, key=own_key(peer_of(ALICE), b"status"))
    assert judge(signed(header)) == Admitted(signed(header))
    assert_refused(judge(signed(header, BOB)), Reason.NOT_PERMITTED)


IN_GROUP = replace(HEADER, key=group_key(ROOT.public_key, b"model"))


def capability(
    root: KeyPair = ROOT, member: KeyPair = ALICE, expires_at_us: int = 200, network_id: str = "testnet"
) -> bytes:
    return grant(root.private_key, member=peer_of(member), expires_at_us=expires_at_us, network_id=network_id)


def test_a_group_key_takes_its_members_entries() -> None:
    entry = signed(replace(IN_GROUP, capability=capability()))
    assert judge(entry) == Admitted(entry)


def test_a_members_entry_stays_admissible_after_its_capability_has_ended_as_replicas_must_agree() -> None:
    entry = signed(replace(IN_GROUP, capability=capability()))
    assert judge(entry, 250) == Admitted(replace(entry, value=None))


@pytest.mark.parametrize(
    "carried",
    [
        b"",
        b"not a capability",
        capability(root=ALICE),
        capability(member=BOB),
        capability(expires_at_us=199),
        capability(network_id="mainnet"),
        capability()[:-64] + bytes(64),
    ],
    ids=["none", "malformed", "of another root", "anothers", "expired", "of another network", "forged"],
)
def test_a_group_key_takes_no_entry_without_a_capability_that_covers_it(carried: bytes) -> None:
    assert_refused(judge(signed(replace(IN_GROUP, capability=carried))), Reason.NOT_PERMITTED)


def test_the_root_itself_needs_a_capability_too() -> None:
    assert_refused(judge(signed(IN_GROUP, ROOT)), Reason.NOT_PERMITTED)
    entry = signed(replace(IN_GROUP, capability=capability(member=ROOT)), ROOT)
    assert judge(entry) == Admitted(entry)


def test_memory_of_verified_envelopes_changes_no_verdict() -> None:
    verified = VerifiedEnvelopes()
    entry = signed(replace(IN_GROUP, capability=capability()))
    for _ in range(2):
        assert judge(entry, verified=verified) == Admitted(entry)
        assert_refused(judge(forged(entry), verified=verified), Reason.BAD_SIGNATURE, blame=True)
    assert len(verified) == 2  # the entry's and the capability's


def test_a_writer_hears_that_it_needs_a_capability_before_anybody_else_does() -> None:
    with pytest.raises(ValidationError, match="capability"):
        sign_entry(IN_GROUP, ALICE.private_key, VALUE)
