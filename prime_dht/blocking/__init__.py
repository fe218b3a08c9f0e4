"""The same node for code without trio: scripts, notebooks, training loops. :func:`connect` is the way in.

    with prime_dht.connect(["/ip4/192.0.2.1/tcp/4001/p2p/12D3Koo…"]) as dht:
        receipt = dht.put("model:digits", weights)
        found = dht.get("model:digits")

A :class:`BlockingDHT` has a node in a daemon thread of its own, where trio runs it; a *call* is an operation that
another thread has it carry out there. What holds of calls:

- **Any number of threads** may make them, and the handler of a signal, also in the middle of another call; but where
  the main thread waits for futures, the handler is not to wait: each future has a lock, which the main thread may hold,
  and the node waits for that. :data:`~prime_dht.blocking.node_thread.CALLS_AT_ONCE` are under way at a time; who makes
  one more waits for a place. Streams of blobs take none, but each piece of one does while it is waited for.
- **One end.** A call ends with a value or an error, which is raised in the thread that made it; or it is cancelled, by
  Ctrl-C in that thread or ``cancel()`` of its future, and then it is cancelled in the node as well. When the node ends,
  by ``close()`` or otherwise, every call under way ends with an error.
- **No stalled event loop.** Where trio runs, a call that would wait is refused; under asyncio, as in a notebook, it
  waits, as any blocking code does there.

A node belongs to its process. In a forked child, and in another process where it is unpickled, a client makes a node of
its own when it is first used, with a new identity, which listens nowhere. What sockets it inherits a child never uses;
but it keeps them open as long as it runs, and with them the port of a parent that served and has ended. A client that
nobody closes is closed when it is collected or when Python exits.

=================  ===========================================================
``connecting``     from a few words to a client that has joined
``client``         :class:`BlockingDHT`: the operations of the asynchronous API
``entries``        of these, putting and getting; ``blobs``: values of any size
``subscription``   events, as an iterator
``life``           opening, closing, forking and pickling a client
``node_thread``    the thread; ``joining``: how its node joins
``call``           one call into it
=================  ===========================================================
"""

from prime_dht.blocking.client import BlockingDHT
from prime_dht.blocking.connecting import connect

__all__ = ["BlockingDHT", "connect"]
