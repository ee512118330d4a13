"""Tables of everything else: errors, options, profiles, metrics, dialects, and what is not here."""

import argparse
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from chat_templates.tool_forms.form import (
    BareKeyCalls,
    CallForm,
    JsonCalls,
    NamedJsonCalls,
    NestedCalls,
    PythonCalls,
    TaggedCalls,
)
from chat_templates.tool_forms.known import FORMS, MARKERS
from engine.messages import PageGroup, Stats
from engine.sampling import SAMPLING_FIELDS, TokenSampling
from server.api.common.refused import UNSUPPORTED
from server.api.messages.errors import TYPES
from server.commands import serve
from server.commands.dialects import DIALECTS
from server.commands.reference.fields import Row, table
from server.engine_metrics import EngineLife
from server.errors import ApiError
from server.metrics import Metrics
from server.modes.profile import PROFILE_FOLDER, ModeProfile, Profile, ThinkingMode, load_profile
from server.telemetry.vllm_metrics import EngineView

if TYPE_CHECKING:
    from server.engine_client import EngineClient

TESTS = Path(__file__).parents[3] / "tests"
PUBLISHED = TESTS / "published" / "results.json"
RAN = TESTS / "families" / "results.json"


def errors() -> str:
    """The statuses of our own errors."""

    def kinds(of: type[ApiError]) -> Iterator[type[ApiError]]:
        for kind in of.__subclasses__():
            yield kind
            yield from kinds(kind)

    rows = sorted(
        [str(int(kind.status)), f"`{kind.kind}`", str(kind.__doc__).splitlines()[0].partition(" `")[0]]
        for kind in kinds(ApiError)
    )
    return table(["status", "type", "when"], rows)


def anthropic_errors() -> str:
    """The types of errors in Anthropic's shape, by status."""
    types = {**TYPES, HTTPStatus.INTERNAL_SERVER_ERROR: "api_error"}
    rows = [[str(int(status)), f"`{kind}`"] for status, kind in sorted(types.items())]
    return table(["status", "type"], [["400, 405, 415", "`invalid_request_error`"], *rows])


def options() -> str:
    """The options of `twogear serve`, in the groups of its `--help`; a switch has no default, it is there or not."""
    parser = argparse.ArgumentParser(add_help=False)
    serve.add_arguments(parser)
    first = ["`MODEL`", "the embedded model", "a local folder, a GGUF file or a hub id"]
    parts = []
    for group in parser._action_groups:
        rows = [_option(action) for action in group._group_actions if action.option_strings]
        if group is parser._optionals:
            parts.append(table(OPTION_HEAD, [first, *rows]))
        elif rows:
            title = str(group.title)
            parts.append(f"## {title[0].upper()}{title[1:]}\n\n{table(OPTION_HEAD, rows)}")
    return "\n".join(parts)


OPTION_HEAD = ("option", "default", "meaning")


def _option(action: argparse.Action) -> Row:
    """Its row: what it takes as `--help` shows it."""
    choices = f"{{{','.join(map(str, action.choices))}}}" if action.choices is not None else ""
    takes = str(action.metavar) if action.metavar else choices
    default = f"`{action.default}`" if action.default and action.nargs != 0 else ""
    return [f"`{' '.join([action.option_strings[0], *([takes] if takes else [])])}`", default, str(action.help)]


def profiles() -> str:
    """The shipped profiles, and how each mode draws."""

    def sampling(mode: ModeProfile) -> str:
        plain = TokenSampling()
        names = [name for name in SAMPLING_FIELDS if getattr(mode, name) != getattr(plain, name)]
        return ", ".join(f"{name} {getattr(mode, name):g}" for name in names) or "greedy"

    rows = []
    for path in sorted(PROFILE_FOLDER.glob("*.toml")):
        profile = load_profile(path)
        types = ", ".join(profile.match.model_types) if profile.match else "all others"
        modes = "; ".join(f"{name}: {sampling(mode)}" for name, mode in profile.plain.items())
        rows.append([f"`{path.stem}`", types, modes])
    return table(["profile", "`model_type`", "sampling of each mode"], rows)


def families() -> str:
    """The shipped profiles that are for a family of models."""
    rows = []
    for path in sorted(PROFILE_FOLDER.glob("*.toml")):
        profile, shown = load_profile(path), f"`{path.stem}`"
        if profile.family is None:
            continue
        family, fmt = profile.family, profile.format
        thinks = bool(_thinking(profile))
        tags = "as found" if fmt.finds_tags else f"`{fmt.think}` `{fmt.think_end}`"
        sampling = "generation_config.json, else the profile" if profile.sampling_of_checkpoint else "the profile"
        sources = " ".join(f"[{index}]({link})" for index, link in enumerate(family.sources, 1))
        levels = [mode.levels.variable for mode in _thinking(profile) if mode.levels is not None]
        rows.append(
            [
                family.models,
                shown,
                ", ".join(profile.modes),
                _switch(profile) if thinks else "none",
                ", ".join(f"`{name}`" for name in levels),
                tags if thinks else "none",
                fmt.calls or "as the template tells",
                sampling,
                sources,
                family.checked,
                family.unchecked,
            ]
        )
    head = ["family", "profile", "modes", "switch", "levels", "tags", "calls", "sampling", "sources", "checked", "not"]
    return table(head, rows)


def families_checked() -> str:
    """What was found of the families: with the makers' templates, and with small checkpoints in vLLM."""
    published = json.loads(PUBLISHED.read_text())["templates"]
    ran = json.loads(RAN.read_text())["families"]
    rows = []
    for path in sorted(PROFILE_FOLDER.glob("*.toml")):
        profile, name = load_profile(path), path.stem
        if profile.family is None:
            continue
        templates = [one for one in published.values() if one["profile"] == name]
        found = ran.get(name, RAN_IN_A_TEST.get(name, {}))
        is_real = "run with real weights" in profile.family.checked
        rows.append(
            [
                f"`{name}`",
                _renders(templates),
                _toggles(profile, templates, found),
                _in_vllm(found, "thinking is apart") if _thinking(profile) else "does not think",
                "no" if NOT_READ in profile.family.unchecked else _in_vllm(found, "text is free"),
                "no" if NOT_READ in profile.family.unchecked else _in_vllm(found, "calls are forced"),
                "generation_config.json" if profile.sampling_of_checkpoint else "profile",
                "real weights" if is_real else "random weights" if found else "no",
                _kept(templates, "text"),
                _kept(templates, "call"),
                _pages(found),
            ]
        )
    head = [
        *("profile", "renders equal", "modes toggle", "thinking apart", "tools read", "tools forced"),
        *("sampling source", "run", "kept after text", "kept after a call", "pages found again"),
    ]
    return table(head, rows)


RAN_IN_A_TEST: dict[str, dict[str, Any]] = {
    "gpt_oss": dict.fromkeys(("modes toggle", "thinking is apart", "text is free", "calls are forced"), True)
}
"""What tests/server/test_real_gpt_oss.py holds."""
IN_TESTS = "in tests"
"""Of what is held by tests with small templates and no engine."""
NOT_READ = "not read"
"""What a profile says of calls whose form the server does not know."""
Found = Mapping[str, Any]


def _renders(templates: Sequence[Found]) -> str:
    equal, all_of = (sum(one[key] for one in templates) for key in ("equal", "renderings"))
    if not templates:
        return "small template only"
    reasons = {why.partition(": ")[2] for one in templates for why in one["different"]}
    return "; ".join([f"{equal} of {all_of}", *sorted(reasons)])


def _toggles(profile: Profile, templates: Sequence[Found], found: Found) -> str:
    if len({mode.thinks for mode in profile.plain.values()}) == 1:
        return "thinks always" if _thinking(profile) else "does not think"
    if templates:
        return "yes" if all(one["toggles"] for one in templates) else "no: the server writes the closed block"
    return _in_vllm(found, "modes toggle")


def _in_vllm(found: Found, check: str) -> str:
    return "in vLLM" if found and not str(found.get(check, "no:")).startswith("no:") else IN_TESTS


def _kept(templates: Sequence[Found], kind: str) -> str:
    shares = sorted({one["kept"][kind] for one in templates if one["kept"][kind] is not None})
    return " to ".join(f"{share} %" for share in dict.fromkeys((shares[0], shares[-1]))) if shares else ""


def _pages(found: Found) -> str:
    """Tokens that were taken from pages, of those that could be, after a text and after a call."""
    kept = found.get("pages are kept")
    return ", ".join(f"{cached} of {same}" for _, same, cached in kept.values()) if isinstance(kept, dict) else ""


def _thinking(profile: Profile) -> list[ThinkingMode]:
    return [mode for mode in profile.plain.values() if isinstance(mode, ThinkingMode)]


def _switch(profile: Profile) -> str:
    """The variables by which the template knows the modes."""
    told = []
    for mode in profile.plain.values():
        if mode.template is not None:
            return "templates of ours"
        if mode.template_variables is None:
            return "as found, `enable_thinking` most often"
        told += [f"`{name}` {json.dumps(value)}" for name, value in mode.template_variables.items()]
    return ", ".join(told) or "none: always thinks, unless the server closes the block"


def metrics(*, of_vllm: bool = False) -> str:
    """Our own metrics, or those under vLLM's names."""
    load = Stats(0, 0, (PageGroup("sliding", 32, 0, 0, 0),))
    view = EngineView(
        model_name="",
        ready=lambda: True,
        load=lambda: load,
        replicas=lambda: [(True, load)],
        queued=lambda: 0,
        cache_config=lambda: {"block_size": "32", "num_gpu_blocks": "1"},
        max_adapters=lambda: 1,
    )
    registry = Metrics(view, ()).registry
    engine = cast("EngineClient", SimpleNamespace(status=SimpleNamespace(state="ready"), restarts={}))
    registry.register(EngineLife(engine, lambda: {"think": (0, 0)}, "bf16"))
    rows = []
    for collector in list(registry._collector_to_names):
        for metric in collector.collect():
            if metric.name.startswith("vllm:") is of_vllm:
                labels = getattr(collector, "_labelnames", None) or metric.samples[0].labels
                name = metric.name + ("_total" if metric.type == "counter" else "")
                rows.append(
                    [
                        f"`{name}`",
                        metric.type,
                        ", ".join(label for label in labels if label != "le"),
                        metric.documentation,
                    ]
                )
    return table(["metric", "type", "labels", "meaning"], rows)


def dialects() -> str:
    """What clients of other servers send, and what it means here."""

    def shown(fields: Any) -> str:
        return f"`{json.dumps(fields)}`"

    rows = (
        [
            one.peers,
            shown(one.sent),
            f"400 that names `{one.means}`" if isinstance(one.means, str) else shown(one.means),
        ]
        for one in DIALECTS
    )
    return table(["of", "sent", "means"], rows)


def unsupported() -> str:
    """The fields that are refused unless they are off."""

    def rows() -> Iterator[Row]:
        for name, (off, instead) in UNSUPPORTED.items():
            yield [f"`{name}`", ", ".join(f"`{json.dumps(value)}`" for value in off), instead and f"`{instead}`"]

    return table(["field", "asks for nothing", "instead"], rows())


def call_forms() -> str:
    """The forms of tool calls, and what tells them."""
    rows = ([f"`{name}`", _code(_picture(form)), ", ".join(map(_code, MARKERS[name]))] for name, form in FORMS.items())
    return table(["`calls`", "one call", "told by"], rows)


def _picture(form: CallForm) -> str:
    """One call as a model of the form writes it, `NAME` with `KEY` and `VALUE`."""
    match form:
        case JsonCalls():
            number = f'"{form.id}": "0", ' if form.id else ""
            text = f'{{{number}"{form.name}": "NAME", "{form.arguments}": {{…}}}}'
            text = '{"NAME": {…}}' if form.by_name else text
            text = f"[{text}]" if form.is_list else text
        case NamedJsonCalls():
            number = ":0" if form.is_numbered else ""
            text = f"{form.call_open}{form.name_prefix}NAME{number}{form.name_end}{{…}}{form.call_close}"
        case TaggedCalls():
            value = f"{form.param_open}KEY{form.text_key_end or form.key_end}VALUE{form.param_close}"
            index = f"{form.index_open}1" if form.index_open else ""
            text = f"{form.call_open}NAME{index}{form.name_end}{value}{form.call_close}"
        case NestedCalls():
            value = f"{form.mark}<KEY>VALUE{form.mark}</KEY>"
            text = f"{form.call_open}NAME{form.name_end}{value}{form.call_close}"
        case BareKeyCalls():
            text = f"{form.call_open}NAME{{KEY:{form.quote}VALUE{form.quote}}}"
        case PythonCalls():
            text = "[NAME(KEY=VALUE)]" if form.is_list else "NAME(KEY=VALUE)"
    return f"{form.open}{text}{form.close}".replace("\n", "")


def _code(text: str) -> str:
    """As HTML, since a bar in a table's code is none in Markdown."""
    return f"<code>{html.escape(text, quote=False)}</code>"
