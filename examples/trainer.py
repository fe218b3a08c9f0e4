"""One of several trainers that learn together, for a scheduler to run, watch, stop and start again.

    python examples/trainer.py --peer ADDRESS --rank 0 --of 2 --data-dir ./trainer-0
    python examples/trainer.py --peer ADDRESS --rank 1 --of 2 --data-dir ./trainer-1

ADDRESS is that of a node that stays, such as one of ``prime-dht run``. Options can be given in the environment as well:
--health-file as TRAINER_HEALTH_FILE. What happens is printed when it happens, with --json one object a line; "ready"
when the trainer has joined. The health file holds one JSON object, replaced every two seconds.

A trainer that was stopped and is started again goes on from the newest model that rank 0 has pushed. What the others
have published since then is still there, so it catches up with them.

Exit status: 0 all rounds are done; 1 something failed that may go well when it is started again; 2 an option is wrong,
or there is no way into the swarm; 143 stopped by SIGTERM; 130 by Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import digits
import numpy as np
from digits import AdamW, Weights

from prime_dht import Found, LearningDHT, ModelVersion, PrimeDHTError, ValidationError
from prime_dht.events import PeerJoined
from prime_dht.ids import PeerId, peer_text
from prime_dht.ml.aggregation import FederatedAverage, aggregate
from prime_dht.ml.gradients.announcement import check_run
from prime_dht.ml.models.version import checked_id
from prime_dht.ml.service import Service
from prime_dht.ml.tensors import spec_of

STEPS = 40
"""That are trained in a round."""

SUBKEYS_AT_ONCE = 256
"""As many as one request can name."""

HEALTH_S = 2.0
"""Between two writings of the health file."""

FAILED, MISTAKE, INTERRUPTED = 1, 2, 128 + signal.SIGINT


class Trainer:
    """One trainer's part of a run.

    Args:
        run: names the run, and the model that comes of it.
        rank: which of ``count`` trainers this is; the first one pushes the model.
        round_s: how long the others are waited for in a round.
    """

    def __init__(
        self, *, run: str, rank: int, count: int, rounds: int, push_every: int, round_s: float, as_json: bool
    ) -> None:
        self.run, self.rank, self.count, self.rounds = run, rank, count, rounds
        self.push_every, self.round_s, self.as_json = push_every, round_s, as_json

    def say(self, event: str, **details: object) -> None:
        """Print one line."""
        if self.as_json:
            line = json.dumps({"event": event, "run": self.run, "rank": self.rank, **details})
        else:
            line = " ".join((event, *(f"{name}={detail}" for name, detail in details.items())))
        sys.stdout.write(f"{line}\n")  # at once, for callbacks print in another thread
        sys.stdout.flush()

    def peer_joined(self, joined: PeerJoined) -> None:
        self.say("peer", peer=peer_text(joined.peer))

    def model_appeared(self, version: ModelVersion) -> None:
        self.say("model", version=version.version, cid=str(version.cid), **version.metadata)

    def train(self, service: Service) -> None:
        """All rounds that are left."""
        dht = service.dht
        self.say("ready", peer=peer_text(dht.peer_id))
        images, test = digits.load()
        own, optimiser = images.part(self.rank, self.count), AdamW()
        members = self.meet(service)
        service.watch_model(self.run, publisher=members[0])
        first, weights = self.resume(dht, members[0])
        for number in range(first, self.rounds):
            trained = digits.train(weights, own, STEPS, optimiser, np.random.default_rng((self.rank, number)))
            dht.publish(number, trained, {"rank": self.rank}, weight=len(own.labels), run=self.run)
            collected = dht.collect(number, members=members, run=self.run, spec=spec_of(weights), timeout=self.round_s)
            if 2 * len(collected.gradients) <= self.count:
                raise RoundFailed(f"round {number}: only {len(collected.gradients)} of {self.count} trainers took part")
            weights = digits.as_weights(
                aggregate(collected.contributions(), spec_of(weights), FederatedAverage(), bad=0).tensors
            )
            accuracy = digits.accuracy(weights, test)
            service.round_ended(number)
            self.say("round", round=number, accuracy=round(accuracy, 4), used=len(collected.gradients))
            if self.rank == 0 and ((number + 1) % self.push_every == 0 or number == self.rounds - 1):
                dht.push_model(self.run, weights, {"round": number, "accuracy": accuracy}, architecture="64-32-10")
        self.say("done")

    def meet(self, service: Service) -> list[PeerId]:
        """Wait until all trainers are there; their peer ids, by rank."""
        key, ranks = f"trainers:{self.run}", [b"%d" % rank for rank in range(self.count)]
        service.dht.put(key, b"", subkey=ranks[self.rank], keep=True)
        while True:
            found = sorted(self.entered(service.dht, key, ranks), key=lambda one: one.created_at_us)
            roster = {one.subkey: one.publisher for one in found}  # of each rank the newest
            if roster.keys() >= set(ranks):
                return [roster[rank] for rank in ranks]
            service.wait(0.5)

    def entered(self, dht: LearningDHT, key: str, ranks: list[bytes]) -> Iterator[Found]:
        """Who says which rank it has. Other slots of the key, of which others may have filled many, are left alone."""
        for start in range(0, len(ranks), SUBKEYS_AT_ONCE):
            for page in dht.pages(key, subkeys=ranks[start : start + SUBKEYS_AT_ONCE]):
                yield from page

    def resume(self, dht: LearningDHT, publisher: PeerId) -> tuple[int, Weights]:
        """The round to go on with, and the weights it begins with."""
        versions = dht.model_versions(self.run, publisher=publisher)
        if not versions:
            return 0, digits.initial()
        model = dht.pull_model(self.run, versions[-1].version, publisher=publisher)
        self.say("resumed", version=model.version.version, **model.version.metadata)
        return int(str(model.version.metadata["round"])) + 1, digits.as_weights(model.tensors)


class RoundFailed(Exception):
    """Too few trainers took part in a round."""


@contextmanager
def health_file(path: Path | None, service: Service) -> Iterator[None]:
    """Keep a file of how a service is that has started; at the end of the block stop it, and say that as well."""

    def write() -> None:
        if path is not None:
            new = path.with_name(f"{path.name}.new")
            new.write_text(service.health().as_json() + "\n")
            new.replace(path)  # so that nobody ever reads half of it

    def keep_up() -> None:
        while not service.wait(HEALTH_S):
            with suppress(OSError):  # the disk may be full now, and not for ever; how old the file is tells meanwhile
                write()

    thread = threading.Thread(target=keep_up, daemon=True)
    try:
        write()
        thread.start()
        yield
    finally:
        service.stop()
        if thread.is_alive():
            thread.join()
        write()


class Options(argparse.ArgumentParser):
    """Options that can be in the environment as well; a mistake is one line."""

    def add(self, name: str, kind: Callable[[str], object], what: str, default: object = None) -> None:
        variable = f"TRAINER_{name.upper().replace('-', '_')}"
        given = os.environ.get(variable, default)
        self.add_argument(f"--{name}", type=kind, default=given, help=f"{what} [{variable}, {default}]")

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"{self.prog}: {message}\n")


def options() -> argparse.Namespace:
    """What the command line and the environment say."""
    parser = Options(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add("run", str, "names the run, and the model that comes of it: letters, digits, '.', '_', '-'", "digits")
    parser.add("rank", int, "which trainer this is, from 0 on; the first one pushes the model", 0)
    parser.add("of", int, "how many trainers there are", 1)
    parser.add("rounds", int, "how many rounds they train", 12)
    parser.add("push-every", int, "rounds from one version of the model to the next", 4)
    parser.add("round-timeout", float, "seconds that the others are waited for in a round", 60.0)
    parser.add("peer", str, "a node of the swarm to join")
    parser.add("data-dir", Path, "where the identity is kept, without which a trainer that comes back is another one")
    parser.add("health-file", Path, "where to write how it is")
    as_json = bool(os.environ.get("TRAINER_JSON"))
    parser.add_argument("--json", action="store_true", default=as_json, help="print JSON [TRAINER_JSON]")
    given = parser.parse_args()
    if not 0 <= given.rank < given.of:
        parser.error(f"--rank {given.rank} is not in 0 ..= {given.of - 1}: there are --of {given.of}")
    if given.push_every < 1:
        parser.error(f"--push-every is at least 1, not {given.push_every}")
    if not given.round_timeout > 0:
        parser.error(f"--round-timeout is above 0, not {given.round_timeout}")
    try:
        check_run(checked_id(given.run))
    except ValidationError as error:
        parser.error(f"--run: {error}")
    return given


def main() -> int:
    given = options()
    trainer = Trainer(
        run=given.run,
        rank=given.rank,
        count=given.of,
        rounds=given.rounds,
        push_every=given.push_every,
        round_s=given.round_timeout,
        as_json=given.json,
    )
    status = MISTAKE
    try:
        service = Service(
            given.peer or (),
            data_dir=given.data_dir,
            poll_s=1.0,
            on_peer=trainer.peer_joined,
            on_model=trainer.model_appeared,
        )
        service.start()
        status = FAILED
        with health_file(given.health_file, service):
            trainer.train(service)
    except (PrimeDHTError, RoundFailed, OSError) as error:
        print(error, file=sys.stderr)
        return status
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
