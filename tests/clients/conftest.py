"""Fixtures for the tests of clients: the real server, a scripted one that calls a tool, no network for any library."""

import os
from collections.abc import Iterator

import pytest

from chat_templates.format import ChatFormat
from server.modes.profile import PROFILE_FOLDER, Profile, load_profile
from server.settings import EMBEDDED_MODEL
from tests.clients.scenarios import weather_script
from tests.fake_engine import FakeEngine
from tests.real_server import RealServer
from tests.scripted_server import LostAtFirst, app_of, serving

# Read at import: litellm gets its price list from its package, datasets ask no hub (docs/clients.md).
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["HF_DATASETS_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def url(real_server: RealServer) -> str:
    """The API of the embedded checkpoint's server; tests that use it are marked `engine`."""
    return f"{real_server.url}/v1"


@pytest.fixture(scope="module")
def fmt() -> ChatFormat:
    return ChatFormat.from_folder(EMBEDDED_MODEL)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile(PROFILE_FOLDER / "twogear_tiny.toml")


@pytest.fixture(scope="module")
def scripted(fmt: ChatFormat, profile: Profile) -> Iterator[str]:
    """The API of a server whose model always calls the weather tool rightly."""
    engine = FakeEngine(weather_script(fmt), (fmt.end_of_turn_id,), chunks=(1, 3))
    with serving(app_of(engine, profile, fmt)) as at:
        yield at


@pytest.fixture(params=["scripted", pytest.param("url", marks=pytest.mark.engine)])
def weather_server(request: pytest.FixtureRequest) -> str:
    """Both: what the script says, the checkpoint has learnt to say."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def faltering(fmt: ChatFormat, profile: Profile) -> Iterator[tuple[str, LostAtFirst]]:
    """The same, and the app that can lose its engine."""
    engine = FakeEngine(weather_script(fmt), (fmt.end_of_turn_id,))
    app = LostAtFirst(app_of(engine, profile, fmt), engine)
    with serving(app) as at:
        yield at, app
