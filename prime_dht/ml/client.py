"""The client of somebody with a training loop: :class:`LearningDHT`, which :func:`prime_dht.connect` returns.

    with prime_dht.connect(["/ip4/192.0.2.1/tcp/4001/p2p/12D3Koo…"]) as dht:
        dht.push_model("digits", network.state_dict(), {"accuracy": 0.97})
        model = dht.pull_model("digits")

It is a :class:`prime_dht.BlockingDHT` that knows of models and gradients. What these need is imported when they are
first used: connecting is as quick as without them, and works without the extra ``ml``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal, SupportsFloat, SupportsIndex, overload

from prime_dht.blocking.client import BlockingDHT
from prime_dht.blocking.connecting import JOINING_S, connected
from prime_dht.config import NodeConfig
from prime_dht.errors import ConfigError
from prime_dht.ml.extra import extra_needed

if TYPE_CHECKING:
    from prime_dht.entries.validators import Validator
    from prime_dht.ids import PeerId
    from prime_dht.ml.codecs import Codec, ErrorFeedback
    from prime_dht.ml.gradients import Collected
    from prime_dht.ml.models.model import Model
    from prime_dht.ml.models.version import ModelVersion
    from prime_dht.ml.tensors import Spec, TensorSpec, Weights
    from prime_dht.node.arguments import PeerLike
    from prime_dht.node.blobs.progress import BlobProgress
    from prime_dht.node.dht import PrimeDHT
    from prime_dht.node.results import PutReceipt

OnProgress = Callable[["BlobProgress"], None]
"""Is told how far weights are, often, in the node's thread. It must not block."""


def connect(
    peers: str | Iterable[str] = (),
    *,
    data_dir: str | os.PathLike[str] | None = None,
    serve: bool = False,
    mdns: bool = False,
    network_id: str | None = None,
    config: NodeConfig | None = None,
    validators: Mapping[str, Validator] | None = None,
    timeout: float = JOINING_S,
) -> LearningDHT:
    """Join a swarm, from code without trio: a node in a thread of its own, and its operations as plain calls.

    Without ``serve`` the node is a client: it listens nowhere, nobody relies on it, and it may come and go. That is
    what a script, a notebook or a training loop wants, with a data directory or without. With ``serve`` it also answers
    others and stores for them, and should stay; without ``peers`` and ``mdns`` it is then the first of its swarm.

    Args:
        peers: multiaddrs of nodes to join through, each ending in ``/p2p/<peer id>``; one will do. A client with a data
            directory needs none when it comes back.
        data_dir: where the identity, and all else that is to be there next time, is kept. Without it each connection
            has a new identity, so it cannot replace or delete what an earlier one has put.
        serve: be a server.
        mdns: find nodes on the local network, too.
        network_id: the name of the swarm.
        config: all other settings. Those above are added to it, or stand over it.
        validators: of namespaces other than ``/prime/``, by name.
        timeout: seconds within which it has to have joined.

    Raises:
        ConfigError: a setting is out of range, or cannot be used.
        QueryError: it has not joined: there is nobody to ask, nobody answers, or the time is over.
        StorageError: the store cannot be opened, for example because another process has it, or another client here.
        ValidationError: the timeout is no number.
        LocalProtocolError: trio runs in this thread; use :func:`prime_dht.open_node` there.
    """
    return connected(
        LearningDHT,
        peers,
        data_dir=data_dir,
        serve=serve,
        mdns=mdns,
        network_id=network_id,
        config=config,
        validators=validators,
        timeout=timeout,
    )


class LearningDHT(BlockingDHT):
    """A :class:`prime_dht.BlockingDHT` that knows of models and gradients; :func:`prime_dht.connect` makes one.

    A model is an id and its versions: see :mod:`prime_dht.ml.models`. Anybody can push versions under any id, unless
    the nodes' policy says otherwise; who does not believe everybody names the ``publisher``.
    """

    def __init__(
        self,
        config: NodeConfig,
        validators: Mapping[str, Validator] | None,
        joining_s: float,
        name: str | None = None,
    ) -> None:
        super().__init__(config, validators, joining_s, name)
        self.numbers_taken: dict[str, int] = {}
        """By model id, the greatest version number that this client has used."""

    @property
    def models_dir(self) -> Path:
        """Where pulled models are kept: in the data directory, or without one in the user's cache directory.

        Raises:
            ConfigError: there is neither.
        """
        if self.data_dir is not None:
            return self.data_dir / "models"
        try:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError as error:
            raise ConfigError(
                "there is no place for models: this user has no home directory; connect with data_dir, or set "
                "XDG_CACHE_HOME"
            ) from error
        return cache / "prime_dht" / "models"

    # Models

    @overload
    def push_model(
        self,
        model_id: str,
        weights: Weights | str | os.PathLike[str],
        metadata: Mapping[str, object] | None = ...,
        *,
        architecture: str = ...,
        ttl: float | None = ...,
        progress: OnProgress | None = ...,
        timeout: float | None = ...,
        wait: Literal[True] = ...,
    ) -> ModelVersion: ...
    @overload
    def push_model(
        self,
        model_id: str,
        weights: Weights | str | os.PathLike[str],
        metadata: Mapping[str, object] | None = ...,
        *,
        architecture: str = ...,
        ttl: float | None = ...,
        progress: OnProgress | None = ...,
        timeout: float | None = ...,
        wait: Literal[False],
    ) -> Future[ModelVersion]: ...
    def push_model(
        self,
        model_id: str,
        weights: Weights | str | os.PathLike[str],
        metadata: Mapping[str, object] | None = None,
        *,
        architecture: str = "",
        ttl: float | None = None,
        progress: OnProgress | None = None,
        timeout: float | None = None,
        wait: bool = True,
    ) -> ModelVersion | Future[ModelVersion]:
        """Push weights as the next version of a model. It can be listed and pulled once its replicas have it all.

        Of what the replicas have of earlier versions nothing is sent again. The weights are not held in memory a second
        time, but a node without a data directory has room for 256 MiB of blocks: for more, connect with one.

        A model has room for 4,096 versions, everybody's together (``max_slots_per_key``), and one takes its place until
        it ends, though it be deleted. Push more often than every eleven minutes with a ``ttl``, or use
        :class:`~prime_dht.Checkpoints`.

        Args:
            model_id: ASCII letters, digits and any of ``. _ : - /``.
            weights: names and arrays; or a torch state dict; or the path of a safetensors file. Tensors that share
                memory are each a tensor of the file, but what is the same is sent once; those that are not contiguous
                are written as they read. A pickle, such as ``torch.save`` writes, is refused; so are dtypes that
                :data:`prime_dht.ml.tensors.DTYPES` lacks, such as float8.
            metadata: whatever JSON can hold, to be read without the weights; at most some 60 KB.
            architecture: free text, likewise.
            ttl: seconds that the version lives; by default as long as the network allows, which is 30 days.
            progress: is told how far the weights are.
            wait: if false, arrays and metadata may change as soon as this returns a future; a file must not.

        Raises:
            ValidationError: the id, the weights or the metadata are not what they have to be, or the file changed.
            StorageError: the file cannot be read, or there is no room for it.
            QueryError: too few replicas have it.
        """
        with extra_needed():
            from prime_dht.ml.models.outgoing import Outgoing
            from prime_dht.ml.models.pushing import push
            from prime_dht.ml.models.version import checked_id, copied_metadata
        checked_id(model_id)
        said = copied_metadata(metadata)
        with ExitStack() as stack:
            outgoing = Outgoing.of(weights, self.models_dir)
            stack.callback(outgoing.close)
            pushed = self.call(
                lambda dht: push(
                    dht,
                    model_id,
                    outgoing,
                    taken=self.numbers_taken,
                    metadata=said,
                    architecture=architecture,
                    ttl=ttl,
                    progress=progress,
                ),
                timeout=timeout,
                wait=wait,
            )
            if isinstance(pushed, Future):
                opened = stack.pop_all()
                pushed.add_done_callback(lambda _: opened.close())
        return pushed

    @overload
    def pull_model(
        self,
        model_id: str,
        version: int | None = ...,
        *,
        publisher: PeerLike | None = ...,
        to: str | os.PathLike[str] | None = ...,
        progress: OnProgress | None = ...,
        timeout: float | None = ...,
        wait: Literal[True] = ...,
    ) -> Model: ...
    @overload
    def pull_model(
        self,
        model_id: str,
        version: int | None = ...,
        *,
        publisher: PeerLike | None = ...,
        to: str | os.PathLike[str] | None = ...,
        progress: OnProgress | None = ...,
        timeout: float | None = ...,
        wait: Literal[False],
    ) -> Future[Model]: ...
    def pull_model(
        self,
        model_id: str,
        version: int | None = None,
        *,
        publisher: PeerLike | None = None,
        to: str | os.PathLike[str] | None = None,
        progress: OnProgress | None = None,
        timeout: float | None = None,
        wait: bool = True,
    ) -> Model | Future[Model]:
        """A version of a model, with its weights in a safetensors file, mapped into memory.

        What the newest file of the model here already has is not fetched, nor what an interrupted pull has brought.

        Args:
            version: its number; the last by default. Of several publishers' with one number it is the newest.
            publisher: only this peer's.
            to: the file to write, in place of what is there once the weights are known to be some. By default it is in
                :attr:`models_dir`, which keeps the last three of each model.
            progress: is told how far it is.

        Raises:
            UnknownModelError: there is no such model or version; a :class:`QueryError`.
            QueryError: nobody could be asked.
            BlobError: nobody has the weights any more.
            ValidationError: they are no safetensors file, or an argument is not what it has to be.
            StorageError: the file cannot be written.
        """
        with extra_needed():
            from prime_dht.ml.models.listing import find_version
            from prime_dht.ml.models.pulling import pull

        async def find_and_pull(dht: PrimeDHT) -> Model:
            found = await find_version(dht, model_id, version, publisher)
            path = None if to is None else Path(to)
            return await pull(dht, found, to=path, folder=self.models_dir, progress=progress)

        return self.call(find_and_pull, timeout=timeout, wait=wait)

    def model_versions(
        self, model_id: str, *, publisher: PeerLike | None = None, timeout: float | None = None
    ) -> list[ModelVersion]:
        """The versions of a model, oldest first; none if nobody has pushed it.

        Args:
            publisher: only this peer's.

        Raises:
            ValidationError: it is no model id.
            QueryError: nobody could be asked.
        """
        from prime_dht.ml.models.listing import versions_of

        return self.call(lambda dht: versions_of(dht, model_id, publisher), timeout=timeout)

    def model_metadata(
        self,
        model_id: str,
        version: int | None = None,
        *,
        publisher: PeerLike | None = None,
        timeout: float | None = None,
    ) -> ModelVersion:
        """What is said of a version, the last by default, without its weights; raises what :meth:`pull_model` does."""
        from prime_dht.ml.models.listing import find_version

        return self.call(lambda dht: find_version(dht, model_id, version, publisher), timeout=timeout)

    def model_tensors(
        self,
        model_id: str,
        version: int | None = None,
        *,
        publisher: PeerLike | None = None,
        timeout: float | None = None,
    ) -> dict[str, TensorSpec]:
        """Names, dtypes and shapes of a version's tensors, of whose weights only the header is fetched."""
        with extra_needed():
            from prime_dht.ml.models.pulling import spec_of
        return self.call(lambda dht: spec_of(dht, model_id, version, publisher), timeout=timeout)

    # Gradients

    @overload
    def publish(
        self,
        round: SupportsIndex,
        tensors: Weights,
        metrics: Mapping[str, SupportsFloat | str] | None = ...,
        *,
        weight: float = ...,
        codec: str | Codec | ErrorFeedback = ...,
        run: str = ...,
        ttl: float | None = ...,
        timeout: float | None = ...,
        wait: Literal[True] = ...,
    ) -> PutReceipt: ...
    @overload
    def publish(
        self,
        round: SupportsIndex,
        tensors: Weights,
        metrics: Mapping[str, SupportsFloat | str] | None = ...,
        *,
        weight: float = ...,
        codec: str | Codec | ErrorFeedback = ...,
        run: str = ...,
        ttl: float | None = ...,
        timeout: float | None = ...,
        wait: Literal[False],
    ) -> Future[PutReceipt]: ...
    def publish(
        self,
        round: SupportsIndex,  # noqa: A002 - what everybody calls it
        tensors: Weights,
        metrics: Mapping[str, SupportsFloat | str] | None = None,
        *,
        weight: float = 1.0,
        codec: str | Codec | ErrorFeedback = "none",
        run: str = "",
        ttl: float | None = None,
        timeout: float | None = None,
        wait: bool = True,
    ) -> PutReceipt | Future[PutReceipt]:
        """Publish this member's gradient for a round. Of several for one round, the newest counts.

        Anybody can. For a group, whose members alone can, use :class:`prime_dht.ml.gradients.Gradients`; it also tells
        more of what is below.

        Args:
            tensors: names and arrays, or torch tensors.
            metrics: what others may want to know before they fetch it: numbers and short texts.
            weight: how much it is to count, such as the number of examples it was computed from.
            codec: ``none``, ``fp16``, ``bf16``, ``int8`` or ``topk``; or one with parameters; or an ``ErrorFeedback``.
            run: tells this training run's rounds from another's; without it, those of the same number are the same.
            ttl: seconds that it lives; 4 hours by default, or less where the network does not allow so much.

        Raises:
            ValidationError: the codec, the weight or a metric is none, or the codec cannot take the tensors.
            QueryError: no replica took it, or it was not done in time.
        """
        with extra_needed():
            from prime_dht.ml.gradients import Gradients
        return Gradients(self, run=run).publish(
            round, tensors, metrics, weight=weight, codec=codec, ttl=ttl, timeout=timeout, wait=wait
        )

    def collect(
        self,
        round: SupportsIndex,  # noqa: A002 - what everybody calls it
        *,
        members: Collection[PeerId | str] | None = None,
        minimum: int | None = None,
        run: str = "",
        timeout: float = 60.0,
        spec: Spec | None = None,
        max_bytes: int | None = None,
    ) -> Collected:
        """The gradients of a round, as soon as there are enough, or those that have come when time is up.

        What comes back says who is missing, and whose gradient cannot be used and why.

        Args:
            members: whose. By default everybody's, which is for swarms without strangers.
            minimum: how many are enough. By default one of each member; and without members, those that are there now.
            run: as it was published with.
            timeout: seconds after which what has come is returned.
            spec: that they must have, such as :func:`~prime_dht.ml.tensors.spec_of` the own; by default any.
            max_bytes: that the tensors of one may take in memory; by default what those of ``spec`` do, or 256 MiB.

        Raises:
            ValidationError: an argument is out of range.
            QueryError: nobody could be asked in all that time.
        """
        with extra_needed():
            from prime_dht.ml.gradients import Gradients
        return Gradients(self, run=run).collect(
            round, members=members, minimum=minimum, timeout=timeout, spec=spec, max_bytes=max_bytes
        )
