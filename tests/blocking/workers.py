"""What a data loader does: worker processes that each have a copy of a data set, which has the client. A program.

python tests/blocking/workers.py START-METHOD PEER
"""

from __future__ import annotations

import multiprocessing
import sys
from multiprocessing.queues import Queue

from prime_dht import BlockingDHT, connect

SAMPLES = 12


class Samples:
    """A data set that lies in a swarm."""

    def __init__(self, dht: BlockingDHT) -> None:
        self.dht = dht

    def __getitem__(self, number: int) -> tuple[bytes, bytes]:
        found = self.dht.get(f"workers:{number}")
        assert found is not None
        return found.value, self.dht.peer_id


def work(samples: Samples, wanted: Queue[int | None], made: Queue[tuple[bytes, bytes]]) -> None:
    while (number := wanted.get()) is not None:
        made.put(samples[number])


def main(method: str, peer: str) -> None:
    multiprocessing.set_start_method(method)
    with connect(peer) as dht:
        dht.put_many({f"workers:{number}": b"%d" % number for number in range(SAMPLES)})
        samples = Samples(dht)
        wanted: list[Queue[int | None]] = [multiprocessing.Queue() for _ in range(2)]
        made: Queue[tuple[bytes, bytes]] = multiprocessing.Queue()
        workers = [multiprocessing.Process(target=work, args=(samples, queue, made)) for queue in wanted]
        for worker in workers:
            worker.start()
        for number in range(SAMPLES):
            wanted[number % 2].put(number)
        loaded = [made.get() for _ in range(SAMPLES)]
        for queue in wanted:
            queue.put(None)
        for worker in workers:
            worker.join()
        # Neither begins before the other is there, and might then do everything.
        with multiprocessing.Pool(2, multiprocessing.Barrier(2).wait) as pool:  # which sends a copy with every task
            loaded += pool.map(samples.__getitem__, range(SAMPLES), chunksize=1)
        assert sorted(value for value, _ in loaded) == sorted(2 * [b"%d" % number for number in range(SAMPLES)])
        identities = {identity for _, identity in loaded}
        assert dht.peer_id not in identities
        assert samples[0] == (b"0", dht.peer_id)
        print(len(identities), [worker.exitcode for worker in workers])


if __name__ == "__main__":
    main(*sys.argv[1:])
