"""Rules of aggregation beside one numpy pass over the same bytes, and codecs on gradients of a real network.

*One pass* is the least that any rule can do: numpy reads every element once and adds it up. Rules read them more than
once (to screen them, too), in float64 where something rounds, and in an order that gives the same bits everywhere.

Gradients are those of a network that is being trained on digits (:mod:`tests.bench.robustness`), with a hidden layer so
wide that there are megabytes of them: their zeros, spread of sizes and repetitions are what zstd and top-k live on.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from prime_dht.ids import PeerId
from prime_dht.ml.aggregation import (
    CenteredClipping,
    Contribution,
    CoordinateMedian,
    FederatedAverage,
    GeometricMedian,
    Krum,
    MultiKrum,
    Rule,
    TrimmedMean,
    aggregate,
    screen,
)
from prime_dht.ml.codecs import Bf16, Codec, Fp16, Int8, Plain, TopK, decode, encode
from prime_dht.ml.tensors import Array, Tensors, spec_of

from .robustness import gradient, new_model, share_out
from .tables import Row, Table
from .turns import Case, measure_in_turns

MEMBERS = 16
BAD = 4
GRADIENT_BYTES = 10_000_000
RULES: tuple[Rule, ...] = (
    FederatedAverage(),
    CoordinateMedian(),
    TrimmedMean(),
    Krum(),
    MultiKrum(),
    GeometricMedian(),
    CenteredClipping(radius=1.0),
)
CODECS: tuple[Codec, ...] = (Plain(), Fp16(), Bf16(), Int8(), TopK())
HIDDEN = 2048
STEPS_BEFORE = 20
STEP = 0.1


def measure_aggregation(quick: bool) -> Table:
    """The table of rules."""
    size_bytes, rounds = (GRADIENT_BYTES // 10, 1) if quick else (GRADIENT_BYTES, 5)
    rng = np.random.default_rng(11)
    arrays = [rng.standard_normal(size_bytes // 4, np.float32) for _ in range(MEMBERS)]
    contributions = [
        Contribution(member=PeerId(bytes([place])), tensors={"w": array}) for place, array in enumerate(arrays)
    ]
    spec = spec_of(contributions[0].tensors)

    def one_pass() -> None:
        for array in arrays:
            array.sum()

    def numpy_mean() -> NDArray[np.float32]:
        total = arrays[0].copy()
        for array in arrays[1:]:
            total += array
        return total / np.float32(MEMBERS)

    cases = [
        Case("one numpy pass", one_pass),
        Case("numpy mean, float32", numpy_mean),
        Case("screening alone", partial(screen, contributions, spec)),
        *(
            Case(rule.name, partial(aggregate, contributions, spec, rule, bad=min(BAD, rule.stands(MEMBERS))))
            for rule in RULES
        ),
    ]
    rates = _bytes_per_s(cases, sum(array.nbytes for array in arrays), rounds)
    rows: list[Row] = [
        {"what": what, "GB_per_s": rate / 1e9, "of_one_pass": rate / rates["one numpy pass"]}
        for what, rate in rates.items()
    ]
    title = f"Aggregating {MEMBERS} members' {size_bytes / 1e6:g} MB, {BAD} of them bad where a rule stands any"
    return Table(name="ml_aggregation", title=title, rows=rows)


def measure_codecs(quick: bool) -> Table:
    """The table of codecs."""
    count, rounds = (1, 1) if quick else (16, 5)
    tensors = real_gradients(count)
    size_bytes = sum(tensor.nbytes for tensor in tensors.values())
    encoded = {codec.name: encode(tensors, codec) for codec in CODECS}
    bodies = {codec.name: _bodies(codec, tensors) for codec in CODECS}
    writing = [Case("copy", lambda: [tensor.tobytes() for tensor in tensors.values()])]
    reading = [Case("copy", lambda: [tensor.copy() for tensor in tensors.values()])]
    for codec in CODECS:
        writing.append(Case(codec.name, partial(_bodies, codec, tensors)))
        writing.append(Case(f"{codec.name}, zstd", partial(encode, tensors, codec)))
        reading.append(Case(codec.name, partial(_decoded, codec, bodies[codec.name], tensors)))
        reading.append(Case(f"{codec.name}, zstd", partial(decode, encoded[codec.name], max_bytes=size_bytes)))
    write_rates, read_rates = (_bytes_per_s(cases, size_bytes, rounds) for cases in (writing, reading))
    sent_bytes = {"copy": size_bytes}
    for codec in CODECS:
        sent_bytes[codec.name] = sum(map(len, bodies[codec.name].values()))
        sent_bytes[f"{codec.name}, zstd"] = len(encoded[codec.name])
    rows: list[Row] = [
        {
            "codec": name,
            "encode_MB_per_s": write_rates[name] / 1e6,
            "decode_MB_per_s": read_rates[name] / 1e6,
            "ratio": size_bytes / sent_bytes[name],
        }
        for name in write_rates
    ]
    title = f"Codecs on {size_bytes / 1e6:.1f} MB of gradients of a network that learns digits, float32"
    return Table(name="ml_codecs", title=title, rows=rows)


def real_gradients(count: int) -> Tensors:
    """The gradients of so many steps of training in a row, some 0.6 MB each."""
    rng = np.random.default_rng(3)
    members, _ = share_out(rng)
    model = new_model(rng, hidden=HIDDEN)
    tensors: dict[str, Array] = {}
    for number in range(STEPS_BEFORE + count):
        slope = gradient(model, members[number % len(members)])
        model = {name: one - slope[name] * STEP for name, one in model.items()}
        if number >= STEPS_BEFORE:
            tensors |= {f"{number}.{name}": one.astype(np.float32) for name, one in slope.items()}
    return tensors


def _bodies(codec: Codec, tensors: Tensors) -> dict[str, bytes]:
    return {name: codec.encode(tensor) for name, tensor in tensors.items()}


def _decoded(codec: Codec, bodies: Mapping[str, bytes], tensors: Tensors) -> Tensors:
    spec = spec_of(tensors)
    return {name: codec.decode(memoryview(body), spec[name]) for name, body in bodies.items()}


def _bytes_per_s(cases: list[Case], size_bytes: int, rounds: int) -> dict[str, float]:
    rows = measure_in_turns(cases, rounds=rounds)
    return {
        case.operation: 1e6 * size_bytes / float(str(row["took_us"])) for case, row in zip(cases, rows, strict=True)
    }
