"""Logs on standard error: for people, one line each; for programs, one JSON object a line.

A record may carry *fields* beside its message, such as ``peer`` and ``address``: logging's ``extra``. They are members
of the JSON object, and people find the same in the message.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from datetime import UTC, datetime
from types import TracebackType

from prime_dht.cli.render import visible

_ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

_NO_FIELDS = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime"})


class OneLine(logging.Formatter):
    """Time, level and message in one line, with what went wrong but not where.

    With ``traces`` tracebacks are shown, in as many lines as they need; with ``dated`` the time has its day.
    """

    def __init__(self, *, traces: bool, dated: bool = False) -> None:
        datefmt = "%Y-%m-%d %H:%M:%S" if dated else "%H:%M:%S"
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt=datefmt)
        self._traces = traces

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info and not self._traces else None
        message = record.getMessage() if error is None else f"{record.getMessage()}: {error!r}"
        line = visible(" ".join(message.split()))  # some of it may be a peer's words
        plain = logging.makeLogRecord({**record.__dict__, "msg": line, "args": None})
        plain.exc_text = plain.stack_info = None
        if not self._traces:
            plain.exc_info = None
        return super().format(plain)

    def formatException(self, ei: _ExceptionInfo) -> str:  # noqa: N802
        """A traceback, in which a peer may have a say as well."""
        return "\n".join(map(visible, super().formatException(ei).split("\n")))


class JsonLine(logging.Formatter):
    """A JSON object: ``time`` (RFC 3339, UTC, microseconds), ``level``, ``logger``, ``message``, fields, ``error``.

    With ``traces`` also ``traceback``. No field takes the place of those.
    """

    def __init__(self, *, traces: bool) -> None:
        super().__init__()
        self._traces = traces

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name not in _NO_FIELDS:
                line.setdefault(name, value)
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = repr(record.exc_info[1])
            if self._traces:
                line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to_stderr(level: int, *, verbose: int, as_json: bool = False) -> None:
    """Show prime_dht's records from ``level`` on; from DEBUG on, with tracebacks, at ``verbose`` 1 or more.

    A terminal shows today's; what goes to a file or a pipe is read days later, and has its day.

    py-libp2p logs much that is no business of the person who runs a node; only what is broken beyond doubt is shown,
    unless ``verbose`` is 2 or more.
    """
    handler = logging.StreamHandler()
    traces = verbose > 0
    is_kept = sys.stderr is not None and not sys.stderr.isatty()
    handler.setFormatter(JsonLine(traces=traces) if as_json else OneLine(traces=traces, dated=is_kept))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.captureWarnings(capture=True)
    if not verbose:
        warnings.formatwarning = _text_of_warning
    logging.getLogger("coredis").setLevel(logging.CRITICAL)
    logging.getLogger("prime_dht").setLevel(logging.DEBUG if verbose else level)
    logging.getLogger("libp2p").setLevel(logging.INFO if verbose > 1 else logging.CRITICAL)


def _text_of_warning(message: Warning | str, *_where: object, **_more: object) -> str:
    """What a warning says, without the line of code that says so."""
    return str(message)
