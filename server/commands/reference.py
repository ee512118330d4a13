"""The tables of docs/api.md and docs/api/, made from the fields, responses, errors, options, profiles and metrics.

That of vLLM's metrics is in docs/observability.md. `python -m server.commands.reference` renews those in the files,
each between `<!-- table NAME -->` and `<!-- end -->`. The prose around them is written by hand; a test holds both
against the code.
"""

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from engine.messages import PageGroup, Stats
from engine.sampling import SAMPLING_FIELDS, TokenSampling
from server import errors
from server.api.chat.body import ChatRequest
from server.api.chat.schema import ChatCompletion, ChatCompletionChunk, ControlResult
from server.api.common.control_body import ControlRequest
from server.api.common.fields import INT64
from server.api.common.refused import UNSUPPORTED
from server.api.common.sampling import DrawingFields, SamplingFields
from server.api.common.schema import ErrorResponse
from server.api.completions.admission import DEFAULT_MAX_TOKENS
from server.api.completions.body import CompletionRequest
from server.api.completions.schema import TextCompletion
from server.api.messages.body import MessagesRequest
from server.api.messages.errors import TYPES
from server.api.messages.schema import AnthropicError, AnthropicMessage, MessageControl, MessageEvent, TokensCount
from server.api.responses.body import ResponseRequest
from server.api.responses.schema import ResponseEvent, ResponseItems, ResponseObject
from server.api.service.schema import AnthropicModels, Models, Unhealthy, Versions
from server.api.tokens.body import DetokenizeRequest, TokenizeChatRequest, TokenizeTextRequest
from server.api.tokens.schema import Detokenized, Tokenized
from server.commands import serve
from server.commands.dialects import DIALECTS
from server.metrics import Metrics
from server.modes.profile import PROFILE_FOLDER, ModeProfile, ThinkingMode, load_profile
from server.telemetry.vllm_metrics import EngineView

DOCS = Path(__file__).parents[2] / "docs"
FILES = [DOCS / "api.md", *sorted((DOCS / "api").glob("*.md"))]
OBSERVABILITY = DOCS / "observability.md"
TABLE = re.compile(r"(<!-- table (.+?) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
SHOWN_PROFILE = PROFILE_FOLDER / "twogear_tiny.toml"
LIMITS = {  # in the profile, of the fields that have their defaults there under another name
    "max_completion_tokens": "default_max_tokens",
    "max_tokens": "default_max_tokens",
    "max_output_tokens": "default_max_tokens",
    "thinking_token_budget": "thinking_budget",
}
Schema = dict[str, Any]
Row = Sequence[str]


def render(document: str) -> str:
    """The document with all its tables made anew; raises KeyError for one that does not exist."""
    return TABLE.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[4]}", document)


def _table(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


def _fields(kind: type[BaseModel], besides: type[BaseModel] | None = None) -> str:
    """The fields of a body that those of `besides` are not among."""
    schema = kind.model_json_schema()
    known = set(besides.model_json_schema()["properties"]) if besides else set()
    rows = (
        [f"`{path}`", _types(fields, schema), _default(kind, path, required), *_meaning(fields[0], schema)]
        for path, (fields, required) in _by_path(schema).items()
        if re.split(r"[.\[]", path, maxsplit=1)[0] not in known
    )
    return _table(["field", "type", "default", "meaning", "differs"], rows)


def _answer(kind: type[BaseModel]) -> str:
    schema = kind.model_json_schema()
    rows = (
        [f"`{path}`", _types(fields, schema), _meaning(fields[0], schema)[0]]
        for path, (fields, _) in _by_path(schema).items()
    )
    return _table(["field", "type", "meaning"], rows)


def _by_path(schema: Schema) -> dict[str, tuple[list[Schema], bool]]:
    """For each field its schemas, of which objects of several kinds have several; and whether it is required."""
    found: dict[str, tuple[list[Schema], bool]] = {}
    for kind in _kinds(schema, schema):
        for path, field, required in _walk(kind, schema, ""):
            found.setdefault(path, ([], required))[0].append(field)
    return found


def _walk(schema: Schema, root: Schema, path: str) -> Iterator[tuple[str, Schema, bool]]:
    """Path, schema and whether it is required, of each field, depth first."""
    for name, field in schema.get("properties", {}).items():
        inner = f"{path}.{name}" if path else name
        yield inner, field, name in schema.get("required", ())
        for one in _kinds(field, root):
            if one.get("type") == "array":
                for item in _kinds(one["items"], root):
                    yield from _walk(item, root, f"{inner}[]")
            else:
                yield from _walk(one, root, inner)


def _kinds(schema: Schema, root: Schema) -> list[Schema]:
    """The kinds of value that a schema allows, without null and without references."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return _kinds(root["$defs"][name], root)
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return [kind for option in options for kind in _kinds(option, root)]
    if isinstance(schema.get("type"), list):
        return [{**schema, "type": one} for one in schema["type"] if one != "null"]
    return [] if schema.get("type") == "null" else [schema]


def _types(schemas: list[Schema], root: Schema) -> str:
    return " or ".join(dict.fromkeys(_type(schema, root) for schema in schemas))


def _type(schema: Schema, root: Schema) -> str:
    kinds = [schema] if "enum" in schema else _kinds(schema, root)
    return " or ".join(dict.fromkeys(_one_type(kind, root) for kind in kinds)) or "null"


def _one_type(kind: Schema, root: Schema) -> str:
    if "const" in kind or "enum" in kind:
        values = [kind["const"]] if "const" in kind else [value for value in kind["enum"] if value is not None]
        return ", ".join(f"`{value}`" if isinstance(value, str) else str(value).lower() for value in values)
    match kind.get("type"):
        case "array":
            return f"list{_count(kind, 'Items')} of {_type(kind['items'], root)}"
        case "object":
            inner = kind.get("additionalProperties")
            return f"object of {_type(inner, root)}" if isinstance(inner, dict) and inner else "object"
        case "string":
            return f"string{_count(kind, 'Length', ' characters')}"
        case "integer" | "number" as name:
            return f"{name}{_range(kind)}"
    return str(kind.get("type", "any"))


def _count(kind: Schema, what: str, unit: str = "") -> str:
    least, most = kind.get(f"min{what}", 0), kind.get(f"max{what}", 0)
    if most:
        return f" ({least} to {most}{unit})"
    return " (not empty)" if least else ""


def _range(kind: Schema) -> str:
    if "exclusiveMinimum" in kind:
        start = f"above {_number(kind['exclusiveMinimum'])}"
    elif "minimum" in kind:
        start = _number(kind["minimum"])
    else:
        return ""
    most = kind["exclusiveMaximum"] - 1 if "exclusiveMaximum" in kind else kind.get("maximum", INT64)
    return f" ({start} or more)" if most == INT64 and start in ("0", "1") else f" ({start} to {_number(most)})"


def _number(value: float) -> str:
    for power in (31, 63):
        if value in (2**power - 1, -(2**power)):
            return f"-2^{power}" if value < 0 else f"2^{power}-1"
    return f"{value:g}"


def _default(kind: type[BaseModel], path: str, required: bool) -> str:
    """Of each mode, where the profile has it."""
    if (kind, path) == (CompletionRequest, "max_tokens"):
        return str(DEFAULT_MAX_TOKENS)
    name = LIMITS.get(path, path)
    if required:
        return "required"
    if name not in ThinkingMode.__struct_fields__:
        return ""
    values = [getattr(mode, name, "") for mode in load_profile(SHOWN_PROFILE).modes.values()]
    if None in values:
        return "what the limit leaves"
    return " / ".join(map(str, values if len(set(values)) > 1 else values[:1]))


def _meaning(field: Schema, root: Schema) -> tuple[str, str]:
    """The meaning, and from whom it differs; of an object without a meaning of its own, its kind's."""
    text = field.get("description") or root.get("$defs", {}).get(field.get("$ref", "").rpartition("/")[2], {})
    meaning, _, differs = (text if isinstance(text, str) else text.get("description", "")).partition("Differs: ")
    return " ".join(meaning.split()), " ".join(differs.split())


def _errors() -> str:
    """The statuses of our own errors."""

    def kinds(of: type[errors.ApiError]) -> Iterator[type[errors.ApiError]]:
        for kind in of.__subclasses__():
            yield kind
            yield from kinds(kind)

    rows = sorted(
        [str(int(kind.status)), f"`{kind.kind}`", str(kind.__doc__).splitlines()[0].partition(" `")[0]]
        for kind in kinds(errors.ApiError)
    )
    return _table(["status", "type", "when"], rows)


def _anthropic_errors() -> str:
    types = {**TYPES, HTTPStatus.INTERNAL_SERVER_ERROR: "api_error"}
    rows = [[str(int(status)), f"`{kind}`"] for status, kind in sorted(types.items())]
    return _table(["status", "type"], [["400, 405, 415", "`invalid_request_error`"], *rows])


def _options() -> str:
    parser = argparse.ArgumentParser(add_help=False)
    serve.add_arguments(parser)
    rows = [["`MODEL`", "the embedded model", "a local folder or a hub id"]]
    for action in parser._actions:
        if action.option_strings:
            name = " ".join([action.option_strings[0], *([str(action.metavar)] if action.metavar else [])])
            rows.append([f"`{name}`", f"`{action.default}`" if action.default else "", str(action.help)])
    return _table(["option", "default", "meaning"], rows)


def _profiles() -> str:
    def sampling(mode: ModeProfile) -> str:
        plain = TokenSampling()
        names = [name for name in SAMPLING_FIELDS if getattr(mode, name) != getattr(plain, name)]
        return ", ".join(f"{name} {getattr(mode, name):g}" for name in names) or "greedy"

    rows = []
    for path in sorted(PROFILE_FOLDER.glob("*.toml")):
        profile = load_profile(path)
        types = ", ".join(profile.match.model_types) if profile.match else "all others"
        modes = "; ".join(f"{name}: {sampling(mode)}" for name, mode in profile.modes.items())
        rows.append([f"`{path.stem}`", types, modes])
    return _table(["profile", "`model_type`", "sampling of each mode"], rows)


def _metrics(*, of_vllm: bool = False) -> str:
    view = EngineView(
        model_name="",
        ready=lambda: True,
        load=lambda: Stats(0, 0, (PageGroup("sliding", 32, 0, 0, 0),)),
        queued=lambda: 0,
        cache_config=lambda: {"block_size": "32", "num_gpu_blocks": "1"},
    )
    registry = Metrics(view, ()).registry
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
    return _table(["metric", "type", "labels", "meaning"], rows)


def _dialects() -> str:
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
    return _table(["of", "sent", "means"], rows)


def _unsupported() -> str:
    def rows() -> Iterator[Row]:
        for name, (off, instead) in UNSUPPORTED.items():
            yield [f"`{name}`", ", ".join(f"`{json.dumps(value)}`" for value in off), instead and f"`{instead}`"]

    return _table(["field", "asks for nothing", "instead"], rows())


TABLES: dict[str, Callable[[], str]] = {
    "shared fields": lambda: _fields(SamplingFields),
    "chat fields": lambda: _fields(ChatRequest, SamplingFields),
    "completion fields": lambda: _fields(CompletionRequest, SamplingFields),
    "tokenize fields": lambda: _fields(TokenizeTextRequest),
    "tokenize chat fields": lambda: _fields(TokenizeChatRequest, ChatRequest),
    "detokenize fields": lambda: _fields(DetokenizeRequest),
    "control fields": lambda: _fields(ControlRequest),
    "chat response": lambda: _answer(ChatCompletion),
    "chat event": lambda: _answer(ChatCompletionChunk),
    "messages fields": lambda: _fields(MessagesRequest),
    "messages response": lambda: _answer(AnthropicMessage),
    "messages event": lambda: _answer(MessageEvent),
    "message control response": lambda: _answer(MessageControl),
    "count tokens response": lambda: _answer(TokensCount),
    "anthropic models response": lambda: _answer(AnthropicModels),
    "anthropic error response": lambda: _answer(AnthropicError),
    "anthropic errors": _anthropic_errors,
    "responses fields": lambda: _fields(ResponseRequest, DrawingFields),
    "responses response": lambda: _answer(ResponseObject),
    "responses event": lambda: _answer(ResponseEvent),
    "responses items": lambda: _answer(ResponseItems),
    "completion response": lambda: _answer(TextCompletion),
    "control response": lambda: _answer(ControlResult),
    "tokenize response": lambda: _answer(Tokenized),
    "detokenize response": lambda: _answer(Detokenized),
    "models response": lambda: _answer(Models),
    "health response": lambda: _answer(Unhealthy),
    "version response": lambda: _answer(Versions),
    "error response": lambda: _answer(ErrorResponse),
    "dialects": _dialects,
    "unsupported fields": _unsupported,
    "errors": _errors,
    "options": _options,
    "profiles": _profiles,
    "metrics": _metrics,
    "vllm metrics": lambda: _metrics(of_vllm=True),
}

if __name__ == "__main__":
    for file in (*FILES, OBSERVABILITY):
        file.write_text(render(file.read_text()))
