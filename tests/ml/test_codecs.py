"""Codecs keep to their bounds, for every dtype and shape, and encoded tensors of strangers do no harm."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable, Iterable
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from prime_dht.errors import ValidationError
from prime_dht.ml.codecs import Bf16, Codec, ErrorFeedback, Fp16, Int8, Plain, TopK, codec_named, decode, encode
from prime_dht.ml.codecs import read_header as header_of
from prime_dht.ml.tensors import BFLOAT16, DTYPES, FLOATING, Array, Tensors, TensorSpec, spec_of

PLENTY = 1 << 20
CODECS: tuple[Codec, ...] = (Plain(), Fp16(), Bf16(), Int8(block=4), Int8(), TopK(fraction=0.3), TopK(fraction=1.0))
SHAPES = ((), (1,), (7,), (3, 4), (0,), (2, 0, 3), (5, 1, 130))
ROUNDOFF = {
    np.dtype(np.float64): 2.0**-53,
    np.dtype(np.float32): 2.0**-24,
    np.dtype(np.float16): 2.0**-11,
    BFLOAT16: 2.0**-8,
}


def blocks_of(values: Array, block: int) -> list[Array]:
    return [values[start : start + block] for start in range(0, len(values), block)]


def assert_within_bound(codec: Codec, before: Array, after: Array) -> None:
    """The bound that the table in the codecs' module states."""
    if not np.isfinite(before.astype(np.float64)).all():
        assert after.tobytes() == before.tobytes()
        return
    x, y = before.astype(np.float64).ravel(), after.astype(np.float64).ravel()
    error = np.abs(y - x)
    match codec:
        case Fp16() if before.dtype.itemsize > 2:
            assert (error <= 2.0**-11 * np.abs(x) + 2.0**-25).all()
        case Bf16() if before.dtype.itemsize > 2:
            assert (error <= 2.0**-8 * np.abs(x) + 2.0**-134).all()
        case Int8(block=block):
            for of_block, block_error in zip(blocks_of(x, block), blocks_of(error, block), strict=True):
                peak = np.abs(of_block).max()
                bound = max(peak / 254, 2.0**-127) + (ROUNDOFF[before.dtype] + 2.0**-22) * peak
                assert (block_error <= bound).all()
            if before.dtype != np.float64 and x.size and np.abs(x).max() > 2.0**-119:
                assert np.abs(y).max() <= np.abs(x).max()
        case TopK(fraction=fraction):
            k = math.ceil(fraction * x.size)
            assert np.count_nonzero(error == 0) >= k
            assert (error**2).sum() <= (1 - k / max(1, x.size)) * (x**2).sum() * (1 + 1e-12)
            assert set(y[y != x]) <= {0.0}
        case _:
            assert np.array_equal(x, y)


@pytest.mark.parametrize(
    ("ours", "numpys"),
    [
        (Int8(block=64), Int8(block=cast("int", np.int64(64)))),
        (TopK(fraction=0.25), TopK(fraction=cast("float", np.float32(0.25)))),
    ],
)
def test_a_codecs_parameter_may_be_a_number_of_numpys(ours: Codec, numpys: Codec) -> None:
    tensors = {"w": np.arange(100.0)}
    assert repr(numpys) == repr(ours)
    assert encode(tensors, numpys) == encode(tensors, ours)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("dtype", [np.dtype(np.float64), np.dtype(np.float32), BFLOAT16], ids=str)
def test_what_numpy_is_told_to_do_about_small_numbers_changes_nothing(
    codec: Codec, dtype: np.dtype[np.generic]
) -> None:
    tensors = {"w": (np.random.default_rng(0).standard_normal(100) * 1e-38).astype(dtype)}
    encoded = encode(tensors, codec)
    with np.errstate(all="raise"):
        assert encode(tensors, codec) == encoded
        for data in (encoded, ErrorFeedback(codec).encode(tensors)):
            assert_within_bound(codec, tensors["w"], decode(data, max_bytes=PLENTY)["w"])


def test_what_overflows_with_what_was_left_out_is_refused_whatever_numpy_is_told_to_do_about_it() -> None:
    feedback, large = ErrorFeedback(TopK(fraction=0.5)), {"w": np.array([3e38, 2e38], np.float32)}
    feedback.encode(large)
    with np.errstate(all="raise"), pytest.raises(ValidationError, match="finite"):
        feedback.encode(large)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_every_dtype_and_shape_comes_back_within_the_bound(codec: Codec, dtype: np.dtype[np.generic]) -> None:
    rng = np.random.default_rng(3)
    tensors = {str(shape): np.asarray(rng.standard_normal(shape) * 50).astype(dtype) for shape in SHAPES}
    decoded = decode(encode(tensors, codec), max_bytes=PLENTY)
    assert spec_of(decoded) == spec_of(tensors)
    assert all(isinstance(tensor, np.ndarray) for tensor in decoded.values())
    for name, tensor in tensors.items():
        if dtype in FLOATING:
            assert_within_bound(codec, tensor, decoded[name])
        else:
            assert decoded[name].tobytes() == tensor.tobytes()


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    codec=st.sampled_from(CODECS[1:]),
    dtype=st.sampled_from([np.float64, np.float32, np.float16, BFLOAT16]),
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=20),
    scale=st.integers(-140, 0),
)
def test_codecs_keep_to_their_bounds_or_refuse(codec: Codec, dtype: type, values: list[float], scale: int) -> None:
    with np.errstate(over="ignore"):
        tensor: Array = (np.array(values, np.float64) * 2.0**scale).astype(dtype)
    peak = np.abs(tensor.astype(np.float64)).max(initial=0)
    beyond = {"fp16": 65_504.0, "bf16": 3.38e38}.get(codec.name, math.inf)
    try:
        data = encode({"w": tensor}, codec)
    except ValidationError:
        assert not math.isfinite(peak) or peak > beyond
        return
    assert_within_bound(codec, tensor, decode(data, max_bytes=PLENTY)["w"])


def test_plain_tensors_keep_what_is_not_finite_to_the_bit() -> None:
    odd = np.array([np.nan, -np.nan, np.inf, -0.0, 5e-324])
    assert decode(encode({"w": odd}), max_bytes=PLENTY)["w"].tobytes() == odd.tobytes()


@pytest.mark.parametrize("codec", CODECS[1:], ids=repr)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_codecs_that_round_refuse_what_is_not_finite(codec: Codec, bad: float) -> None:
    with pytest.raises(ValidationError, match="'w' holds values that are not finite"):
        encode({"v": np.ones(3), "w": np.array([1.0, bad])}, codec)


def test_fp16_rounds_as_numpy_does_to_the_bit() -> None:
    halves = np.arange(0x7C00, dtype="<u2").view("<f2").astype(np.float32)
    middles = (halves[1:] + halves[:-1]) / 2
    below, above = np.nextafter(middles, np.float32(0)), np.nextafter(middles, np.float32(np.inf))
    values = np.concatenate(
        [halves, middles, below, above, [np.float32(2.0**-149), np.nextafter(65_520, 0, dtype="f4")]]
    )
    for signed in (values, -values):
        narrowed = signed.astype("<f2")
        assert Fp16().encode(signed) == narrowed.tobytes()
        decoded = Fp16().decode(memoryview(narrowed.tobytes()), TensorSpec(signed.dtype, signed.shape))
        assert decoded.tobytes() == narrowed.astype(np.float32).tobytes()
    for beyond in (65_520.0, 1e5, 3e38):
        with pytest.raises(ValidationError, match="beyond the range of fp16"):
            Fp16().encode(np.array([beyond], np.float32))


def test_topk_takes_the_greatest_and_of_equal_ones_the_first() -> None:
    tensor = np.array([0.0, -2.0, 1.0, 2.0, -2.0, 2.0, 0.0, 3.0], np.float32)
    assert decoded_by(TopK(fraction=3 / 8), tensor).tolist() == [0, -2, 0, 2, 0, 0, 0, 3]
    assert decoded_by(TopK(fraction=1 / 8), np.zeros(8, np.float32)).tolist() == [0] * 8


def decoded_by(codec: Codec, tensor: Array) -> Array:
    return decode(encode({"w": tensor}, codec), max_bytes=PLENTY)["w"]


def test_fp16_refuses_what_only_bf16_can_hold() -> None:
    with pytest.raises(ValidationError, match="'w' holds values beyond the range of fp16"):
        encode({"w": np.array([70_000.0])}, Fp16())
    assert decode(encode({"w": np.array([70_000.0])}, Bf16()), max_bytes=PLENTY)["w"].item() == 70_144.0


def test_int8_keeps_the_greatest_value_of_every_dtype_finite() -> None:
    float32_max = float(np.finfo(np.float32).max)
    bfloat16_max = 255 * 2.0**120
    for dtype, most in ((np.float64, float32_max), (np.float32, float32_max), (BFLOAT16, bfloat16_max)):
        greatest = np.array([most, -most]).astype(dtype)
        assert_within_bound(Int8(), greatest, decode(encode({"w": greatest}, Int8()), max_bytes=PLENTY)["w"])


def test_int8_never_decodes_beyond_the_peak() -> None:
    peaks = {str(i): np.array([1 + i / 512, -0.5], np.float32) for i in range(512)}
    for name, tensor in decode(encode(peaks, Int8()), max_bytes=PLENTY).items():
        assert_within_bound(Int8(), peaks[name], tensor)


def test_lossy_codecs_are_smaller() -> None:
    gradient = {"w": np.random.default_rng(0).standard_normal(100_000).astype(np.float32)}
    size = {codec.name: len(encode(gradient, codec)) for codec in (Plain(), Fp16(), Bf16(), Int8(), TopK())}
    assert size["none"] > 1.8 * size["fp16"] > 1.8 * size["bf16"] > 2.5 * size["int8"] > 20 * size["topk"]


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_a_codec_and_its_parameters_are_read_from_the_bytes(codec: Codec) -> None:
    encoded = header_of(encode({"w": np.zeros((2, 3), np.float32)}, codec))
    assert encoded.codec == codec
    assert encoded.spec == spec_of({"w": np.zeros((2, 3), np.float32)})


@pytest.mark.parametrize(
    ("name", "parameters", "complaint"),
    [
        ("lz4", {}, "no codec is named 'lz4'; there are none, fp16, bf16, int8, topk"),
        ("int8", {"blocks": 3}, "int8 has no such parameters: blocks"),
        ("int8", {"block": 0}, "the block of int8 is 1 to"),
        ("int8", {"block": True}, "the block of int8 is 1 to"),
        ("topk", {"fraction": 0}, "the fraction of topk is above 0"),
        ("topk", {"fraction": float("nan")}, "the fraction of topk is above 0"),
        ("topk", {"fraction": "1"}, "the fraction of topk is above 0"),
    ],
)
def test_an_unknown_codec_or_parameter_is_named(name: str, parameters: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        codec_named(name, **parameters)


def forged(codec: object, parameters: object, tensors: object, content: bytes, **frame: bool) -> bytes:
    """Encoded tensors with any header, and a frame of any content."""
    header = json.dumps({"codec": codec, "parameters": parameters, "tensors": tensors}).encode()
    start = b"PRTN\x01" + len(header).to_bytes(4, "little")
    return start + header + zstandard.ZstdCompressor(**frame).compress(content)  # type: ignore[arg-type]


def floats(*values: float) -> bytes:
    return np.array(values, "<f4").tobytes()


def steps(*values: int) -> bytes:
    return np.array(values, "<u4").tobytes()


ONE = [["w", "F32", [4]]]

HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "no encoded tensors"),
    "another version": (b"PRTN\x02" + bytes(20), "no encoded tensors of a version"),
    "a header without an end": (b"PRTN\x01\xff\xff\xff\xff{}", "truncated"),
    "no JSON": (b"PRTN\x01\x01\0\0\0{", "no JSON"),
    "nested JSON": (b"PRTN\x01\x00\x00\x01\0" + b"[" * (1 << 16), "no JSON"),
    "JSON of something else": (b"PRTN\x01\x02\0\0\0[]", "lacks the codec"),
    "a parameter that is a name": (forged("int8", {"name": "none"}, ONE, bytes(16)), "no such parameters: name"),
    "a codec that is no text": (forged(["none"], {}, ONE, bytes(16)), "lacks the codec"),
    "a name twice": (forged("none", {}, ONE * 2, bytes(32)), "names 'w' twice"),
    "a tensor without a shape": (forged("none", {}, [["w", "F32"]], bytes(16)), "no tensor"),
    "a negative shape": (forged("none", {}, [["w", "F32", [-4]]], b""), "shape that no tensor has"),
    "a shape beyond memory": (forged("none", {}, [["w", "F32", [1 << 40]]], b""), "at most 1048576 are taken"),
    "a bomb": (forged("none", {}, ONE, bytes(1 << 26)), "take 16 bytes, but their frame declares 67108864"),
    "an undeclared bomb": (forged("none", {}, ONE, bytes(1 << 26), write_content_size=False), "but their frame"),
    "no frame": (forged("none", {}, ONE, bytes(16))[:-12], "damaged"),
    "half a frame": (forged("none", {}, ONE, b"0123456789abcdef")[:-3], "damaged"),
    "more than a frame": (forged("none", {}, ONE, bytes(16)) + b"\0", "damaged"),
    "bytes that are no booleans": (forged("none", {}, [["w", "BOOL", [2]]], b"\1\2"), "'w' is of dtype BOOL"),
    "a half that is infinite": (forged("fp16", {}, [["w", "F32", [1]]], b"\x00\x7c"), "'w' holds values that are not"),
    "a scale that is NaN": (forged("int8", {"block": 4}, ONE, bytes(4) + floats(math.nan)), "'w' has a scale"),
    "a negative scale": (forged("int8", {"block": 4}, ONE, bytes(4) + floats(-1.0)), "'w' has a scale"),
    "a scale too large": (forged("int8", {"block": 4}, ONE, b"\x7f" * 4 + floats(3e38)), "'w' has a scale beyond"),
    "an index out of range": (forged("topk", {"fraction": 0.5}, ONE, steps(1, 3) + floats(1, 2)), "'w' has indices"),
    "an index around the world": (
        forged("topk", {"fraction": 0.5}, ONE, steps(3, 0xFFFFFFFF) + floats(1, 2)),
        "'w' has indices",
    ),
    "an index twice": (forged("topk", {"fraction": 0.5}, ONE, steps(1, 0) + floats(1, 2)), "'w' has indices"),
    "an element that is NaN": (forged("topk", {"fraction": 0.5}, ONE, steps(1, 2) + floats(1, math.nan)), "not finite"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_bytes_are_refused_with_the_reason(what: str) -> None:
    data, complaint = HOSTILE[what]
    with pytest.raises(ValidationError, match=complaint):
        decode(data, max_bytes=PLENTY)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(codec=st.sampled_from(CODECS), edits=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=4))
def test_damaged_bytes_decode_to_a_bounded_size_or_are_refused(codec: Codec, edits: list[tuple[int, int]]) -> None:
    data = bytearray(encode({"w": np.arange(60, dtype=np.float32), "steps": np.array(3)}, codec))
    for place, byte in edits:
        data[place % len(data)] = byte
    try:
        decoded = decode(bytes(data), max_bytes=1000)
    except ValidationError:
        return
    assert sum(tensor.nbytes for tensor in decoded.values()) <= 1000


def test_a_few_bytes_decode_to_no_more_than_is_allowed() -> None:
    data = encode({"w": np.zeros(1 << 20, np.float32)}, TopK(fraction=1e-6))
    assert len(data) < 200
    with pytest.raises(ValidationError, match="the encoded tensors take 4194304 bytes; at most 4194303 are taken here"):
        decode(data, max_bytes=(1 << 22) - 1)


def test_a_block_that_is_wider_than_a_tensor_costs_no_more_than_the_tensor() -> None:
    data = encode({"w": np.ones(3, np.float32)}, Int8(block=1 << 20))
    tracemalloc.start()
    try:
        assert decode(data, max_bytes=PLENTY)["w"].tolist() == [1.0, 1.0, 1.0]
        assert encode({"w": np.ones(3, np.float32)}, Int8(block=1 << 20)) == data
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


@pytest.mark.parametrize("codec", [*CODECS, Int8(block=1)], ids=repr)
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BFLOAT16])
def test_decoding_takes_four_times_what_the_tensors_take_at_most(codec: Codec, dtype: type) -> None:
    tensors: Tensors = {"w": np.ones(1 << 20, dtype)}
    data, size = encode(tensors, codec), tensors["w"].nbytes
    tracemalloc.start()
    try:
        decode(data, max_bytes=size)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4 * size + (3 << 20)


def total(gradients: Iterable[Tensors]) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = np.sum(np.array([one["w"].astype(np.float64) for one in gradients]), axis=0)
    return result


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, BFLOAT16])
@pytest.mark.parametrize("codec", [TopK(fraction=0.1), Int8(block=16), Fp16(), Plain()], ids=repr)
def test_with_error_feedback_all_that_was_sent_and_the_error_add_up(codec: Codec, dtype: type) -> None:
    rng = np.random.default_rng(5)
    feedback = ErrorFeedback(codec)
    gradients: list[Tensors] = [{"w": rng.standard_normal((8, 25)).astype(dtype)} for _ in range(30)]
    sent = [decode(feedback.encode(gradient), max_bytes=PLENTY) for gradient in gradients]
    difference = total(gradients) - total(sent) - total([feedback.errors])
    assert np.abs(difference).max() < 1e-4


@pytest.mark.parametrize("wrong", ["topk", TopK, None])
def test_what_is_no_codec_is_refused_in_words(wrong: object) -> None:
    with pytest.raises(ValidationError, match="a codec is made, as TopK"):
        ErrorFeedback(cast("Codec", wrong))
    with pytest.raises(ValidationError, match="a codec is made, as TopK"):
        encode({"w": np.ones(3)}, cast("Codec", wrong))


def test_with_error_feedback_small_elements_are_sent_in_time() -> None:
    gradient = {"w": np.array([1.0, 0.3, 0.2], np.float32)}
    feedback = ErrorFeedback(TopK(fraction=0.1))
    sent = [decode(feedback.encode(gradient), max_bytes=PLENTY) for _ in range(60)]
    assert np.abs(total(sent) / 60 - total([gradient])).max() < 0.05
    alone = decode(encode(gradient, TopK(fraction=0.1)), max_bytes=PLENTY)
    assert alone["w"].tolist() == [1.0, 0.0, 0.0]


def refused(feedback: ErrorFeedback, gradient: Tensors) -> str:
    with pytest.raises(ValidationError) as refusal:
        feedback.encode(gradient)
    return str(refusal.value)


MISTAKES: list[tuple[Callable[[], Tensors], str]] = [
    (lambda: {"w": np.array([1.0, np.nan])}, "'w' holds 1 values that are not finite"),
    (lambda: {"w": np.zeros(3)}, "'w' is float64 (3,), not float64 (2,)"),
    (lambda: {"v": np.zeros(2)}, "'w' is missing"),
]


@pytest.mark.parametrize(("gradient", "complaint"), MISTAKES)
def test_a_gradient_that_is_refused_leaves_the_error_as_it_was(gradient: Callable[[], Tensors], complaint: str) -> None:
    feedback = ErrorFeedback(TopK(fraction=0.5))
    feedback.encode({"w": np.array([1.0, 0.25])})
    assert complaint in refused(feedback, gradient())
    assert feedback.errors["w"].tolist() == [0.0, 0.25]


def test_counters_pass_error_feedback_as_they_are() -> None:
    feedback = ErrorFeedback(TopK(fraction=0.5))
    for step in range(3):
        decoded = decode(feedback.encode({"w": np.array([3.0, 1.0]), "step": np.array(step)}), max_bytes=PLENTY)
        assert decoded["step"].item() == step
    assert feedback.errors.keys() == {"w"}


def test_what_could_not_be_published_counts_as_left_out() -> None:
    feedback = ErrorFeedback(TopK(fraction=0.5))
    gradient = {"w": np.array([3.0, 1.0], np.float16), "step": np.array(1)}
    feedback.take_back(feedback.encode(gradient))
    assert feedback.errors["w"].tolist() == [3.0, 1.0]
    feedback.take_back(feedback.encode(gradient))
    assert decode(feedback.encode(gradient), max_bytes=PLENTY)["w"].tolist() == [9.0, 0.0]
    assert feedback.errors["w"].tolist() == [0.0, 3.0]


def test_errors_can_be_saved_and_another_goes_on_with_them() -> None:
    first, second = ErrorFeedback(TopK(fraction=0.5)), ErrorFeedback(TopK(fraction=0.5))
    gradient = {"w": np.array([3.0, 1.0])}
    first.encode(gradient)
    second.errors = first.errors
    assert second.encode(gradient) == first.encode(gradient)
    other = ErrorFeedback(TopK(fraction=0.5))
    other.errors = {"w": np.zeros(3)}
    assert "an error of shape (3,) is kept for 'w', but no such tensor is sent" in refused(other, gradient)


def test_after_a_crash_it_learns_what_was_sent_since_its_errors_were_saved_and_counts_it_once() -> None:
    gradients = [{"w": np.array([3.0, 1.0])}, {"w": np.array([0.5, 2.0])}]
    first = ErrorFeedback(TopK(fraction=0.5))
    first.encode(gradients[0])
    saved = first.errors
    data = first.encode(gradients[1])
    returned = ErrorFeedback(TopK(fraction=0.5))
    returned.errors = saved
    for feedback in (returned, returned, first):
        feedback.resume(gradients[1], data)
        assert feedback.errors["w"].tolist() == [0.5, 0.0]
    first.errors = saved  # what was sent since is to be told again
    first.resume(gradients[1], data)
    assert first.errors["w"].tolist() == [0.5, 0.0]


def test_what_was_never_sent_tells_it_nothing_after_a_crash() -> None:
    feedback = ErrorFeedback(TopK(fraction=0.5))
    gradient = {"w": np.array([3.0, 1.0])}
    feedback.encode(gradient)
    for data in (b"", encode({"w": np.zeros(3)}), encode({"v": np.zeros(2)})):
        with pytest.raises(ValidationError):
            feedback.resume(gradient, data)
    assert feedback.errors["w"].tolist() == [0.0, 1.0]


def test_errors_set_back_make_a_gradient_encode_as_before() -> None:
    feedback = ErrorFeedback(Int8(block=2))
    rng = np.random.default_rng(4)
    feedback.encode({"w": rng.standard_normal(7)})
    gradient, before = {"w": rng.standard_normal(7)}, feedback.errors
    data = feedback.encode(gradient)
    feedback.errors = before
    assert feedback.encode(gradient) == data
