"""Weights as safetensors: the same tensors are the same bytes, and nothing else is taken for them."""

from __future__ import annotations

import io
import json
import pickle
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from safetensors.numpy import load, save

from prime_dht.errors import StorageError, ValidationError
from prime_dht.ml.codecs import ErrorFeedback, Int8, encode
from prime_dht.ml.tensors import BFLOAT16, DTYPES, Array, Tensors, as_tensors, spec_of
from prime_dht.ml.weights import (
    from_safetensors,
    map_safetensors,
    spec_in_header,
    to_safetensors,
    write_safetensors,
)

if TYPE_CHECKING:
    from types import ModuleType

    from _typeshed import ReadableBuffer as Buffer

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


def test_they_are_the_bytes_that_the_library_writes() -> None:
    tensors = {f'{name} "é\n\x7f\\': tensor for name, tensor in every_tensor().items()}
    assert to_safetensors(tensors) == save(dict(tensors))
    assert to_safetensors({}) == save({})


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


def test_a_file_whose_header_has_a_length_that_pickles_begin_with_is_none() -> None:
    data = to_safetensors({"weight": np.zeros((300, 100), np.float32), "bias": np.array(1, np.float32)})
    assert data[0] == pickle.dumps({})[0]
    assert from_safetensors(data).keys() == {"weight", "bias"}


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


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much of torch as is used."""
    monkeypatch.setitem(sys.modules, "torch", cast("ModuleType", SimpleNamespace(int16="<i2")))


class FakeDtype:
    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return f"torch.{self.name}"


class FakeTensor:
    """As much of a torch tensor as is used; it refuses what torch does."""

    brought = 0

    def __init__(self, array: Array, *, on: str = "cpu", requires_grad: bool = False) -> None:
        self.array, self.on, self.requires_grad = array, on, requires_grad
        self.dtype, self.shape = FakeDtype(array.dtype.name), array.shape

    def detach(self) -> FakeTensor:
        return FakeTensor(self.array, on=self.on)

    def cpu(self) -> FakeTensor:
        if self.on == "meta":
            raise NotImplementedError("Cannot copy out of meta tensor; no data!")
        FakeTensor.brought += self.on != "cpu"
        return FakeTensor(self.array, requires_grad=self.requires_grad)

    def view(self, dtype: object, /) -> FakeTensor:
        return FakeTensor(self.array.view(str(dtype)), on=self.on, requires_grad=self.requires_grad)

    def numpy(self) -> Array:
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self.on != "cpu" or self.array.dtype == BFLOAT16:
            raise TypeError(f"can't convert {self.on} tensor of {self.dtype}")
        return self.array


@pytest.mark.usefixtures("torch")
def test_a_torch_state_dict_is_written_as_the_arrays_that_it_stands_for() -> None:
    state = {
        name: FakeTensor(np.asarray(tensor), on="cuda:0", requires_grad=True) for name, tensor in every_tensor().items()
    }
    assert to_safetensors(state) == to_safetensors(every_tensor())


@pytest.mark.usefixtures("torch")
def test_a_torch_state_dict_becomes_the_arrays_that_it_stands_for() -> None:
    state = {name: FakeTensor(np.asarray(tensor), requires_grad=True) for name, tensor in every_tensor().items()}
    arrays = as_tensors(state)
    assert spec_of(arrays) == spec_of(every_tensor())
    assert to_safetensors(arrays) == to_safetensors(every_tensor())


@pytest.mark.usefixtures("torch")
def test_bfloat16_of_torch_is_taken_bit_for_bit_without_a_copy() -> None:
    array = np.array([0x7F81, 0x7FC1, 0xFFFF, 1], np.uint16).view(BFLOAT16)  # the first three are no numbers
    taken = as_tensors({"w": FakeTensor(array)})["w"]
    assert np.shares_memory(taken, array)
    assert (taken.dtype, taken.tobytes()) == (BFLOAT16, array.tobytes())


@pytest.mark.usefixtures("torch")
def test_of_torch_tensors_the_spec_is_known_and_they_are_encoded_as_the_arrays_that_they_stand_for() -> None:
    arrays = {"w": np.array([1.0, -2.0], np.float32), "half": np.array([0.5], BFLOAT16)}
    state = {name: FakeTensor(array, requires_grad=True) for name, array in arrays.items()}
    assert spec_of(state) == spec_of(arrays)
    assert encode(state) == encode(arrays)
    assert ErrorFeedback(Int8()).encode(state) == ErrorFeedback(Int8()).encode(arrays)


def test_tensors_on_a_gpu_are_brought_here_one_at_a_time_after_all_were_looked_at() -> None:
    brought: list[int] = []

    class File(io.BytesIO):
        def write(self, data: Buffer) -> int:
            brought.append(FakeTensor.brought)
            return super().write(data)

    FakeTensor.brought = 0
    write_safetensors(File(), {name: FakeTensor(np.zeros(2), on="cuda:0") for name in "abc"})
    assert brought == [0, 1, 2, 3]


def test_what_shares_memory_is_written_whole_for_each_name() -> None:
    shared = FakeTensor(np.arange(3.0))
    assert from_safetensors(to_safetensors({"embed": shared, "head": shared})).keys() == {"embed", "head"}


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ({"w": np.zeros(2, np.complex64)}, "'w' is of dtype complex64"),
        ({"w": FakeTensor(np.zeros(2, np.complex64))}, "'w' is of dtype complex64"),
        ({"w": np.array(None)}, "'w' is of dtype object"),
        ([np.zeros(2)], "tensors are names and arrays"),
        ({"state": {"step": 1}}, "'state' is a mapping: give all tensors side by side"),
        ({"w": [[1.0], [1.0, 2.0]]}, "'w' is no array"),
        ({"w": FakeTensor(np.zeros(2), on="meta")}, "'w' is no array: Cannot copy out of meta tensor"),
        ({"__metadata__": np.zeros(2)}, "no tensor is named '__metadata__'"),
        ({"": np.zeros(2)}, "a tensor's name"),
        ({"w": np.zeros((0, 1 << 50))}, "'w' has more than"),
        ({"w": FakeTensor(np.zeros((0, 1 << 50)))}, "'w' has more than"),
    ],
)
def test_what_is_no_tensor_is_not_written(weights: object, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        to_safetensors(weights)  # type: ignore[arg-type]


def test_the_header_alone_tells_the_spec_in_the_order_of_the_bytes(tmp_path: Path) -> None:
    data, path = to_safetensors(every_tensor()), tmp_path / "model.safetensors"
    path.write_bytes(data)
    header = data[: 8 + int.from_bytes(data[:8], "little")]
    found, expected = spec_in_header(header), spec_of(map_safetensors(path))
    assert found == expected
    assert [name for name in found if found[name].size] == [name for name in expected if expected[name].size]


def header_of(about: object) -> bytes:
    text = json.dumps(about).encode()
    return len(text).to_bytes(8, "little") + text


ONE = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}


@pytest.mark.parametrize(
    "header",
    [
        b"",
        header_of({"w": ONE})[:-1],
        header_of({"w": ONE}) + b" ",
        (1).to_bytes(8, "little") + b"\xff",
        (50_000).to_bytes(8, "little") + b"[" * 50_000,
        header_of([]),
        header_of({"w": []}),
        header_of({"w": ONE | {"dtype": "F8_E4M3"}}),
        header_of({"w": ONE | {"shape": [3]}}),
        header_of({"w": ONE | {"shape": "no"}}),
        header_of({"w": ONE | {"data_offsets": [0.0, 2]}}),
        header_of({"w": ONE | {"data_offsets": [0]}}),
        header_of({"w": ONE | {"data_offsets": [1, 3]}}),
        header_of({"v": ONE, "w": ONE}),
        header_of({"": ONE}),
    ],
)
def test_a_header_that_says_what_cannot_be_is_refused(header: bytes) -> None:
    with pytest.raises(ValidationError):
        spec_in_header(header)


def test_free_metadata_in_a_header_is_no_tensor() -> None:
    assert list(spec_in_header(header_of({"__metadata__": {"format": "pt"}, "w": ONE}))) == ["w"]
