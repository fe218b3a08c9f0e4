"""Processes that run a Python script and have imported what a node is made of when they begin.

To import libp2p, and the forty packages that come with it, takes a core most of a second, and :mod:`prime_dht.node`
as long again as the rest of a node's start; and tests start hundreds of processes. So the process that runs the tests
has one beside it, the *stem*, that has imported those, and then only forks. A *fork* is a process like any other: it
has an id, standard streams, environment and folder of its own, and no other file open; it runs the script as
``__main__``, and ends as the interpreter ends. What differs is what comes before: nobody executed the interpreter, so
its options and the variables that it heeds itself (``PYTHONPATH``, for one) are those of the stem, and what the script
would have to import first is there.

The parent of a fork is its *watcher*, a fork of the stem too. It tells the process id, and later the status, over the
socket on which the script was asked for; and until that is closed the dead fork keeps its process id, so that a signal
reaches nobody else.

Who forks must have one thread, so in the stem, and so in its forks, OpenBLAS has no more than that.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

IMPORTED = ("prime_dht.node", "zeroconf.asyncio")
"""Whatever takes long of that which a node imports, libp2p above all; but not the command, clients or learning."""

_NUMBER = struct.Struct("=i")
"""A process id, or a status as :class:`subprocess.Popen` has it: that of the exit, or minus the signal."""


class Fork:
    """A process that runs a script, with a pipe for each of its standard streams; used like a ``Popen``.

    Attributes:
        pid: its process id.
        returncode: its status, once somebody has asked for it.
        stdin, stdout, stderr: our ends of its standard streams.
    """

    def __init__(self, script: str, *arguments: str, env: Mapping[str, str], cwd: Path | None) -> None:
        self.returncode: int | None = None
        their_stdin, stdin = os.pipe()
        stdout, their_stdout = os.pipe()
        stderr, their_stderr = os.pipe()
        self.stdin: IO[bytes] = os.fdopen(stdin, "wb")
        self.stdout: IO[bytes] = os.fdopen(stdout, "rb")
        self.stderr: IO[bytes] = os.fdopen(stderr, "rb")
        self._told, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(_stem(), [b"."], (theirs.fileno(), their_stdin, their_stdout, their_stderr))
        for descriptor in (their_stdin, their_stdout, their_stderr):
            os.close(descriptor)
        order = {"arguments": [script, *arguments], "env": dict(env), "cwd": str(cwd or Path.cwd())}
        self._told.sendall(json.dumps(order).encode() + b"\n")
        self.pid = self._next_number()

    def __enter__(self) -> Fork:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self.stderr.close()
        with suppress(BrokenPipeError):
            self.stdin.close()
        self.wait()
        self._told.close()

    def poll(self) -> int | None:
        """Its status if it has ended."""
        if self.returncode is None and select.select([self._told], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self) -> int:
        """Wait until it ends, and return its status."""
        if self.returncode is None:
            self.returncode = self._next_number()
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """Send it SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, stdin: bytes) -> tuple[bytes, bytes]:
        """Write its standard input, and return all that it writes to standard output and standard error."""
        with ThreadPoolExecutor() as others:
            others.submit(self._feed, stdin)
            err = others.submit(self.stderr.read)
            out = self.stdout.read()
        self.wait()
        return out, err.result()

    def _feed(self, stdin: bytes) -> None:
        with suppress(BrokenPipeError), self.stdin:
            self.stdin.write(stdin)

    def _next_number(self) -> int:
        told = self._told.recv(_NUMBER.size, socket.MSG_WAITALL)
        assert told, "its watcher has ended"
        (number,) = _NUMBER.unpack(told)
        return int(number)


@cache
def _stem() -> socket.socket:
    """Where this process asks its stem for forks; the stem ends when it is closed."""
    command, env = (sys.executable, "-m", __name__), {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    ours, theirs = socket.socketpair()
    with theirs:
        stem = subprocess.Popen(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env=env)  # noqa: S603
    atexit.register(stem.wait)
    atexit.register(ours.close)
    return ours


def main() -> None:
    """The stem; and, where it has forked, the watcher, and the script."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # no fork goes through all that again, to find nothing
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for watchers
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as orders:
        while descriptors := socket.recv_fds(orders, 1, 4)[1]:
            if not os.fork():
                break
            for descriptor in descriptors:
                os.close(descriptor)
        else:
            return
    _watch(*descriptors)


def _watch(told: int, *streams: int) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with socket.socket(fileno=told) as asker:
        with asker.makefile("rb") as lines:
            order = json.loads(lines.readline())
        pid = os.fork()
        if pid:
            for stream in streams:
                os.close(stream)
            asker.sendall(_NUMBER.pack(pid))
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            assert ended is not None
            asker.sendall(_NUMBER.pack(ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status))
            asker.recv(1)  # nothing: this is when it is closed
            os.waitpid(pid, 0)
            os._exit(0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    _run(**order)


def _run(arguments: list[str], env: dict[str, str], cwd: str) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).parent)
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main()
