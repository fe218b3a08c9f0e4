"""What people use file systems for, on a swarm: pandas, zarr, safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas
import pytest
import safetensors.numpy
import zarr
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

from prime_dht.filesystem import PrimeFileSystem


@pytest.fixture
def options(swarm: tuple[str, ...]) -> dict[str, Any]:
    return {"peers": [swarm[0]]}


def test_pandas_writes_and_reads_tables(options: dict[str, Any], top: str) -> None:
    table = pandas.DataFrame({"round": range(1000), "loss": np.linspace(3, 1, 1000)})
    for name in ("table.csv", "table.csv.gz"):
        table.to_csv(f"prime://{top}/{name}", index=False, storage_options=options)
        pandas.testing.assert_frame_equal(pandas.read_csv(f"prime://{top}/{name}", storage_options=options), table)
    rows = f"prime://{top}/rows.json"
    table.to_json(rows, orient="records", lines=True, storage_options=options)
    assert len(pandas.read_json(rows, lines=True, storage_options=options)) == 1000


def test_zarr_keeps_arrays(options: dict[str, Any], top: str) -> None:
    url = f"prime://{top}/arrays"
    values = np.arange(10_000, dtype="f4").reshape(100, 100)
    group = zarr.open_group(url, mode="w", storage_options=options)
    array = group.create_array("layer/weights", shape=values.shape, chunks=(50, 50), dtype=values.dtype)
    array[:] = values
    array[10:20, 60:70] = 0
    values[10:20, 60:70] = 0
    assert list(zarr.open_group(f"{url}/layer", mode="r", storage_options=options).array_keys()) == ["weights"]
    again = zarr.open_array(f"{url}/layer/weights", mode="r", storage_options=options)
    np.testing.assert_array_equal(np.asarray(again[:]), values)
    np.testing.assert_array_equal(np.asarray(again[40:60, 99]), values[40:60, 99])


def test_zarr_takes_a_file_system_that_is_there(fs: PrimeFileSystem, top: str) -> None:
    store = zarr.storage.FsspecStore(AsyncFileSystemWrapper(fs, asynchronous=True), path=f"{top}/array")
    zarr.create_array(store, data=np.arange(10))
    array = zarr.open_array(store, mode="r+")
    array[3] = 30
    np.testing.assert_array_equal(np.asarray(array[:]), [0, 1, 2, 30, 4, 5, 6, 7, 8, 9])


def test_a_mapping_of_names_to_bytes(fs: PrimeFileSystem, top: str) -> None:
    mapping = fs.get_mapper(top)
    mapping["a/b"] = b"1"
    mapping.setitems({"c": b"2", "d": b"3"})
    assert dict(mapping) == {"a/b": b"1", "c": b"2", "d": b"3"}
    del mapping["c"]
    assert "c" not in mapping
    with pytest.raises(KeyError):
        mapping["c"]


def test_safetensors_are_cut_by_tensors_and_read(fs: PrimeFileSystem, options: dict[str, Any], top: str) -> None:
    tensors = {"a": np.arange(300_000, dtype="f4"), "b": np.ones((3, 4), dtype="i8")}
    with fs.open(f"{top}/model.safetensors", "wb") as file:
        file.write(safetensors.numpy.save(tensors))
    found = fs._tree.find(f"{top}/model.safetensors")
    assert found.blob is not None
    assert found.blob.chunker == "safetensors-1"
    with fsspec.open(f"prime://{top}/model.safetensors", "rb", **options) as file:
        loaded = safetensors.numpy.load(file.read())
    assert all(np.array_equal(loaded[name], tensors[name]) for name in tensors)


def test_a_local_cache_in_front_of_it_knows_when_a_file_has_changed(
    options: dict[str, Any], fs: PrimeFileSystem, top: str, tmp_path: Path
) -> None:
    fs.pipe_file(f"{top}/file", b"one")

    def read() -> bytes:
        with fsspec.open(
            f"filecache::prime://{top}/file",
            prime=options,
            filecache={"cache_storage": str(tmp_path), "check_files": True},
        ) as file:
            content: bytes = file.read()
        return content

    assert read() == read() == b"one"
    fs.pipe_file(f"{top}/file", b"two")
    assert read() == b"two"
