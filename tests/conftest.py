"""Makes pytest explain failed assertions of the conformance suite as it does those of tests."""

import pytest

pytest.register_assert_rewrite(
    "prime_dht.testing.storage_conformance",
    "prime_dht.testing.storage_conformance_capacity",
    "prime_dht.testing.storage_conformance_ops",
)
