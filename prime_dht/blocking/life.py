"""The life of a blocking client: it opens when it is first used, and ends with ``close()``, with its last reference, or
with Python, whichever comes first. In a forked child, and in another process where it is unpickled, it has yet to open.

Copies are the same client: within a process, unpickling gives the one that is there. So a pool of processes that sends
it along with every task connects once per process.
"""

from __future__ import annotations

import atexit
import os
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TypeVar, overload

from prime_dht.blocking.call import ClosedError, Work
from prime_dht.blocking.node_thread import NodeThread
from prime_dht.config import Mode, NodeConfig

if TYPE_CHECKING:
    from prime_dht.entries.validators import Validator

T = TypeVar("T")

_lives: weakref.WeakValueDictionary[str, Life] = weakref.WeakValueDictionary()

_unpickled: dict[str, Life] = {}
"""Kept as long as the process runs: the next task will bring another copy."""

_inherited: list[NodeThread] = []
"""Of the processes that forked this one, kept for ever. If they were collected, the tasks in them would be closed, and
would do, on their way out, things to sockets that are the parent's. CPython 3.11 never frees what a lost thread had on
its stack, and so would keep them as well; but that is promised nowhere."""


class Life:
    """What a client is beside its operations.

    Args:
        config: of its node.
        validators: as for :func:`prime_dht.open_node`.
        joining_s: how long the node may take to open and join.
        name: the same for all copies, in whatever process; a new one by default.
    """

    _node: NodeThread | None = None

    def __init__(
        self,
        config: NodeConfig,
        validators: Mapping[str, Validator] | None,
        joining_s: float,
        name: str | None = None,
    ) -> None:
        self._name = name or secrets.token_hex(16)
        self._config = config
        self._validators = validators
        self._joining_s = joining_s
        self._lock = threading.RLock()  # held for moments, never while waiting; again by the handler of a signal
        self._is_closed = False
        _lives[self._name] = self

    @property
    def data_dir(self) -> Path | None:
        """Where this node keeps its identity and all else that is to be there next time; ``None`` if nowhere."""
        return self._config.data_dir

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if self._node is not None:
            self._node.end()

    def close(self) -> None:
        """Leave the swarm. Calls under way end with an error; so do calls from now on."""
        with self._lock:
            self._is_closed = True
            node, self._node = self._node, None
        if node is not None:
            node.close()

    def __reduce__(self) -> tuple[Callable[..., Life], tuple[object, ...]]:
        with self._lock:
            return _here, (type(self), self._config_elsewhere(), self._validators, self._joining_s, self._name)

    @overload
    def call(self, work: Work[T], *, timeout: float | None = ..., wait: Literal[True] = ...) -> T: ...
    @overload
    def call(self, work: Work[T], *, timeout: float | None = ..., wait: Literal[False]) -> Future[T]: ...
    @overload
    def call(self, work: Work[T], *, timeout: float | None = ..., wait: bool) -> T | Future[T]: ...
    def call(self, work: Work[T], *, timeout: float | None = None, wait: bool = True) -> T | Future[T]:
        """Have an async function carried out in the node's thread, with the node: ``dht.call(publish_everything)``.

        It may use all of trio and of :class:`prime_dht.PrimeDHT`, and must not block. What it raises is raised here.
        """
        began_s = time.monotonic()
        node = self._open(timeout)
        if wait:
            return node.wait(work, timeout_s=timeout, began_s=began_s)
        return node.start(work, timeout_s=timeout, began_s=began_s, owner=self)

    def _begin_aside(self, work: Work[T], timeout_s: float | None) -> Future[T]:
        """As :meth:`call` without waiting, for what goes on only as other calls ask it to, and so needs no place.

        Args:
            timeout_s: how long joining may take, if that is still to be done.
        """
        return self._open(timeout_s).start(work, owner=self, is_aside=True)

    def _open(self, timeout_s: float | None = None) -> NodeThread:
        """The node, when it has started, which one that has to be opened does now.

        Raises:
            QueryError: it has not, within ``timeout_s``.
            ClosedError: this client was closed.
            LocalProtocolError: the node has not started yet, and trio runs in this thread.
            PrimeDHTError: it could not be opened, or did not join; the next call tries again.
        """
        with self._lock:
            if self._is_to_open():
                new = NodeThread(self._config, validators=self._validators, joining_s=self._joining_s)
                if self._is_to_open():
                    self._node = new
                else:  # the handler of a signal opened this meanwhile, or closed it
                    new.end()
            node = self._node
        if node is None:
            raise ClosedError("this client is closed")
        try:
            node.wait_until_started(timeout_s)
        except Exception:  # whatever kept it from starting: the next call tries with another
            with self._lock:
                if self._node is node and node.has_failed:
                    self._node = None
            raise
        return node

    def _is_to_open(self) -> bool:
        return self._node is None and not self._is_closed

    def _config_elsewhere(self) -> NodeConfig:
        """That of a copy in another process: a client, with nothing of this one's but the way into the swarm."""
        ways_in = () if self._node is None else self._node.ways_in
        return replace(
            self._config,
            listen=(),
            announce=(),
            data_dir=None,
            blocks_dir=None,
            redis_url=None,
            peers=tuple(dict.fromkeys(self._config.peers + ways_in)),
            dht=replace(self._config.dht, mode=Mode.CLIENT),
        )

    def _begin_anew(self) -> None:
        """In a forked child: leave the node to the parent."""
        self._lock = threading.RLock()  # a thread that does not exist here may have held the other
        self._config = self._config_elsewhere()
        if self._node is not None:
            self._node.abandon()
            _inherited.append(self._node)
            self._node = None


def _here(
    kind: type[Life],
    config: NodeConfig,
    validators: Mapping[str, Validator] | None,
    joining_s: float,
    name: str,
) -> Life:
    """What a pickled client is in this process."""
    life = _lives.get(name)
    if life is None or life._is_closed:
        life = _unpickled[name] = kind(config, validators, joining_s, name)
    return life


def _in_forked_child() -> None:
    for life in list(_lives.values()):
        life._begin_anew()


def _at_exit() -> None:
    for life in list(_lives.values()):
        life.close()


os.register_at_fork(after_in_child=_in_forked_child)
atexit.register(_at_exit)
