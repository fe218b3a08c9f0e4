"""Validators for plain records: the namespaces other than ``/prime/``.

A plain record is whatever bytes its namespace's :class:`Validator` lets pass. Of several records under one key the
validator selects the best (libp2p kad-dht specification, "Entry validation"; go-libp2p-record's ``Validator``). A key
of a namespace nobody registered is refused. Entry sets have rules of their own, so ``prime`` cannot be registered.

Built in is ``/pk/<multihash of a public key>`` with the serialized libp2p public key as its value.
:class:`ForeignValidator` takes in validators of py-libp2p's form, such as its IPNS one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from google.protobuf.message import DecodeError

from prime_dht.errors import ConfigError, ValidationError
from prime_dht.ids import PRIME_NAMESPACE, namespace_of
from prime_dht.pb import entry_pb2 as pb

MAX_PUBLIC_KEY_BYTES = 4096
"""Of a serialized public key; RSA of 8,192 bits, the most that libp2p takes, needs about 1,100."""

_MAX_INLINE_PUBLIC_KEY_BYTES = 42
"""Peer ids of keys up to this size are identity multihashes (libp2p peer id specification)."""

_KEY_TYPES = frozenset(pb.Envelope.PublicKey.KeyType.values())


class Validator(Protocol):
    """The rules of one namespace. Keys are whole wire keys."""

    def validate(self, key: bytes, value: bytes) -> None:
        """Check a record.

        Raises:
            ValidationError: the value is not one that the key can have.
        """

    def select(self, key: bytes, values: Sequence[bytes]) -> int:
        """The index of the best of at least one valid value.

        Raises:
            ValidationError: a value turns out not to be valid.
        """


class PublicKeyValidator:
    """``/pk/``: the value is the public key whose peer id is the rest of the key. There is only one such value."""

    def validate(self, key: bytes, value: bytes) -> None:
        if len(value) > MAX_PUBLIC_KEY_BYTES:
            raise ValidationError(f"a public key has at most {MAX_PUBLIC_KEY_BYTES} bytes, not {len(value)}")
        try:
            message = pb.Envelope.PublicKey.FromString(value)
        except DecodeError as error:
            raise ValidationError("not a public key: malformed protobuf") from error
        if message.Type not in _KEY_TYPES or not message.Data:
            raise ValidationError("not a public key: of no known type, or empty")
        if key != b"/pk/" + _multihash(value):
            raise ValidationError("the public key is not the one its record's key names")

    def select(self, key: bytes, values: Sequence[bytes]) -> int:  # noqa: ARG002
        return 0  # valid values of one key are equal


class ForeignForm(Protocol):
    """A validator as py-libp2p has it: keys are text, ``/<namespace>/<rest in hexadecimal>``."""

    def validate(self, key: str, value: bytes) -> None: ...

    def select(self, key: str, values: list[bytes]) -> int: ...


class ForeignValidator:
    """Makes a :class:`Validator` of one of py-libp2p's form.

    ``refusals`` are the exceptions by which it says no. ``ValueError``, which parsers of hostile bytes raise in
    passing, is always one.
    """

    def __init__(self, foreign: ForeignForm, *, refusals: tuple[type[Exception], ...] = ()) -> None:
        self._foreign = foreign
        self._refusals: tuple[type[Exception], ...] = (*refusals, ValueError)

    def validate(self, key: bytes, value: bytes) -> None:
        text = _foreign_key(key)
        try:
            self._foreign.validate(text, value)
        except self._refusals as error:
            raise ValidationError(str(error)) from error

    def select(self, key: bytes, values: Sequence[bytes]) -> int:
        text = _foreign_key(key)
        try:
            return self._foreign.select(text, list(values))
        except self._refusals as error:
            raise ValidationError(str(error)) from error


class ValidatorRegistry:
    """The validators of a node, by namespace: ``/pk/`` and those given.

    Raises:
        ConfigError: one is given for ``/prime/``, or what is given does not say for which namespaces.
    """

    def __init__(self, validators: Mapping[str, Validator] | None = None) -> None:
        if validators is not None and not isinstance(validators, Mapping):
            raise ConfigError(f"validators is a mapping, of namespaces to validators, not {type(validators).__name__}")
        self._validators: dict[str, Validator] = {"pk": PublicKeyValidator(), **(validators or {})}
        if PRIME_NAMESPACE in self._validators:
            raise ConfigError("the namespace /prime/ holds entries, which no validator can judge")

    def validate(self, key: bytes, value: bytes) -> None:
        """Check a record by the rules of its namespace.

        Raises:
            ValidationError: the key is malformed, nobody registered its namespace, or the value is not valid.
        """
        self._validator_of(key).validate(key, value)

    def select(self, key: bytes, values: Sequence[bytes]) -> int:
        """The index of the best of several valid values.

        Raises:
            ValidationError: there is none, the key's namespace is unknown, or a value is not valid.
        """
        validator = self._validator_of(key)
        if not values:
            raise ValidationError("there is no record to select")
        return validator.select(key, values)

    def check_namespace(self, key: bytes) -> None:
        """Check that records under a key can be validated.

        Raises:
            ValidationError: the key is malformed, or nobody registered a validator for its namespace.
        """
        self._validator_of(key)

    def _validator_of(self, key: bytes) -> Validator:
        namespace = namespace_of(key)
        try:
            return self._validators[namespace]
        except KeyError as error:
            raise ValidationError(f"no validator is registered for the namespace /{namespace}/") from error


def _multihash(public_key: bytes) -> bytes:
    """The multihash that is the peer id of a serialized public key."""
    if len(public_key) <= _MAX_INLINE_PUBLIC_KEY_BYTES:
        return bytes((0x00, len(public_key))) + public_key
    return b"\x12\x20" + hashlib.sha256(public_key).digest()


def _foreign_key(key: bytes) -> str:
    namespace = namespace_of(key)
    return f"/{namespace}/{key[len(namespace) + 2 :].hex()}"
