"""The embedded model's chat format, and a server around an engine that plays a script."""

import pytest

from chat_templates.format import ChatFormat
from server.modes.profile import PROFILE_FOLDER, Profile, load_profile
from server.settings import EMBEDDED_MODEL


@pytest.fixture(scope="session")
def fmt() -> ChatFormat:
    return ChatFormat.from_folder(EMBEDDED_MODEL)


@pytest.fixture(scope="session")
def profile() -> Profile:
    return load_profile(PROFILE_FOLDER / "twogear_tiny.toml")
