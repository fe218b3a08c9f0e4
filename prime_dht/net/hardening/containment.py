"""The one place where every exception is caught.

py-libp2p runs a peer's requests in tasks whose failure ends more than the request: a stream handler's exception ends
the whole host (P1), an identify's, which runs as a trio system task, the whole program. Hostile bytes reach third-party
parsers there, so no list of exception types is known to be complete.

``trio.Cancelled`` and everything else that is not an :class:`Exception` passes, also out of a group that mixes both.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType


class contained:  # noqa: N801 (a context manager, named like those of contextlib)
    """End the block, and hand its exceptions to ``on_fault``, if it raises any.

    (A class: each connection and each stream lives in such a block, and a generator's takes a kilobyte.)

    >>> with contained(lambda faults: print(faults.exceptions)):
    ...     raise ValueError("hostile bytes")
    (ValueError('hostile bytes'),)
    """

    __slots__ = ("_on_fault",)

    def __init__(self, on_fault: Callable[[ExceptionGroup[Exception]], None]) -> None:
        self._on_fault = on_fault

    def __enter__(self) -> None: ...

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> bool:
        if error is None:
            return False
        try:
            raise error
        except* Exception as faults:  # noqa: BLE001 (see the module)
            self._on_fault(faults)
        finally:
            del error  # whose traceback has this frame in it now, so that both would wait for garbage collection
        return True
