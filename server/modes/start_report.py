"""What the server found out of a model's modes, in lines for the one who starts it."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from chat_templates.errors import FormatError
from chat_templates.format import ChatFormat
from chat_templates.templates import NO_TEMPLATE
from chat_templates.tool_forms.known import HERMES
from server.modes.confidence import Signal, Weights
from server.modes.early_end import EarlyEnd
from server.modes.mode import Mode, Modes, refusal
from server.modes.profile import GENERAL, Profile, ThinkingMode

SHOWN = 100
"""Characters of a prompt's end, at most."""
QUESTION = "Is 1 + 1 = 2?"


def report(modes: Modes, fmt: ChatFormat, name: str) -> list[str]:
    """A line for each mode that the model has, and for each that it lacks; `name` is the profile's."""
    lines = [f"mode {mode.name}: {'; '.join(_facts(mode, fmt, name))}" for mode in modes.by_name.values()]
    return lines + [f"no mode {mode}: {reason}" for mode, reason in modes.lacking.items()]


def warnings(modes: Modes, fmt: ChatFormat, profile: Profile, name: str, model: str) -> Iterator[str]:
    """What should be looked at before the server is relied on. `model`: the name that it is served under."""
    if not fmt.can_chat:
        yield f"{NO_TEMPLATE}; /v1/completions is served."
        return
    if name == GENERAL.stem and fmt.is_foreign:
        yield (
            "No profile is for this model: tags, switch and sampling are as found in the checkpoint. Look at the modes "
            "above, and write a profile (docs/profiles.md) where they are wrong."
        )
    for difference in fmt.response.differences(fmt.settings, fmt.calls.form.open) if fmt.is_foreign else ():
        yield f"The checkpoint's response_template says {difference}. Look at the modes above (docs/profiles.md)."
    if profile.default_mode in modes.lacking:
        reason = modes.lacking[profile.default_mode]
        yield f"The default mode is {modes.default.name}, not {profile.default_mode}: {reason}."
    for auto in modes.by_name.values():
        rule = None if auto.auto is None else auto.auto.rule
        if rule is not None and not rule.asks_model and rule.calibrated_for != model:
            measured = rule.calibrated_for or "no model"
            yield (
                f"The threshold of mode {auto.name} was measured on {measured}, not on {model}: it may keep wrong "
                "drafts. `twogear calibrate` finds one (docs/auto.md)."
            )
    for mode in modes.by_name.values():
        early = _early_end(mode)
        if early is not None and early.calibrated_for != model:
            measured = early.calibrated_for or "no model"
            yield (
                f"The threshold of mode {mode.name}'s early_end was measured on {measured}, not on {model}: thoughts "
                "may end before their answers are right. `twogear eval early` finds one (docs/auto.md)."
            )
        if reason := refusal(fmt, mode.style):
            yield f"The chat template did not take a short conversation in mode {mode.name}: {reason}"


def _facts(mode: Mode, fmt: ChatFormat, name: str) -> Iterator[str]:
    if mode.auto is not None:
        rule = mode.auto.rule
        if rule.threshold is None:
            yield "the model chooses by the tag that it begins with"
            yield f"the template is told {_listed(mode.variables)}"
            yield f"goes on as {rule.thinking}, or as {rule.direct}"
            return
        yield f"begins as {rule.direct}, unseen, with at most {rule.draft_tokens} tokens"
        yield f"goes on as {rule.thinking} where {_signal(rule.signal)} is below {rule.threshold:g}"
        return
    yield f"prompts end with {json.dumps(_after_the_question(fmt, mode)[-SHOWN:], ensure_ascii=False)}"
    if fmt.is_foreign:
        yield f"the template is told {_listed({**mode.variables, **mode.levels.default})}"
    if fmt.has_thinking:
        how = "toggles" if fmt.toggles else "does not toggle in the template"
        yield f"thinking {how}, between {fmt.settings.think} and {fmt.settings.think_end}"
    early = _early_end(mode)
    if early is not None:
        yield (
            f"a thought ends early once {early.agreeing} answers tried along it agree, with {_signal(early.signal)} "
            f"{early.threshold:g} or more"
        )
    yield f"tool calls as {_calls(fmt)}"
    found = fmt.is_foreign and mode.style.variables is None
    yield f"known from the {f'template, and profile {name}' if found else f'profile {name}'}"


def _listed(variables: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in variables.items()) or "nothing"


def _early_end(mode: Mode) -> EarlyEnd | None:
    """The mode's own rule, if it has one: one that chooses has that of the mode that thinks."""
    profile = mode.profile
    return profile.early_end if isinstance(profile, ThinkingMode) and mode.auto is None else None


def _signal(signal: Signal) -> str:
    if isinstance(signal, Weights):
        return "the weighed signals of their confidence, the log of the chance that they are right,"
    return f"the {signal} of their confidence"


def _calls(fmt: ChatFormat) -> str:
    """The form, by its name."""
    return fmt.settings.calls or HERMES


def _after_the_question(fmt: ChatFormat, mode: Mode) -> str:
    """What the template writes after the last message of a user; nothing where it takes no such conversation."""
    try:
        prompt = fmt.decode(fmt.render([{"role": "user", "content": QUESTION}], mode.style), show_control=True)
    except FormatError:
        return ""
    return prompt.rpartition(QUESTION)[2]
