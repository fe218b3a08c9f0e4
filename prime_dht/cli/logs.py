"""Logs for people: one line each, on standard error."""

from __future__ import annotations

import logging


class OneLine(logging.Formatter):
    """Time, level and message in one line, with what went wrong but not where.

    With ``traces`` tracebacks are shown, in as many lines as they need.
    """

    def __init__(self, *, traces: bool) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")
        self._traces = traces

    def format(self, record: logging.LogRecord) -> str:
        if self._traces:
            return super().format(record)
        error = record.exc_info[1] if record.exc_info else None
        message = record.getMessage() if error is None else f"{record.getMessage()}: {error!r}"
        plain = logging.makeLogRecord({**record.__dict__, "msg": " ".join(message.split()), "args": None})
        plain.exc_info = plain.exc_text = plain.stack_info = None
        return super().format(plain)


def log_to_stderr(level: int, *, verbose: int) -> None:
    """Show prime_dht's records from ``level`` on; from DEBUG on, with tracebacks, at ``verbose`` 1 or more.

    py-libp2p logs much that is no business of the person who runs a node; only what is broken beyond doubt is shown,
    unless ``verbose`` is 2 or more.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(OneLine(traces=verbose > 0))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.captureWarnings(capture=True)
    logging.getLogger("coredis").setLevel(logging.CRITICAL)
    logging.getLogger("prime_dht").setLevel(logging.DEBUG if verbose else level)
    logging.getLogger("libp2p").setLevel(logging.INFO if verbose > 1 else logging.CRITICAL)
