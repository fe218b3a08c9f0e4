"""What machine learning needs beyond the rest, and what is said where it is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prime_dht.errors import ConfigError


@contextmanager
def extra_needed() -> Iterator[None]:
    """Around imports of what needs the extra ``ml``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        yield
    except ImportError as error:
        raise ConfigError(
            f"this needs the extra for machine learning: pip install 'prime-dht[ml]' ({error})"
        ) from error
