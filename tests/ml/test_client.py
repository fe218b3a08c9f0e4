"""What a person with a training loop does: push, list and pull models, from plain code, through a swarm."""

from __future__ import annotations

import inspect
import json
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np
import pytest

import prime_dht.blocking
from prime_dht import (
    BlobError,
    BlobProgress,
    Cid,
    ConfigError,
    LearningDHT,
    NodeConfig,
    StorageError,
    UnknownModelError,
    ValidationError,
    connect,
)
from prime_dht.ids import peer_text
from prime_dht.ml.models import pulling
from prime_dht.ml.models.pulling import KEPT_FILES
from prime_dht.ml.models.version import description_key, description_of, subkey_of, weights_key
from prime_dht.ml.tensors import Array, TensorSpec
from prime_dht.ml.weights import to_safetensors
from prime_dht.testing.processes import run

LAYER_BYTES = 128 << 10


def layers(seed: int = 0, count: int = 10) -> dict[str, Array]:
    """So many tensors of 128 KiB each."""
    rng = np.random.default_rng(seed)
    return {f"layer{number}": rng.standard_normal((128, 256)).astype(np.float32) for number in range(count)}


def assert_same(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert np.array_equal(found[name], tensor)


# Connecting


def test_connect_takes_and_says_the_same_as_that_of_the_blocking_client() -> None:
    ours, blocking = inspect.signature(connect), inspect.signature(prime_dht.blocking.connect)
    assert ours.parameters == blocking.parameters
    assert (ours.return_annotation, blocking.return_annotation) == ("LearningDHT", "BlockingDHT")
    assert inspect.getdoc(connect) == inspect.getdoc(prime_dht.blocking.connect)


def test_a_copy_in_this_process_or_a_child_is_a_client_that_learns(dht: LearningDHT) -> None:
    assert pickle.loads(pickle.dumps(dht)) is dht
    kind, (of, *_) = dht.__reduce__()[0], dht.__reduce__()[1]
    assert (of, callable(kind)) == (LearningDHT, True)


def test_a_forked_child_pulls_with_a_client_of_its_own(swarm: tuple[str, ...], tmp_path: Path) -> None:
    body = """
import os, sys, warnings
import numpy as np
from prime_dht import connect
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # Python 3.12 has it
dht = connect(sys.argv[1], data_dir=sys.argv[2])
pushed = dht.push_model("forked", {"w": np.arange(3.0)})
if not (child := os.fork()):
    model = dht.pull_model("forked")
    os._exit(not (model.version == pushed and model.path.is_relative_to(sys.argv[3])))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    data_dir, cache = str(tmp_path / "data"), str(tmp_path / "cache")
    ended = run(sys.executable, "-c", body, swarm[0], data_dir, cache, env={"XDG_CACHE_HOME": cache})
    assert (ended.status, ended.out, ended.err) == (0, b"0\n", "")


def test_models_are_kept_in_the_data_directory_or_else_in_the_users_cache(
    dht: LearningDHT, reader: LearningDHT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert dht.data_dir is not None
    assert dht.models_dir == dht.data_dir / "models"
    assert reader.models_dir == tmp_path / "cache" / "prime_dht" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert reader.models_dir == Path.home() / ".cache" / "prime_dht" / "models"


def test_connecting_imports_nothing_that_needs_the_extra_and_a_model_says_that_it_does(
    swarm: tuple[str, ...], tmp_path: Path
) -> None:
    body = """
import sys
for name in ("ml_dtypes", "safetensors", "zstandard"):
    sys.modules[name] = None  # as if it were not installed
import prime_dht
from prime_dht import ConfigError, connect
with connect(sys.argv[1]) as dht:
    print(dht.put("extra", b"value").acknowledged)
    print(dht.model_versions("extra") == [])
    checkpoints = lambda: prime_dht.Checkpoints(dht, "run", every=1)
    for use in (lambda: dht.push_model("m", {}), lambda: dht.pull_model("m"), checkpoints):
        try:
            use()
        except ConfigError as error:
            print("pip install 'prime-dht[ml]'" in str(error))
"""
    ended = run(sys.executable, "-c", body, swarm[0])
    assert (ended.status, ended.out, ended.err) == (0, b"True\n" * 5, "")


# Models


def test_what_is_pushed_is_pulled_and_all_that_is_said_of_it_is_there(dht: LearningDHT, reader: LearningDHT) -> None:
    told: list[BlobProgress] = []
    pushed = dht.push_model(
        "first", layers(), {"accuracy": 0.97, "tags": ["mlp"]}, architecture="10 layers", progress=told.append
    )
    assert {one.size_bytes for one in told} == {pushed.size_bytes}
    assert told[-1].replicas_held >= told[-1].replicas_wanted == 2
    model = reader.pull_model("first")
    assert model.version == pushed
    assert_same(model.tensors, layers())
    assert not any(tensor.flags.owndata or tensor.flags.writeable for tensor in model.tensors.values())
    assert model.path.stat().st_size == pushed.size_bytes
    assert (pushed.version, pushed.publisher, pushed.parameter_count) == (1, dht.peer_id, 10 * 128 * 256)
    assert (pushed.metadata, pushed.architecture) == ({"accuracy": 0.97, "tags": ["mlp"]}, "10 layers")
    assert pushed.created_at == pushed.updated_at
    assert timedelta(days=30) - timedelta(minutes=5) < pushed.expires_at - pushed.updated_at <= timedelta(days=30)
    assert reader.model_metadata("first") == pushed
    assert reader.model_tensors("first") == dict.fromkeys(layers(), TensorSpec(np.dtype(np.float32), (128, 256)))


def test_the_last_version_is_pulled_unless_another_is_asked_for(dht: LearningDHT, reader: LearningDHT) -> None:
    pushed = [dht.push_model("several", {"w": np.full(3, number)}, ttl=3600) for number in range(3)]
    assert [one.version for one in pushed] == [1, 2, 3]
    assert {one.created_at for one in pushed} == {pushed[0].updated_at}
    assert reader.model_versions("several") == pushed
    assert reader.pull_model("several").tensors["w"][0] == 2
    assert reader.pull_model("several", 2).version == reader.model_metadata("several", 2) == pushed[1]


def test_a_small_model_has_the_cid_of_its_bytes(dht: LearningDHT, reader: LearningDHT) -> None:
    tensors = {"w": np.arange(3.0)}
    assert dht.push_model("small", tensors).cid == Cid.of_raw(to_safetensors(tensors))
    assert reader.model_tensors("small") == {"w": TensorSpec(np.dtype(np.float64), (3,))}
    assert_same(reader.pull_model("small").tensors, tensors)


def test_publishers_may_use_one_number_and_a_reader_who_names_none_gets_the_newest(
    dht: LearningDHT, reader: LearningDHT
) -> None:
    mine = dht.push_model("shared", {"w": np.array(1.0)})
    reader.numbers_taken["shared"] = 0
    theirs = reader.push_model("shared", {"w": np.array(2.0)})
    assert (mine.version, theirs.version) == (1, 2)
    again = dht.push_model("shared", {"w": np.array(3.0)})
    assert again.version == 3
    forged = description_of(
        number=3,
        cid=theirs.cid,
        size_bytes=theirs.size_bytes,
        header_bytes=theirs.header_bytes,
        parameter_count=1,
        architecture="",
        model_created_at=None,
        metadata={},
        max_bytes=1 << 16,
    )
    reader.put(description_key("shared"), forged, subkey=theirs.subkey)
    assert dht.model_metadata("shared", 3).publisher == reader.peer_id
    assert dht.model_metadata("shared", 3, publisher=dht.peer_id) == again
    assert dht.pull_model("shared", publisher=peer_text(dht.peer_id)).version == again


def test_many_threads_may_push_versions_of_one_model(dht: LearningDHT) -> None:
    with ThreadPoolExecutor(4) as threads:
        pushed = list(threads.map(lambda number: dht.push_model("threads", {"w": np.array(number)}), range(4)))
    assert sorted(one.version for one in pushed) == [1, 2, 3, 4]
    assert len(dht.model_versions("threads")) == 4


def test_arrays_may_change_once_a_push_in_the_background_was_begun(dht: LearningDHT, reader: LearningDHT) -> None:
    tensors = layers()
    pushing = dht.push_model("background", tensors, wait=False)
    tensors["layer0"][:] = 0
    assert pushing.result().version == 1
    assert_same(reader.pull_model("background", wait=False).result().tensors, layers())


def test_a_file_is_pushed_as_it_is_and_pulled_to_where_it_is_wanted(
    dht: LearningDHT, reader: LearningDHT, tmp_path: Path
) -> None:
    path, copy = tmp_path / "model.safetensors", tmp_path / "copy.safetensors"
    path.write_bytes(to_safetensors(layers()))
    dht.push_model("file", path)
    assert reader.pull_model("file", to=copy).path == copy
    assert copy.read_bytes() == path.read_bytes()


# What is shared


def test_of_a_version_that_differs_in_one_tensor_of_ten_only_that_is_pulled(
    dht: LearningDHT, reader: LearningDHT
) -> None:
    told: list[BlobProgress] = []
    dht.push_model("shares", layers())
    reader.pull_model("shares", progress=told.append)
    root_bytes = told[-1].fetched_bytes - told[-1].done_bytes
    assert (told[-1].fetched_blocks, root_bytes < 1000) == (1 + 1 + 10, True)  # root, header, tensors
    changed = layers() | {"layer3": layers(seed=1)["layer3"]}
    dht.push_model("shares", changed)
    assert_same(reader.pull_model("shares", progress=told.append).tensors, changed)
    assert (told[-1].fetched_blocks, told[-1].fetched_bytes) == (1 + 1, root_bytes + LAYER_BYTES)


def test_tensors_are_shared_wherever_they_lie(dht: LearningDHT, reader: LearningDHT, tmp_path: Path) -> None:
    told: list[BlobProgress] = []
    dht.push_model("grows", layers())
    to = tmp_path / "model.safetensors"
    reader.pull_model("grows", to=to)
    grown = {"before": layers(1)["layer0"], **layers(), "layer4": layers(1)["layer1"].view(np.uint8)}
    pushed = dht.push_model("grows", grown)
    assert_same(reader.pull_model("grows", to=to, progress=told.append).tensors, grown)
    assert told[-1].fetched_blocks == 1 + 1 + 1
    assert told[-1].done_bytes == pushed.size_bytes


def test_what_was_pulled_before_is_not_pulled_again_and_the_last_few_are_kept(
    dht: LearningDHT, reader: LearningDHT
) -> None:
    models = []
    folder = reader.models_dir / "kept"
    folder.mkdir(parents=True)
    (folder / ".another.safetensors.abcdefgh.partial").write_bytes(b"of a pull that was interrupted")
    for seed in range(KEPT_FILES + 1):
        dht.push_model("kept", layers(seed))
        models.append(reader.pull_model("kept"))
    told: list[BlobProgress] = []
    again = reader.pull_model("kept", 2, progress=told.append)
    assert (again.path, told) == (models[1].path, [])
    assert [model.path.exists() for model in models] == [False, True, True, True]
    assert_same(models[0].tensors, layers(0))  # what was mapped stays as long as it is used
    kept = {model.path.name for model in models[1:]}
    assert {path.name for path in folder.iterdir()} == kept | {f".{name}.note" for name in kept}


@pytest.mark.parametrize("left", [0, 1000])
def test_a_file_here_that_was_cut_off_is_pulled_again(left: int, dht: LearningDHT, reader: LearningDHT) -> None:
    dht.push_model("cut", layers())
    path = reader.pull_model("cut").path
    path.chmod(0o600)
    with path.open("rb+") as file:
        file.truncate(left)
    assert_same(reader.pull_model("cut").tensors, layers())
    assert {one.name for one in path.parent.iterdir()} == {path.name, f".{path.name}.note"}


def test_a_file_here_that_somebody_has_written_to_is_pulled_again(dht: LearningDHT, reader: LearningDHT) -> None:
    small: dict[str, Array] = {"w": np.zeros(3)}
    for model_id, weights in (("written", layers()), ("written/small", small)):
        dht.push_model(model_id, weights)
        path = reader.pull_model(model_id).path
        assert not path.stat().st_mode & 0o222, "it is not to be written to"
        path.chmod(0o600)
        data = path.read_bytes()
        with path.open("rb+") as file:
            file.write(data[:-1] + b"\x01")
        assert_same(reader.pull_model(model_id).tensors, weights)


def test_a_file_here_that_is_a_copy_of_the_same_bytes_is_not_pulled_again(
    dht: LearningDHT, reader: LearningDHT
) -> None:
    told: list[BlobProgress] = []
    small: dict[str, Array] = {"w": np.zeros(3)}
    for model_id, weights in (("restored", layers()), ("restored/small", small)):
        dht.push_model(model_id, weights)
        path = reader.pull_model(model_id).path
        copy = path.with_suffix(".copy")
        copy.write_bytes(path.read_bytes())
        copy.replace(path)
        assert_same(reader.pull_model(model_id, progress=told.append).tensors, weights)
    assert told == []


def test_models_whose_ids_end_as_files_do_are_no_files_of_another(dht: LearningDHT, reader: LearningDHT) -> None:
    ids = [*(f"family/{number}.safetensors" for number in range(KEPT_FILES)), "family"]
    for model_id in ids:
        dht.push_model(model_id, {"w": np.zeros(3)})
        reader.pull_model(model_id)
    assert all(reader.pull_model(model_id).path.exists() for model_id in ids)


def test_clients_that_pull_one_model_at_the_same_time_fetch_it_once(dht: LearningDHT, reader: LearningDHT) -> None:
    dht.push_model("ranks", layers())
    told: list[BlobProgress] = []
    pulls = [reader.pull_model("ranks", progress=told.append, wait=False) for _ in range(4)]
    assert len({pull.result().path for pull in pulls}) == 1
    assert [one.fetched_bytes for one in told] == sorted(one.fetched_bytes for one in told)


# What goes wrong


def test_a_model_or_version_that_is_not_there_is_named_with_what_is(dht: LearningDHT) -> None:
    with pytest.raises(UnknownModelError, match="there is no model 'absent': nothing stands at 'meta:absent'"):
        dht.pull_model("absent")
    assert dht.model_versions("absent") == []
    for number in range(2):
        dht.push_model("present", {"w": np.array(number)})
    with pytest.raises(UnknownModelError, match="there is no version 7 of model 'present'; there are 2: 1, 2"):
        dht.pull_model("present", 7)
    nobody = "12D3KooWAmSbVP73ygmSzbxbEdcDL8e1YVn9d5CjeMvMVivYSCaq"
    with pytest.raises(ValidationError, match="version is a number, not str"):
        dht.pull_model("present", cast("int", "2"))
    with pytest.raises(UnknownModelError, match=f"there is no model 'present' by {nobody}"):
        dht.model_tensors("present", publisher=nobody)


@pytest.mark.parametrize("operation", ["push_model", "pull_model", "model_versions", "model_metadata", "model_tensors"])
def test_a_bad_id_is_refused_by_every_operation(dht: LearningDHT, operation: str) -> None:
    arguments = [{"w": np.zeros(2)}] if operation == "push_model" else []
    with pytest.raises(ValidationError, match=r"'\.\./m' is no model id"):
        getattr(dht, operation)("../m", *arguments)


def test_bad_weights_and_metadata_are_refused_and_take_no_number(dht: LearningDHT, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(ValidationError, match="this is a pickle"):
        dht.push_model("refused", path)
    path.write_bytes(to_safetensors({"w": np.zeros(3)})[:-1])
    with pytest.raises(ValidationError, match="is not a safetensors file"):
        dht.push_model("refused", path)
    with pytest.raises(ValidationError, match="'w' is of dtype complex128"):
        dht.push_model("refused", {"w": np.zeros(3, complex)})
    with pytest.raises(ValidationError, match="metadata is whatever JSON can hold"):
        dht.push_model("refused", {"w": np.zeros(3)}, {"loss": np.float32(1)})
    with pytest.raises(ValidationError, match="architecture is text, not int"):
        dht.push_model("refused", {"w": np.zeros(3)}, architecture=cast(str, 3))
    assert dht.model_versions("refused") == []
    assert dht.push_model("refused", {"w": np.zeros(3)}).version == 1


def test_a_model_for_which_there_is_no_room_says_how_to_get_some(swarm: tuple[str, ...], tmp_path: Path) -> None:
    little = NodeConfig(data_dir=tmp_path, max_blocks_bytes=1 << 20)
    complaint = r"'large', version 1: no room for .* connect with data_dir"
    with connect(swarm[0], config=little) as dht, pytest.raises(StorageError, match=complaint):
        dht.push_model("large", layers())


def test_what_replicas_have_of_versions_makes_room_for_the_next(swarm: tuple[str, ...], tmp_path: Path) -> None:
    little = NodeConfig(data_dir=tmp_path, max_blocks_bytes=3 << 20)
    with connect(swarm[0], config=little) as dht:
        for seed in range(4):  # of 1.25 MiB each
            dht.push_model("room", layers(seed))


def test_a_folder_for_models_that_cannot_be_made_is_named(
    dht: LearningDHT, reader: LearningDHT, tmp_path: Path
) -> None:
    dht.push_model("nowhere", {"w": np.zeros(3)})
    (tmp_path / "cache").write_bytes(b"no folder")
    with pytest.raises(StorageError, match="cache/prime_dht/models/nowhere: Not a directory"):
        reader.pull_model("nowhere")


@pytest.mark.parametrize(
    ("to", "complaint"), [("", "^.: Is a directory"), ("file/model", "file/model: Not a directory"), ("a/b", "No such")]
)
def test_a_place_where_no_file_can_be_is_named(
    to: str, complaint: str, dht: LearningDHT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dht.push_model("place", {"w": np.zeros(3)})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"no folder")
    with pytest.raises(StorageError, match=complaint):
        dht.pull_model("place", to=to)


@pytest.fixture
def liar(reader: LearningDHT) -> LearningDHT:
    """Has pushed a version without weights, one whose weights are a pickle, and one of which nothing is said."""
    content = pickle.dumps(list(range(50_000)))
    receipt = reader.put(weights_key("lies"), content, subkey=subkey_of(2))
    assert receipt.blob is not None
    cids = {1: Cid.of_raw(b"weights that nobody put"), 2: Cid.from_bytes(receipt.blob.cid)}
    for number, cid in cids.items():
        value = description_of(
            number=number,
            cid=cid,
            size_bytes=len(content),
            header_bytes=100,
            parameter_count=1,
            architecture="",
            model_created_at=None,
            metadata={},
            max_bytes=1 << 16,
        )
        reader.put(description_key("lies"), value, subkey=subkey_of(number))
    reader.put(description_key("lies"), b"no description", subkey=subkey_of(3))
    return reader


def test_lies_of_a_publisher_are_refused_and_leave_nothing_behind(
    dht: LearningDHT, liar: LearningDHT, tmp_path: Path
) -> None:
    assert [one.version for one in dht.model_versions("lies")] == [1, 2]
    with pytest.raises(BlobError, match=f"the weights of 'lies', version 1 of {peer_text(liar.peer_id)} are gone"):
        dht.pull_model("lies", 1)
    to = tmp_path / "model.safetensors"
    to.write_bytes(b"what was pulled before")
    for place in (None, to):
        with pytest.raises(ValidationError, match=r"'lies', version 2 of .*: this is a pickle"):
            dht.pull_model("lies", to=place)
    assert list(dht.models_dir.glob("lies/*")) == []
    assert list(tmp_path.glob("*model*")) == [to]
    assert to.read_bytes() == b"what was pulled before"
    with pytest.raises(ValidationError, match="not the header of a safetensors file"):
        dht.model_tensors("lies")
    liar.put(weights_key("lies"), b"other weights", subkey=subkey_of(2))
    with pytest.raises(BlobError, match="are not those that were listed"):
        dht.pull_model("lies")


def test_weights_of_another_size_than_their_publisher_says_are_not_fetched(
    dht: LearningDHT, reader: LearningDHT
) -> None:
    pushed = reader.push_model("sizes", layers())
    value = description_of(
        number=1,
        cid=pushed.cid,
        size_bytes=1000,
        header_bytes=pushed.header_bytes,
        parameter_count=1,
        architecture="",
        model_created_at=None,
        metadata={},
        max_bytes=1 << 16,
    )
    reader.put(description_key("sizes"), value, subkey=pushed.subkey)
    for look in (dht.pull_model, dht.model_tensors):
        with pytest.raises(ValidationError, match=f"take {pushed.size_bytes:,} bytes, not 1,000 as its publisher says"):
            look("sizes")


def test_a_header_of_more_than_the_file_is_not_laid_out(tmp_path: Path) -> None:
    base, unfinished = tmp_path / "base.safetensors", tmp_path / ".next.partial"
    base.write_bytes(to_safetensors(layers(count=1)))
    length = 1 << 30
    places = {
        "huge": {"dtype": "U8", "shape": [length], "data_offsets": [0, length]},
        "layer0": {"dtype": "F32", "shape": [128, 256], "data_offsets": [length, length + LAYER_BYTES]},
    }
    text = json.dumps(places).encode()
    header = len(text).to_bytes(8, "little") + text
    pulling._lay_out(unfinished, header, base, 1000)
    assert list(tmp_path.iterdir()) == [base]
    pulling._lay_out(unfinished, header, base, len(header) + length + LAYER_BYTES)
    assert unfinished.stat().st_size == len(header) + length + LAYER_BYTES  # what is not shared is a hole


def test_without_a_home_directory_it_says_where_models_can_be(
    reader: LearningDHT, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigError, match="connect with data_dir, or set XDG_CACHE_HOME"):
        reader.push_model("homeless", {"w": np.zeros(3)})


def test_tensors_of_torch_need_torch(dht: LearningDHT, monkeypatch: pytest.MonkeyPatch) -> None:
    dht.push_model("torch", {"w": np.zeros(3)})
    monkeypatch.setitem(sys.modules, "torch", cast(ModuleType, None))
    with pytest.raises(ConfigError, match="pip install torch"):
        dht.pull_model("torch").torch()


def test_a_version_is_told_in_a_line(dht: LearningDHT) -> None:
    version = dht.push_model("told", {"w": np.zeros(3)})
    assert str(version) == f"'told', version 1 of {peer_text(dht.peer_id)}"
    assert hash(version) == hash(dht.model_metadata("told"))
    assert "metadata" in {field.name for field in fields(version)}
