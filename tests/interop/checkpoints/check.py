"""``make torch-interop``: PyTorch keeps its checkpoints on a swarm, as on any other store that fsspec knows."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fsspec

from prime_dht.testing.processes import PRIME_DHT, run, running

EXAMPLE = str(Path(__file__).parents[3] / "examples" / "torch_checkpoint.py")

RANKS = 2
ROWS = 300_000
"""Of a sharded matrix: what a rank has of it is a blob."""


def state_of(seed: int) -> dict[str, Any]:
    """A training state: a model, its optimizer, and a number."""
    import torch

    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(512, 1024), torch.nn.Linear(1024, 10))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(8, 512)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "bf16": torch.randn(1000).bfloat16(),
        "scalar": torch.tensor(float(seed)),
        "step": seed,
    }


def check_same(loaded: dict[str, Any], saved: dict[str, Any]) -> None:
    """Raises :class:`AssertionError` if a loaded state is not what was saved."""
    from torch.utils._pytree import tree_leaves

    for one, other in zip(tree_leaves(loaded), tree_leaves(saved), strict=True):
        same = one.equal(other) if hasattr(one, "equal") else one == other
        assert same, f"{one} is not {other}"


def writer_and_reader_classes() -> tuple[Any, Any]:
    """``FsspecWriter`` and ``FsspecReader``, which have a public name since PyTorch 2.15."""
    try:
        module = importlib.import_module("torch.distributed.checkpoint.fsspec_filesystem")
    except ModuleNotFoundError:
        module = importlib.import_module("torch.distributed.checkpoint._fsspec_filesystem")
    return module.FsspecWriter, module.FsspecReader


def writer_and_reader(options: dict[str, Any], **writing: Any) -> None:
    """A checkpoint by the writer and the reader for fsspec, written twice."""
    import torch.distributed.checkpoint as dcp

    writer, reader = writer_and_reader_classes()
    url = "prime://writer/" + ("-".join(writing) or "plain")
    for seed in (1, 2):
        dcp.save(state_of(seed), storage_writer=writer(url, **writing, **options))
    loaded = state_of(3)
    dcp.load(loaded, storage_reader=reader(url, **options))
    check_same(loaded, state_of(2))


def checkpoint_id(options: dict[str, Any]) -> None:
    """A checkpoint by its address alone; fsspec's configuration says how to join."""
    import torch.distributed.checkpoint as dcp

    fsspec.config.conf["prime"] = options
    dcp.save(state_of(1), checkpoint_id="prime://by-id")
    loaded = state_of(2)
    dcp.load(loaded, checkpoint_id="prime://by-id")
    check_same(loaded, state_of(1))
    fsspec.config.conf.clear()


def plain_file(options: dict[str, Any]) -> None:
    """``torch.save`` and ``torch.load``."""
    import torch

    with fsspec.open("prime://plain/state.pt", "wb", **options) as file:
        torch.save(state_of(1), file)
    with fsspec.open("prime://plain/state.pt", "rb", **options) as file:
        check_same(torch.load(file, weights_only=True), state_of(1))


class Lines:
    """A data set that reads a file by ranges, in whatever process it is asked."""

    def __init__(self, fs: fsspec.AbstractFileSystem) -> None:
        self.fs = fs

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> int:
        return int(self.fs.cat_file("data/lines", 8 * index, 8 * index + 8))


def loader_workers(options: dict[str, Any], *, method: str) -> None:
    """A file system in the workers of a DataLoader."""
    from torch.utils.data import DataLoader

    fs = fsspec.filesystem("prime", **options)
    fs.pipe_file("data/lines", b"".join(b"%07d\n" % number for number in range(64)))
    loader: Any = DataLoader(Lines(fs), batch_size=8, num_workers=2, multiprocessing_context=method)
    assert [int(one) for batch in loader for one in batch] == list(range(64))


def ranks(options: dict[str, Any]) -> None:
    """A sharded checkpoint of several processes, each a peer of its own, loaded by one."""
    import torch
    import torch.distributed.checkpoint as dcp

    with tempfile.TemporaryDirectory() as directory:
        torch.multiprocessing.spawn(save_shard, (f"file://{directory}/meet", options), nprocs=RANKS)
    loaded = {"sharded": torch.zeros(ROWS, 8)}
    dcp.load(loaded, storage_reader=writer_and_reader_classes()[1]("prime://ranks", **options))
    check_same(loaded, {"sharded": torch.arange(ROWS * 8.0).reshape(ROWS, 8)})


def save_shard(rank: int, meeting: str, options: dict[str, Any]) -> None:
    """What one process of several does."""
    import torch
    import torch.distributed.checkpoint as dcp
    from torch import distributed
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=RANKS)
    matrix = torch.arange(ROWS * 8.0).reshape(ROWS, 8)
    sharded = distribute_tensor(matrix, init_device_mesh("cpu", (RANKS,)), [Shard(0)])
    dcp.save({"sharded": sharded}, storage_writer=writer_and_reader_classes()[0]("prime://ranks", **options))
    distributed.destroy_process_group()


def example(options: dict[str, Any]) -> None:
    """``examples/torch_checkpoint.py`` goes on in another process where the one before has ended."""
    (address,) = options["peers"]
    with tempfile.TemporaryDirectory() as cache:
        for steps, said in (
            (100, ["begins after step 0", "step 50", "step 100"]),
            (150, ["begins after step 100", "step 150"]),
        ):
            ended = run(
                sys.executable, EXAMPLE, address, "--steps", str(steps), env={"XDG_CACHE_HOME": cache}, cwd=Path(cache)
            )
            assert ended.status == 0, ended.err
            assert (Path(cache) / "accuracy_by_round.png").exists()
            assert [line.partition(":")[0] for line in ended.out.decode().splitlines()] == said


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "FsspecWriter and FsspecReader": partial(writer_and_reader),
    "with a file for each tensor": partial(writer_and_reader, single_file_per_rank=False, thread_count=2),
    "dcp.save and dcp.load by address": checkpoint_id,
    "torch.save and torch.load": plain_file,
    "forked DataLoader workers": partial(loader_workers, method="fork"),
    "spawned DataLoader workers": partial(loader_workers, method="spawn"),
    f"{RANKS} ranks, each a peer": ranks,
    "examples/torch_checkpoint.py": example,
}


def main() -> None:
    """Carry out all checks, on a swarm of three nodes; the first that fails raises."""
    import torch

    print(f"PyTorch {torch.__version__}, fsspec {fsspec.__version__}, Python {sys.version.split()[0]}")
    with running(*PRIME_DHT, "swarm", "3", "--json") as nodes, tempfile.TemporaryDirectory() as data_dir:
        options = {"peers": [json.loads(nodes.line())["addresses"][0]]}
        for name, check in CHECKS.items():
            check(options)
            print(f"ok: {name}", flush=True)
        kept = {**options, "data_dir": str(Path(data_dir) / "kept")}
        writer_and_reader(kept, thread_count=1)
        print("ok: with a data_dir")


if __name__ == "__main__":
    main()
