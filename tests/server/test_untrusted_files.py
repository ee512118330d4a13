"""A start ends in one line, whatever stands in a checkpoint's files, a template, a profile: these are others' work.

No engine is started; what it makes of a config is told by itself, in a line (`tests/engine`).
"""

import copy
import json
import shutil
import time
from collections.abc import Iterator
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint import check_model
from engine.defaults import engine_defaults
from server import cli, model_files
from server.cli_errors import UsageError
from server.model_files import choose_profile, load_format, try_format
from server.modes.mode import Modes
from server.modes.profile import PROFILE_FOLDER, load_profile
from server.settings import EMBEDDED_MODEL, Settings
from tests.server.conftest import HELLO

DEEP = 100_000
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<think>{% endif %}"
)
VALUES: list[Any] = [
    *(None, True, -1, 0, 2**31, 2**40, 2**70, 1.5, float("nan"), "", "x", "é", "\ud800"),
    *([], {}, [None], ["x"], [[]], [{}], {"a": None}, {"type": "x"}, [["a", "b"]]),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The embedded model's folder, all but the weights."""
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED_MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def with_template(model: Path) -> Path:
    """The same as a checkpoint that brings its own template."""
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
    return model


def problem(model: Path, **settings: Any) -> str:
    """What a start says before it starts the engine: one line; nothing where all is well."""
    chosen = Settings(model=str(model), **settings)
    try:
        check_model(chosen.model)
        profile = load_profile(chosen.profile or choose_profile(model, chosen))
        try_format(model, profile, chosen)
        fmt = load_format(model, profile, chosen)
        modes = Modes.of(profile, fmt)
        engine_defaults(chosen.model)
        fmt.render(HELLO, modes.default.style)
    except (UsageError, ValueError) as error:
        said = str(error)
        assert said
        assert "\n" not in said
        return said
    return ""


def test_a_tokenizer_may_take_so_long_but_a_machine_may_stand_still(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "TRY_SECONDS", 0.2)
    monkeypatch.setattr(model_files, "_try", lambda *_: time.sleep(0.5))
    profile, chosen = load_profile(choose_profile(model, Settings())), Settings()
    try_format(model, profile, chosen)
    monkeypatch.setattr(model_files, "_try", lambda *_: sum(count()))
    with pytest.raises(UsageError, match=r"reading it takes over 0\.2 s"):
        try_format(model, profile, chosen)


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All places in a value; of a vocabulary and other long lists the first few."""
    yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in islice(entries, 30 if path != ("model", "vocab") else 1):
        if not isinstance(name, int) or name < 1:
            yield from paths(inner, (*path, name))


def spoilt(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The value with another at `path`."""
    if not path:
        return new
    made = copy.deepcopy(value)
    holder = made
    for name in path[:-1]:
        holder = holder[name]
    holder[path[-1]] = new
    return made


def without(value: Any, path: tuple[Any, ...]) -> Any:
    made = copy.deepcopy(value)
    holder = made
    for name in path[:-1]:
        holder = holder[name]
    del holder[path[-1]]
    return made


def test_the_folder_is_fine_as_it_is(model: Path) -> None:
    assert problem(model) == ""


def test_the_folder_with_a_template_is_fine_too(with_template: Path) -> None:
    assert problem(with_template) == ""


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", "[" * DEEP, "config.json is nested too deeply"),
        ("config.json", '{"a":' * DEEP, "config.json is nested too deeply"),
        ("config.json", "\xff", "is not valid JSON"),
        ("config.json", '{"architectures": [5], "model_type": "x"}', "architectures must be a list of texts"),
        ("config.json", '{"architectures": ["x"], "model_type": ["x"]}', "model_type must be a text"),
        ("tokenizer.json", "[" * DEEP, "nested too deeply"),
        ("tokenizer.json", '{"added_tokens":' * DEEP, "nested too deeply"),
        ("tokenizer.json", "[]", "Expected `object`, got `array`"),
        ("tokenizer.json", "{}", "missing required field `added_tokens`"),
        ("tokenizer.json", "", "tokenizer.json: Expecting value"),
        ("tokenizer_config.json", "[" * DEEP, "tokenizer_config.json is nested too deeply"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json must be a JSON object"),
        ("tokenizer_config.json", '{"chat_template": 5}', "chat_template must be a text or a list"),
        (
            "tokenizer_config.json",
            '{"chat_template": [{"template": "x"}]}',
            "missing required field `name` - at `$[0]`",
        ),
        ("tokenizer_config.json", '{"chat_template": [{"name": "default"}]}', "missing required field `template`"),
        ("tokenizer_config.json", '{"chat_template": ["x"]}', "Expected `object`, got `str` - at `$[0]`"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "a", "template": "x"}]}', "none is named default"),
        ("chat_template.json", "{" * DEEP, "chat_template.json: "),
        ("chat_template.jinja", "{% if a %}" * DEEP, "nested too deeply"),
        ("chat_template.jinja", "{{ " + "(" * DEEP, "nested too deeply"),
        ("chat_template.jinja", "{% for a in b %}" * 50 + "{% endfor %}" * 50, "cannot be compiled"),
        ("chat_template.jinja", "{{ a" + ".b" * DEEP + " }}", "nested too deeply"),
        ("chat_template.jinja", "{{ " + "not " * DEEP + "a }}", "nested too deeply"),
        ("chat_template.jinja", "{{ " + "9" * 10_000 + " }}", "cannot be compiled"),
        ("chat_template.jinja", "{% if", "no jinja template: line 1"),
        ("chat_template.jinja", "\xff\xfe", "cannot be"),
    ],
)
def test_what_a_start_says(model: Path, file: str, content: str, said: str) -> None:
    (model / file).write_bytes(content.encode("latin-1"))
    assert said in problem(model)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[" * DEEP),
        ("tokenizer.json", "[" * DEEP),
        ("chat_template.jinja", "{% if a %}" * DEEP),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"added_tokens": [{"id": 1099511627776, "content": "a"}]}'),
        ("tokenizer_config.json", '{"chat_template": [{"template": "x"}]}'),
        ("tokenizer_config.json", "[" * DEEP),
    ],
)
def test_the_command_says_it_in_a_line(
    model: Path, file: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / file).write_text(content)
    assert cli.main(["serve", str(model), "--port", "0"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("twogear: error: ")
    assert told.count("\n") == 1


PLANNED: list[tuple[str, Any]] = [
    *(("quantization_config", value) for value in VALUES),
    *(("quantization_config", {"quant_method": "gptq", "bits": value}) for value in VALUES),
    *(("quantization_config", {"quant_method": "compressed-tensors", "config_groups": value}) for value in VALUES),
    ("quantization_config", {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": 5}}}),
]


def test_a_plan_of_any_config_is_made_or_refused_in_a_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    original = json.loads((model / "config.json").read_text())
    spoilt_ones = [spoilt(original, path, value) for path in paths(original) for value in VALUES]
    contents = [*map(json.dumps, spoilt_ones), "[" * DEEP]
    contents += [json.dumps({**original, name: value}) for name, value in PLANNED]
    for content in contents:
        (model / "config.json").write_text(content)
        code = cli.main(["plan", str(model), "--memory", "1GiB", "--context", "1024"])
        told = capsys.readouterr().err
        assert (code, told.count("\n")) in ((0, 0), (2, 1)), content[:200]


@pytest.mark.parametrize("token_id", [2**40, 2**32, -1, 1.5, "5", None])
def test_ids_of_added_tokens(model: Path, token_id: Any) -> None:
    spec = json.loads((model / "tokenizer.json").read_text())
    spec["added_tokens"][0]["id"] = token_id
    (model / "tokenizer.json").write_text(json.dumps(spec))
    assert "$.added_tokens[0].id" in problem(model)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        ("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
        ("pre_tokenizer", {"type": "FixedLength", "length": 0}),
        ("padding", {"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_to_multiple_of": 0, "pad_id": 0,
                     "pad_type_id": 0, "pad_token": "x"}),
        ("model", {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": [["a", "b"]]}),
        ("model", {"type": "BPE", "vocab": {"é": 0, "b": 1, "éb": 2}, "merges": [["b", "é"]],
                   "continuing_subword_prefix": "x"}),
    ],
)  # fmt: skip
def test_what_ends_the_tokenizers_library_ends_no_server(model: Path, field: str, value: Any) -> None:
    """Each of these panics in Rust, or aborts the whole process."""
    spec = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps({**spec, field: value}))
    assert "cannot be used: " in problem(model)


def test_a_link_that_leads_nowhere(model: Path) -> None:
    """As a hub's cache has where a download was broken off."""
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(model / "blobs" / "gone")
    assert "holds no weights" in problem(model)


@pytest.mark.parametrize(
    ("file", "template"),
    [
        ("config.json", False),
        *((file, template) for file in ("tokenizer_config.json", "tokenizer.json") for template in (False, True)),
    ],
)
@pytest.mark.timeout(600)
def test_any_value_anywhere(model: Path, file: str, template: bool) -> None:
    """Each place gets some of the values in turn, and is left out once: an error is a line, no other exception."""
    original = json.loads((model / file).read_text())
    if template:
        named = json.loads((model / "tokenizer_config.json").read_text())
        content = {**named, "chat_template": TEMPLATE}
        (model / "tokenizer_config.json").write_text(json.dumps(content))
        original = content if file == "tokenizer_config.json" else original
    values, tried = cycle(VALUES), count()
    for path in paths(original):
        for value in islice(values, 2):
            (model / file).write_text(json.dumps(spoilt(original, path, value)))
            problem(model)
            next(tried)
        if path:
            (model / file).write_text(json.dumps(without(original, path)))
            problem(model)
    assert next(tried) > 10


# --- profiles -----------------------------------------------------------------------------------------------------

PROFILE = (PROFILE_FOLDER / "exaone4.toml").read_text()


@pytest.mark.parametrize(
    "content",
    [
        *("", "[", "modes = 5", "default_mode = []", "a = " + "[" * 20_000, "a." * 2_000 + "b = 1", "\x00", "\xff"),
        PROFILE.replace("temperature = 0.6", "temperature = nan"),
        PROFILE.replace("temperature = 0.6", "temperature = inf"),
        PROFILE.replace("temperature = 0.6", 'temperature = "hot"'),
        PROFILE.replace("temperature = 0.6", "temperature = 1979-05-27"),
        PROFILE.replace("answer_reserve = ", "answer_reserve = 99999999999999999999999"),
        PROFILE.replace("answer_reserve = ", "answer_reserve = -"),
        PROFILE.replace('kind = "thinking"', 'kind = "else"'),
        PROFILE.replace('template = "thinking"', 'template = "\\u0000.jinja"'),
        PROFILE.replace('template = "thinking"', 'template = "../../../../etc/passwd.jinja"'),
        PROFILE.replace('template = "thinking"', 'template = "nothing"'),
        PROFILE.replace('template = "thinking"', f'template = "{"x" * 5000}.jinja"'),
    ],
    ids=count(),
)
def test_a_broken_profile(model: Path, tmp_path: Path, content: str) -> None:
    assert content != PROFILE
    profile = tmp_path / "profile.toml"
    profile.write_bytes(content.encode("latin-1", "replace") if content == "\xff" else content.encode())
    assert problem(model, profile=profile)


@pytest.mark.parametrize("content", ["{% if", "{{ " + "(" * DEEP, "\ud800"])
def test_a_broken_template_file(model: Path, tmp_path: Path, content: str) -> None:
    template = tmp_path / "template.jinja"
    template.write_bytes(content.encode("utf-8", "surrogatepass"))
    assert problem(model, chat_template=template)
