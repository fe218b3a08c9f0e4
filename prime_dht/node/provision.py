"""A provider announcement under way."""

from __future__ import annotations

import logging
from collections.abc import Generator

import trio

from prime_dht.errors import LocalProtocolError, PrimeDHTError
from prime_dht.node.records import Records
from prime_dht.node.results import RecordReceipt

logger = logging.getLogger(__name__)


class Provision:
    """What :meth:`prime_dht.PrimeDHT.provide` returns: the announcement goes on by itself; awaiting it waits for it.

    Awaiting returns a :class:`RecordReceipt`, or raises what went wrong.
    """

    def __init__(self) -> None:
        self._done = trio.Event()
        self._outcome: RecordReceipt | PrimeDHTError = LocalProtocolError("the node closed before it had announced")

    def __await__(self) -> Generator[object, object, RecordReceipt]:
        return self._wait().__await__()

    async def _wait(self) -> RecordReceipt:
        await self._done.wait()
        if isinstance(self._outcome, PrimeDHTError):
            raise self._outcome
        return self._outcome

    async def carry_out(self, records: Records, multihash: bytes, *, announce: bool) -> None:
        """Announce, and let those who wait know; perhaps nobody does, so a failure is logged as well."""
        try:
            self._outcome = await records.provide(multihash, announce=announce)
        except PrimeDHTError as error:
            logger.warning("content could not be announced: %s", error)
            self._outcome = error
        finally:
            self._done.set()
