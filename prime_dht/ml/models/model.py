"""A model that was pulled."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prime_dht.errors import ConfigError
from prime_dht.ml.models.version import ModelVersion

if TYPE_CHECKING:
    from prime_dht.ml.tensors import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A version of a model, with its weights.

    Attributes:
        tensors: names and arrays, which read from the file when they are touched, and cannot be written to.
        version: which it is, and what is said of it.
        path: of the safetensors file.
    """

    tensors: dict[str, Array] = field(repr=False)
    version: ModelVersion
    path: Path

    def torch(self) -> dict[str, Any]:
        """The tensors as torch's, in memory of their own: ``network.load_state_dict(model.torch())``.

        Raises:
            ConfigError: torch is not installed.
        """
        try:
            torch = importlib.import_module("torch")
        except ImportError as error:
            raise ConfigError("tensors become torch's with torch: pip install torch") from error
        return {name: _torch_tensor(torch, array) for name, array in self.tensors.items()}


def _torch_tensor(torch: Any, array: Array) -> Any:
    if array.dtype.name == "bfloat16":  # which torch does not take from numpy
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())
