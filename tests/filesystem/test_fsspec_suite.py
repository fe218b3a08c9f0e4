"""fsspec's own tests for implementations, against a swarm of real nodes."""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest
from fsspec.tests import abstract
from fsspec.tests.abstract.common import GLOB_EDGE_CASES_TESTS

from prime_dht import BlockingDHT
from prime_dht.filesystem import PrimeFileSystem

pytestmark = pytest.mark.filterwarnings("ignore:Class-scoped fixture defined as instance method")
"""As fsspec's own are in versions from before pytest warned of it."""

Test = Callable[..., None]


def with_some_globs(test: Test) -> Test:
    """A test with some of its cases: all three ways to copy find files alike, and the quickest has all cases."""

    @wraps(test)
    def narrowed(*arguments: Any, **fixtures: Any) -> None:
        test(*arguments, **fixtures)

    narrowed.pytestmark = []  # type: ignore[attr-defined]
    cases = GLOB_EDGE_CASES_TESTS["argvalues"][::6]
    parametrized: Test = pytest.mark.parametrize(GLOB_EDGE_CASES_TESTS["argnames"], cases)(narrowed)
    return parametrized


class Fixtures(abstract.AbstractFixtures):  # type: ignore[misc]
    """fsspec's, but what is copied from is made once for all tests, of which each has something else to copy to."""

    @pytest.fixture
    def fs_path(self, top: str) -> str:
        return top

    @pytest.fixture(scope="class")
    @classmethod
    def fs(cls, dht: BlockingDHT) -> PrimeFileSystem:
        return PrimeFileSystem(client=dht)

    @pytest.fixture(scope="class")
    @classmethod
    def fs_join(cls) -> Callable[..., str]:
        return posixpath.join

    @pytest.fixture(scope="class")
    @classmethod
    def fs_bulk_operations_scenario_0(
        cls, fs: PrimeFileSystem, fs_join: Callable[..., str], new_directory: Callable[[], str]
    ) -> Any:
        return cls()._bulk_operations_scenario_0(fs, fs_join, new_directory())

    @pytest.fixture(scope="class")
    @classmethod
    def fs_glob_edge_cases_files(
        cls, fs: PrimeFileSystem, fs_join: Callable[..., str], new_directory: Callable[[], str]
    ) -> Any:
        return cls()._glob_edge_cases_files(fs, fs_join, new_directory())


class TestCopy(abstract.AbstractCopyTests, Fixtures):  # type: ignore[misc]
    test_copy_glob_edge_cases = with_some_globs(abstract.AbstractCopyTests.test_copy_glob_edge_cases)


class TestGet(abstract.AbstractGetTests, Fixtures):  # type: ignore[misc]
    pass


class TestPut(abstract.AbstractPutTests, Fixtures):  # type: ignore[misc]
    test_put_glob_edge_cases = with_some_globs(abstract.AbstractPutTests.test_put_glob_edge_cases)


class TestOpen(abstract.AbstractOpenTests, Fixtures):  # type: ignore[misc]
    pass


class TestPipe(abstract.AbstractPipeTests, Fixtures):  # type: ignore[misc]
    pass
