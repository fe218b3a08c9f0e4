"""Real Redis servers for tests, which are skipped where there is none, unless ``PRIME_DHT_REQUIRE_REDIS`` is 1."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from prime_dht.testing.redis_server import EXECUTABLE, RedisServer, free_port


@pytest.fixture(scope="session")
def _redis_is_installed() -> None:
    if shutil.which(EXECUTABLE) is None:
        reason = f"{EXECUTABLE} is not installed"
        if os.environ.get("PRIME_DHT_REQUIRE_REDIS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def redis_server(_redis_is_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that tests share; they keep to prefixes of their own and leave it as it is."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def start_redis(_redis_is_installed: None, tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Starts a server for this test alone, with settings of its own."""
    with ExitStack() as stack:
        yield lambda **settings: stack.enter_context(RedisServer(tmp_path, **settings))


@pytest.fixture
def start_tls_redis(start_redis: Callable[..., RedisServer], tmp_path: Path) -> Callable[[], tuple[int, Path]]:
    """Starts a server for this test alone that speaks TLS; returns where, and the certificate by which to know it."""

    def start() -> tuple[int, Path]:
        certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
        make_certificate(certificate, key)
        port = free_port()
        start_redis(
            tls_port=str(port),
            tls_cert_file=str(certificate),
            tls_key_file=str(key),
            tls_ca_cert_file=str(certificate),
            tls_auth_clients="no",
        )
        return port, certificate

    return start


@pytest.fixture
def prefix(request: pytest.FixtureRequest) -> str:
    """A prefix for this test alone."""
    return str(request.node.nodeid)


def make_certificate(certificate: Path, key: Path) -> None:
    """Write a certificate for 127.0.0.1, signed by itself, and its key."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2000, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2200, 1, 1, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(Encoding.PEM))
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
