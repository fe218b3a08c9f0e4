"""What a command leaves behind: data on standard output, a line on standard error, an exit status."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from enum import IntEnum

from prime_dht.cli.logs import JsonLine
from prime_dht.cli.render import visible
from prime_dht.errors import ConfigError, PrimeDHTError

STDIN, STDOUT = 0, 1


class Status(IntEnum):
    """Exit statuses. A command that a signal ends exits with 128 + its number, as shells have it."""

    DONE = 0
    """Also of a put that fewer replicas took than asked for, which warns; and of a ``run`` that SIGTERM ends."""

    NOT_FOUND = 1

    SOMETHING_WRONG = 1
    """What was looked at is not as it should be: a swarm, a store, a dump, a capability."""

    FAILED = 2
    """A mistake in the arguments, a file that cannot be used, a swarm that cannot be reached."""

    BUG = 70
    """Something prime_dht did not foresee (``EX_SOFTWARE`` of ``sysexits.h``)."""


class EndedBySignal(Exception):
    """A signal ended the command.

    Attributes:
        signum: which.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum

    @property
    def status(self) -> int:
        return 128 + self.signum

    @property
    def status_of_server(self) -> int:
        """Of a command that runs until it is told to stop: SIGTERM is how it is told."""
        return Status.DONE if self.signum == signal.SIGTERM else self.status


def emit(data: bytes) -> None:
    """Write data to standard output, at once.

    Raises:
        EndedBySignal: nobody reads it any more; ends the command as SIGPIPE would.
        ConfigError: it cannot be written.
    """
    try:
        # Not sys.stdout: what it could not write it would try again, and complain of, when Python exits.
        with open(STDOUT, "wb", closefd=False) as stdout:
            stdout.write(data)
    except BrokenPipeError:
        raise EndedBySignal(signal.SIGPIPE) from None
    except OSError as error:
        raise ConfigError(f"standard output: {error.strerror}") from error


def emit_for_people(value: bytes) -> None:
    """Write somebody's value to standard output: as it is, but to a terminal as lines of text.

    Raises:
        ConfigError: it goes to a terminal and is not only text; what else may be in it could do things to that.
    """
    if os.isatty(STDOUT):
        text = value.decode(errors="surrogateescape")
        if not all(char.isprintable() or char in "\n\t" for char in text):
            raise ConfigError(
                f"{len(value):,} bytes, and not only text: send them elsewhere, or write them to --out FILE"
            )
        value = value if value.endswith(b"\n") else value + b"\n"
    emit(value)


def show(item: Mapping[str, object], text: str, *, as_json: bool) -> None:
    """Print one result on standard output: for programs a line of JSON, for people text.

    Args:
        item: bytes in it are for the caller to encode.
        text: any number of lines, the last newline left out. Nothing is printed if it is empty.
    """
    if as_json:
        emit(json_line(item))
    elif text:
        emit(text.encode(errors="backslashreplace") + b"\n")


def json_line(item: Mapping[str, object]) -> bytes:
    """One result as standard output gets it for programs.

    A terminal gets JSON of ASCII alone: what peers say may have characters that do things to it.
    """
    return json.dumps(item, ensure_ascii=os.isatty(STDOUT)).encode(errors="backslashreplace") + b"\n"


def complain(message: str, *, level: int = logging.WARNING) -> None:
    """Say something, in one line on standard error, as the log there is written; part of it may be a peer's words."""
    # sys.stderr is None where a parent has closed it. Of what cannot be told there, the exit status says enough.
    if sys.stderr is None:
        return
    line = f"prime-dht: {visible(' '.join(message.split()))}"
    for formatter in (handler.formatter for handler in logging.getLogger().handlers):
        if isinstance(formatter, JsonLine):  # whoever reads the log reads objects
            said = {"name": __name__, "levelno": level, "levelname": logging.getLevelName(level), "msg": message}
            line = formatter.format(logging.makeLogRecord(said))
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def signal_in(error: BaseException) -> EndedBySignal | None:
    """The signal that ended concurrent work, if nothing else did.

    >>> ended = EndedBySignal(signal.SIGPIPE)
    >>> signal_in(ExceptionGroup("tasks", [ended])) is ended, signal_in(ExceptionGroup("tasks", [ended, KeyError()]))
    (True, None)
    """
    leaves = list(_leaves(error))
    ended = [leaf for leaf in leaves if isinstance(leaf, EndedBySignal)]
    return ended[0] if len(ended) == len(leaves) else None


def expected(error: BaseException) -> str | None:
    """What to tell the person about an error, or ``None`` for one that nobody foresaw.

    Errors that come in groups, out of concurrent work, count as expected when all of their leaves are.

    >>> from prime_dht.errors import QueryError
    >>> expected(ExceptionGroup("tasks", [QueryError("nobody answers"), QueryError("nobody answers")]))
    'nobody answers'
    >>> expected(ExceptionGroup("tasks", [QueryError("nobody answers"), KeyError("oops")])) is None
    True
    """
    messages = [_message(leaf) for leaf in _leaves(error)]
    if None in messages:
        return None
    return "; ".join(dict.fromkeys(filter(None, messages)))


def _message(error: BaseException) -> str | None:
    cause = error.__cause__ if isinstance(error, PrimeDHTError) else error
    limit = ": raise the limit, `ulimit -n`" if isinstance(cause, OSError) and cause.errno == errno.EMFILE else ""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EMFILE):  # nobody's mistake
        return f"{error.strerror}{limit}"
    return f"{error}{limit}" if isinstance(error, PrimeDHTError) else None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error
