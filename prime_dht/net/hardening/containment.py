"""The one place where every exception is caught.

py-libp2p runs a peer's requests in tasks whose failure ends more than the request: a stream handler's exception ends
the whole host (P1), an identify's, which runs as a trio system task, the whole program. Hostile bytes reach third-party
parsers there, so no list of exception types is known to be complete.

``trio.Cancelled`` and everything else that is not an :class:`Exception` passes, also out of a group that mixes both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def contained(on_fault: Callable[[ExceptionGroup[Exception]], None]) -> Iterator[None]:
    """End the block, and hand its exceptions to ``on_fault``, if it raises any.

    >>> with contained(lambda faults: print(faults.exceptions)):
    ...     raise ValueError("hostile bytes")
    (ValueError('hostile bytes'),)
    """
    try:
        yield
    except* Exception as faults:  # noqa: BLE001 (see the module)
        on_fault(faults)
