"""The sampling that a checkpoint's makers wrote into its generation_config.json, for profiles that leave it to them."""

import json
from pathlib import Path
from typing import Any

import msgspec

from engine.sampling import TokenSampling
from server.cli_errors import UsageError
from server.modes.profile import Profile

FILE = "generation_config.json"
NAMED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""As vLLM reads the file (`ModelConfig.get_diff_sampling_param`)."""


def with_sampling(profile: Profile, folder: Path) -> Profile:
    """The profile with the checkpoint's sampling in all of its modes; as it is where the checkpoint names none.

    Where a temperature is not among it, that is 1, as in vLLM and transformers. Raises UsageError.
    """
    named = checkpoint_sampling(folder)
    if not named:
        return profile
    plain = {name: msgspec.structs.replace(mode, **named) for name, mode in profile.plain.items()}
    return msgspec.structs.replace(profile, modes={**profile.modes, **plain})


def checkpoint_sampling(folder: Path) -> dict[str, Any]:
    """Those of our sampling fields that the checkpoint names; raises UsageError for what cannot be read."""
    try:
        config = json.loads((folder / FILE).read_text(encoding="utf-8")) if (folder / FILE).is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{FILE} of the model cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise UsageError(f"{FILE} of the model must be a JSON object")
    named = {name: config[name] for name in NAMED if config.get(name) is not None}
    if not named and config.get("do_sample") is not True:
        return {}
    plain = TokenSampling()
    sampling = {**{name: getattr(plain, name) for name in NAMED}, "temperature": 1.0, **named}
    try:
        msgspec.convert(sampling, TokenSampling, strict=False)
    except msgspec.ValidationError as error:
        raise UsageError(f"{FILE} of the model: {error}") from error
    return sampling
