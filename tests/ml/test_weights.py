"""Weights as safetensors: the same tensors are the same bytes, and nothing else is taken for them."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from prime_dht.errors import StorageError, ValidationError
from prime_dht.ml.tensors import DTYPES, Tensors
from prime_dht.ml.weights import from_safetensors, map_safetensors, to_safetensors

SHAPES = ((), (3,), (2, 3), (0,), (2, 0, 3))


def every_tensor() -> Tensors:
    rng = np.random.default_rng(1)
    return {
        f"{name}.{'x'.join(map(str, shape))}": np.asarray(rng.integers(0, 2, shape)).astype(dtype)
        for name, dtype in DTYPES.items()
        for shape in SHAPES
    }


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert found[name].tobytes() == tensor.tobytes()


def test_tensors_of_every_dtype_and_shape_come_back_from_bytes_and_from_a_file(tmp_path: Path) -> None:
    tensors, path = every_tensor(), tmp_path / "model.safetensors"
    path.write_bytes(to_safetensors(tensors))
    assert_same(from_safetensors(path.read_bytes()), tensors)
    assert_same(map_safetensors(path), tensors)


def test_the_same_tensors_are_the_same_bytes_in_whatever_order() -> None:
    tensors = every_tensor()
    assert to_safetensors({name: tensors[name] for name in sorted(tensors, reverse=True)}) == to_safetensors(tensors)


def test_an_array_across_memory_is_written_as_it_reads() -> None:
    across = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert np.array_equal(load(to_safetensors({"w": across}))["w"], across)


def test_a_mapped_file_takes_no_memory_and_cannot_be_written_through(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(to_safetensors({"w": np.zeros(1000, np.float32)}))
    tensor = map_safetensors(path)["w"]
    assert not tensor.flags.owndata
    assert not tensor.flags.writeable


def torch_archive() -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"w": 1}))
    return archive.getvalue()


@pytest.mark.parametrize("data", [pickle.dumps({"w": 1}), pickle.dumps({"w": 1}, protocol=2), torch_archive()])
def test_a_pickle_is_refused_as_one(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(data)
    with pytest.raises(ValidationError, match="this is a pickle"):
        from_safetensors(data)
    with pytest.raises(ValidationError, match="this is a pickle"):
        map_safetensors(path)


def test_whatever_is_cut_off_or_added_is_noticed(tmp_path: Path) -> None:
    data, path = to_safetensors({"w": np.arange(3.0), "b": np.array(1, np.float32)}), tmp_path / "model.safetensors"
    for broken in [*(data[:length] for length in range(len(data))), data + b"\0"]:
        path.write_bytes(broken)
        with pytest.raises(ValidationError, match="not a safetensors file"):
            from_safetensors(broken)
        with pytest.raises(ValidationError, match="not a safetensors file"):
            map_safetensors(path)


def file_of(dtype: str, body: bytes, shape: list[int], name: str = "w") -> bytes:
    header = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, len(body)]}}).encode()
    return len(header).to_bytes(8, "little") + header + body


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (file_of("F8_E4M3", b"\0\0", [2]), "'w' is of dtype F8_E4M3"),
        (file_of("BOOL", b"\0\2", [2]), "'w' is of dtype BOOL and holds bytes other"),
        (file_of("U8", b"\0", [1], name=""), "a tensor's name"),
        (file_of("U8", b"", [0, 1 << 60]), "'w' has more than"),
    ],
)
def test_a_file_of_what_is_no_tensor_here_is_refused(data: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(ValidationError, match=complaint):
        from_safetensors(data)
    with pytest.raises(ValidationError, match=complaint):
        map_safetensors(path)


def test_a_file_that_cannot_be_read_is_an_error_of_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot read"):
        map_safetensors(tmp_path / "absent")
