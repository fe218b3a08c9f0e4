"""Put a value into a swarm, if one is given, and get what is there.

    python examples/put_get.py PEER greeting "hello, swarm"
    python examples/put_get.py PEER greeting

PEER is an address that a node prints, such as one of examples/run_node.py.
"""

import argparse
import sys

import trio

from prime_dht import DhtConfig, Mode, NodeConfig, PrimeDHTError, open_node


async def put_get(peer: str, key: str, value: str | None) -> None:
    # A client listens nowhere and stores nothing for others.
    config = NodeConfig(listen=(), peers=(peer,), dht=DhtConfig(mode=Mode.CLIENT))
    async with open_node(config) as dht:
        await dht.bootstrap()
        if value is not None:
            receipt = await dht.put(key, value.encode(), ttl=3600)
            print(f"stored by {len(receipt.stored_by)} of {receipt.wanted} replicas")
        found = await dht.get(key)
        print("nothing there" if found is None else found.value.decode(errors="backslashreplace"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer")
    parser.add_argument("key")
    parser.add_argument("value", nargs="?")
    given = parser.parse_args()
    try:
        trio.run(put_get, given.peer, given.key, given.value)
    except (PrimeDHTError, KeyboardInterrupt) as error:
        sys.exit(str(error) or 130)
