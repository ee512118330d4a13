"""Settings for all tests: no network, repeatable examples, and cheap tests before those that start an engine."""

import inspect
import os
from collections.abc import Callable, Iterator

import httpx
import pytest
from hypothesis import settings

from tests import npm
from tests.real_server import RealServer

# Set before anything imports the libraries that read them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# httpx gives up on an answer after five seconds, in which a busy machine may have done nothing. Tests that wait for a
# time to pass name it.
PATIENCE = inspect.signature(httpx.get).parameters["timeout"].default
PATIENCE.connect = PATIENCE.read = PATIENCE.write = PATIENCE.pool = 240.0

# No deadlines: the machine may be busy. In CI the same examples every time, so that a failure can be repeated.
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("local", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs tests marked `engine` last: a cheap failure shows before an engine is started."""
    items.sort(key=lambda item: item.get_closest_marker("engine") is not None)


@pytest.fixture(scope="session")
def real_server() -> Iterator[RealServer]:
    """`twogear serve` with the embedded checkpoint, one for the whole run; tests that use it are marked `engine`."""
    with RealServer() as server:
        yield server
        assert server.stop() == 0


@pytest.fixture(scope="session")
def node() -> Callable[..., str]:
    """Runs a script of tests/clients/npm and tells what it prints."""
    npm.install()
    return npm.node
