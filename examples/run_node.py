"""Run a node: print its addresses, and who joins and leaves, until Ctrl-C.

    python examples/run_node.py
    python examples/run_node.py --peer ADDRESS --data-dir ./data

`prime-dht run` does the same with more care for details.
"""

import argparse
import sys
from pathlib import Path

import trio

from prime_dht import NodeConfig, PrimeDHTError, open_node


async def run(config: NodeConfig) -> None:
    async with open_node(config) as dht:
        with dht.subscribe() as events:
            for address in dht.addresses():
                print(address, flush=True)
            async for event in events:
                print(event, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", default="/ip4/0.0.0.0/tcp/0", help="where to listen; port 0 is any free port")
    parser.add_argument("--peer", action="append", default=[], help="a node to join through; repeat for several")
    parser.add_argument("--data-dir", type=Path, help="where identity and entries are kept")
    given = parser.parse_args()
    try:
        trio.run(run, NodeConfig(listen=(given.listen,), peers=tuple(given.peer), data_dir=given.data_dir))
    except* KeyboardInterrupt:
        pass
    except* PrimeDHTError as failed:
        sys.exit(str(failed.exceptions[0]))
