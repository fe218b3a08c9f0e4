"""Gathering: which of the entries that are found count, which is to be brought next, and when it is over. Pure.

What is gathered has *names*, and of each name one gradient counts. Whoever collects a round names members, and of each
the newest entry counts; whoever fetches what an outcome names, names op ids. Without names whoever published is in.

Report each entry that is found. One that its announcement rules out is *rejected*, before anything is fetched. The
others are *candidates*, and wait in a *line*, from which they are taken to be *brought*: to have their value fetched,
and read by :func:`read_gradient`. Then a candidate is *accepted*, or rejected, or *put off*, back into the line, for it
has not come yet. A name that is rejected is neither waited nor looked for any longer, lest somebody who fills the key
with rubbish hides the others.

**Order.** First comes what was not tried yet, and then what is expected to have come soonest, at the pace of its last
turn. So what comes slowly, or only for a while, or never, stands in nobody's way; yet where all are equally slow, one
after the other comes whole, instead of a part of each.

**Bounds.** Tensors of more than ``max_bytes`` are rejected by what their entry announces, and again by what their bytes
say; so is a value that is larger than its tensors by more than 4 MiB. Without names there are at most
:data:`MAX_NAMES`, whose tensors take at most :data:`MAX_BYTES_OF_ANYBODY`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from prime_dht.errors import ValidationError
from prime_dht.ids import PeerId
from prime_dht.ml.codecs.encoding import MAX_HEADER_BYTES, decode, read_header
from prime_dht.ml.gradients.announcement import Announcement, read_announcement, subkey_of
from prime_dht.ml.gradients.gradient import Collected, Gradient
from prime_dht.ml.tensors import Spec, check_is_spec, check_same_spec, size_bytes_of
from prime_dht.quantities import number_of

if TYPE_CHECKING:
    from prime_dht.node.results import Found

MAX_NAMES = 1024
"""Where nobody is named, so many are in; and of others than those who are, so many are noted."""

MAX_BYTES_OF_ANYBODY = 4 << 30
"""Where nobody is named: of all tensors together."""

DEFAULT_MAX_BYTES = 256 << 20
"""Of one gradient's tensors, where it is not said what they are to be: 67 million elements of float32."""

MAX_REASON_CHARACTERS = 300

Name = TypeVar("Name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the gradients of a round have to be.

    Attributes:
        spec: of their tensors; ``None`` is any.
        max_bytes: that the tensors of one may take; by default what those of ``spec`` do, or else
            :data:`DEFAULT_MAX_BYTES`.

    Raises:
        ValidationError: nothing fits into ``max_bytes``, or the spec is none.
    """

    round: int
    spec: Spec | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.spec is not None:
            check_is_spec(self.spec)
        if self.max_bytes is not None and number_of("max_bytes", self.max_bytes) < 1:
            raise ValidationError(f"max_bytes must be at least 1, not {self.max_bytes}")

    @property
    def bound_bytes(self) -> int:
        """That the tensors of one gradient may take."""
        if self.max_bytes is not None:
            return self.max_bytes
        return DEFAULT_MAX_BYTES if self.spec is None else size_bytes_of(self.spec)


@dataclass(slots=True, eq=False)
class Candidate(Generic[Name]):
    """An entry that may be a name's gradient.

    Attributes:
        turns: how often it was put off.
        reason: why, the last time.
        expected_s: how long it should take to come, at its pace of late; 0 if that is not known yet.
    """

    name: Name
    found: Found
    announcement: Announcement
    turns: int = 0
    reason: str = ""
    expected_s: float = 0.0
    _come_bytes: int = 0
    _known_bytes: int = 0

    @property
    def value_bytes(self) -> int:
        """What is to be fetched, or has come with the entry."""
        return len(self.found.value) if self.found.blob is None else self.found.blob.size

    def note_come(self, come_bytes: int) -> None:
        """So much has come up to now; less than before while it is looked at what there is already."""
        self._come_bytes = max(self._come_bytes, come_bytes)

    def note_time(self, elapsed_s: float) -> None:
        """So much time was spent on it since this was called last."""
        new_bytes, self._known_bytes = self._come_bytes - self._known_bytes, self._come_bytes
        left_bytes = self.value_bytes - self._come_bytes
        self.expected_s = left_bytes * elapsed_s / new_bytes if new_bytes else math.inf


class Gathering(Generic[Name]):
    """See the module.

    Args:
        name_of: what an entry is named by.
        names: that are wanted; ``None`` is any.
        enough: so many are; ``None`` is all names, or, without names, all that the first look finds.

    Attributes:
        gradients: those accepted.
        rejected: names whose newest entry is no gradient that can be used, with the reason.
        others: names that were found, and are not wanted.
        has_looked: whether there was a look.
    """

    def __init__(
        self,
        expected: Expected,
        name_of: Callable[[Found], Name],
        names: Collection[Name] | None,
        *,
        enough: int | None = None,
    ) -> None:
        self.gradients: dict[Name, Gradient] = {}
        self.rejected: dict[Name, str] = {}
        self.others: set[Name] = set()
        self._expected = expected
        self._name_of = name_of
        self._names = None if names is None else frozenset(names)
        self._enough = enough
        self._newest: dict[Name, Found] = {}
        self._pending: dict[Name, Candidate[Name]] = {}
        self._line: list[Candidate[Name]] = []
        self.has_looked = False

    # Looking

    @property
    def is_named(self) -> bool:
        """Whether it is told what is expected, and so need not know all that there is."""
        return self._names is not None

    @property
    def sought(self) -> frozenset[Name] | None:
        """The names of which nothing was found yet; ``None`` is any, as it is before the first look."""
        return self._names - self._newest.keys() if self._names is not None and self.has_looked else None

    def take(self, found: Found) -> None:
        """An entry was found under the round's key."""
        name = self._name_of(found)
        known = self._newest.get(name)
        if self._names is not None and name not in self._names:
            if len(self.others) < MAX_NAMES:
                self.others.add(name)
        elif known is None and self._names is None and len(self._newest) >= MAX_NAMES:
            pass  # there are too many already
        elif known is None or (found.created_at_us, found.op_id) > (known.created_at_us, known.op_id):
            self._newest[name] = found
            self._pending.pop(name, None)
            try:
                candidate = Candidate(name, found, read_announcement(found.metadata))
                self._check(candidate)
            except ValidationError as error:
                self._settle(name, str(error))
            else:
                self.rejected.pop(name, None)
                self._pending[name] = candidate
                self._line.append(candidate)

    def end_look(self) -> None:
        """All that there was has been taken."""
        self.has_looked = True

    # Bringing

    @property
    def is_waited_for(self) -> bool:
        """Whether there is something in the line."""
        return bool(self._line)

    def next(self) -> Candidate[Name] | None:
        """Take the next to be brought from the line."""
        self._line = [candidate for candidate in self._line if self._is_current(candidate)]
        if not self._line:
            return None
        first = min(self._line, key=lambda candidate: (candidate.expected_s, candidate.value_bytes))
        self._line.remove(first)
        return first

    def has_sooner(self, candidate: Candidate[Name]) -> bool:
        """Whether there is one in the line that comes before one that was taken from it."""
        return any(waiting.expected_s < candidate.expected_s for waiting in self._line)

    def accept(self, candidate: Candidate[Name], gradient: Gradient) -> None:
        """It was brought, and is a gradient."""
        if self._is_current(candidate):
            del self._pending[candidate.name]
            self.gradients[candidate.name] = gradient

    def reject(self, candidate: Candidate[Name], reason: str) -> None:
        """It was brought, and is none that can be used."""
        if self._is_current(candidate):
            del self._pending[candidate.name]
            self._settle(candidate.name, reason)

    def put_off(self, candidate: Candidate[Name], reason: str) -> None:
        """It has not come yet."""
        candidate.turns += 1
        candidate.reason = reason[:MAX_REASON_CHARACTERS]
        self._line.append(candidate)

    # Ending

    @property
    def is_done(self) -> bool:
        """Whether there is enough, or nothing more to wait for."""
        if self._enough is not None and len(self.gradients) >= self._enough:
            return True
        if self._names is not None:
            return self._names <= self.gradients.keys() | self.rejected.keys()
        return self._enough is None and self.has_looked and not self._pending

    def late(self, when: str) -> dict[Name, str]:
        """The names of which there is an entry, but no gradient yet, with the reason."""
        return {
            name: f"its {candidate.value_bytes:,} bytes did not come {when}"
            + (candidate.reason and f": {candidate.reason}")
            for name, candidate in self._pending.items()
            if name not in self.gradients
        }

    # Within

    def _is_current(self, candidate: Candidate[Name]) -> bool:
        """Whether no newer entry of its name was found meanwhile."""
        return self._pending.get(candidate.name) is candidate

    def _settle(self, name: Name, reason: str) -> None:
        self.gradients.pop(name, None)
        self.rejected[name] = reason[:MAX_REASON_CHARACTERS]

    def _check(self, candidate: Candidate[Name]) -> None:
        """Check what an entry announces.

        Raises:
            ValidationError: it is of another round, or takes too much.
        """
        expected, announced = self._expected, candidate.announcement
        if announced.round != expected.round:
            raise ValidationError(f"it says that it is of round {announced.round}, not {expected.round}")
        tensor_bytes = announced.tensor_bytes
        if expected.spec is not None and tensor_bytes > (expected_bytes := size_bytes_of(expected.spec)):
            raise ValidationError(f"its tensors take {tensor_bytes:,} bytes, those expected {expected_bytes:,}")
        if tensor_bytes > expected.bound_bytes:
            raise ValidationError(
                f"its tensors take {tensor_bytes:,} bytes; at most {expected.bound_bytes:,} are taken (max_bytes)"
            )
        check_value_size(candidate.value_bytes, announced)
        if self._names is None:
            held_bytes = sum(pending.announcement.tensor_bytes for pending in self._pending.values())
            held_bytes += sum(tensor.nbytes for one in self.gradients.values() for tensor in one.tensors.values())
            if held_bytes + tensor_bytes > MAX_BYTES_OF_ANYBODY:
                raise ValidationError(
                    f"all tensors together would take more than {MAX_BYTES_OF_ANYBODY:,} bytes: name the members"
                )


def check_value_size(value_bytes: int, announced: Announcement) -> None:
    """Check that encoded tensors are not much larger than the tensors, which bounds what is fetched.

    Raises:
        ValidationError: they are.
    """
    if value_bytes > announced.tensor_bytes + MAX_HEADER_BYTES:
        raise ValidationError(
            f"{announced.codec} made {value_bytes:,} bytes of {announced.tensor_bytes:,}: take another codec"
        )


def read_gradient(candidate: Candidate[Name], value: bytes, expected: Expected) -> Gradient:
    """The gradient that an entry's value is. This takes a while for large ones.

    Raises:
        ValidationError: it is not what the entry announces, is damaged, or is not of the spec that is expected.
    """
    found, announced = candidate.found, candidate.announcement
    if found.subkey != subkey_of(announced, value):
        raise ValidationError("its bytes are not those that its subkey names")
    header = read_header(value)
    if header.codec != announced.codec:
        raise ValidationError(f"its bytes are of the codec {header.codec}, not of {announced.codec} as announced")
    if (tensor_bytes := size_bytes_of(header.spec)) != announced.tensor_bytes:
        raise ValidationError(f"its tensors take {tensor_bytes:,} bytes, not {announced.tensor_bytes:,} as announced")
    if expected.spec is not None:  # before anything is decoded: a header can name 200,000 tensors
        check_same_spec(header.spec, expected.spec)
    tensors = decode(value, max_bytes=announced.tensor_bytes)
    return Gradient(
        member=found.publisher,
        round=announced.round,
        tensors=tensors,
        metrics=announced.metrics,
        weight=announced.weight,
        codec=announced.codec,
        op_id=found.op_id,
        created_at_us=found.created_at_us,
    )


def collected(
    gathering: Gathering[PeerId], round_number: int, members: Collection[PeerId] | None, when: str
) -> Collected:
    """What came of gathering members' gradients, when it is over."""
    rejected = dict.fromkeys(gathering.others, "it is not a member") | gathering.rejected | gathering.late(when)
    heard = gathering.gradients.keys() | rejected.keys()
    return Collected(
        round=round_number,
        gradients=dict(sorted(gathering.gradients.items())),
        missing=tuple(sorted(set(members or ()) - heard)),
        rejected=dict(sorted(rejected.items())),
    )
