from __future__ import annotations

from importlib import import_module

import pytest


@pytest.fixture(autouse=True)
def _one_history() -> None:
    """trio shuffles the tasks that are ready to run; from a fixed seed a test goes the same way every time."""
    import_module("trio._core._run")._r.seed(0)
