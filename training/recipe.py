"""A training recipe: everything that decides a run, read from one TOML file."""

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec

Method = Literal["agapo", "grpo", "sft"]
METHODS: tuple[Method, ...] = get_args(Method)
Share = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A table of a recipe's file."""


class ModelRecipe(Table, frozen=True):
    """The model's size; `pattern` names its layers in turn (L: sliding window, G: global), lengths are in tokens."""

    vocabulary_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    window: int
    pattern: str = "LLLG"
    context: int = 131072
    rope_theta: float = 10000.0


class Mix(Table, frozen=True):
    """What the examples of fine-tuning are, both modes together, `batch_tokens` of them in a step.

    `reasoning_ratio` is reasoning tokens per standard token. Difficulty grows over the first `curriculum` of a stage (a
    share; 0: all at full difficulty from the start; inf: the easiest throughout). Of the reasoning examples `cut_share`
    have their reasoning cut off and ended as a server does when a budget is spent, with `wrap_up`, or else
    `short_wrap_up`, where the budget holds it twice; `early_cut_share` of these within 64 tokens. With a
    `wrong_draft_share` the thought about a task begins with a draft of its answer, wrong in that share of those that
    are not cut early. Of all examples `needles_share` are texts with codes to be found. `families` have the weights
    with which tasks are drawn. `hardest` is the last step of the families' difficulty that is trained and checked;
    where it is not given, or there are fewer, all.
    """

    batch_tokens: Annotated[int, msgspec.Meta(ge=1)]
    reasoning_ratio: float
    curriculum: Annotated[float, msgspec.Meta(ge=0.0)]
    conversation_share: Share
    json_share: Share
    copy_share: Share
    needles_share: Share
    tools_share: Share
    rephrase_share: Share
    history_share: Share
    cut_share: Share
    wrap_up: str
    families: dict[str, float]
    short_wrap_up: str = ""
    early_cut_share: Share = 0.5
    wrong_draft_share: Share | None = None
    hardest: Annotated[int, msgspec.Meta(ge=0)] | None = None


class SftStage(Table, frozen=True, tag_field="kind", tag="sft"):
    """`tokens` of the mix's examples. `decay` is the share of the stage, at its end, in which the rate falls.

    `learns`: the answers; or every token, the prompts' too, as in pretraining.
    """

    name: str
    tokens: int
    learning_rate: float
    warmup_steps: Annotated[int, msgspec.Meta(ge=1)]
    decay: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
    mix: Mix
    learns: Literal["answers", "everything"] = "answers"


class ExtendStage(Table, frozen=True, tag_field="kind", tag="extend"):
    """Context extension until a needle test is passed: texts of up to `length` tokens, `batch_tokens` in a step.

    Each text is asked up to `questions` questions; `drill_share` of the texts are short drills. Of all tokens
    `sft_share` are ordinary batches of the mix. In global layers a text's filler counts up to `filler_counts` times
    (uniform in the logarithm), as that of a text so many times as long. The test comes after `least_tokens` (0: before
    any training) and again after every `gate_every`, up to `most_tokens`; it is passed when every cell is at least
    `gate`. It has `gate_items` questions of the kinds in `gate_families` over eleven depths and all lengths from
    `gate_from` on, doubling, to the stage's own; where there are none the stage ends without a test.
    `gradient_checkpointing` computes activations twice instead of keeping them.
    """

    name: str
    length: int
    batch_tokens: int
    learning_rate: float
    warmup_steps: Annotated[int, msgspec.Meta(ge=1)]
    least_tokens: int
    gate_every: Annotated[int, msgspec.Meta(ge=1)]
    most_tokens: int
    questions: Annotated[int, msgspec.Meta(ge=1)]
    sft_share: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]
    gate: Share
    gate_from: Annotated[int, msgspec.Meta(ge=1)]
    gate_items: Annotated[int, msgspec.Meta(ge=0)]
    gate_families: tuple[Literal["single", "distractors", "several", "variables"], ...]
    mix: Mix
    drill_share: Share = 0.0
    filler_counts: Annotated[float, msgspec.Meta(ge=1.0)] = 1.0
    gradient_checkpointing: bool = False


class MeanStage(Table, frozen=True, tag_field="kind", tag="mean"):
    """The mean of the weights that the stages in `of` ended with."""

    name: str
    of: Annotated[tuple[str, ...], msgspec.Meta(min_length=2)]


Stage = SftStage | ExtendStage | MeanStage


class Comparison(Table, frozen=True):
    """AGAPO beside what it is compared with, each at the best of its own `rates`.

    The best is the one that gained most in `search_steps` steps with the seed `search_seed`, which is none of those
    that are compared.
    """

    rates: dict[Method, Annotated[tuple[float, ...], msgspec.Meta(min_length=1)]]
    search_seed: int
    search_steps: Annotated[int, msgspec.Meta(ge=1)]

    def __post_init__(self) -> None:
        """Raises ValueError where a method has no rates."""
        missing = [method for method in METHODS if method not in self.rates]
        if missing:
            raise ValueError(f"agapo.compare.rates: none for {missing[0]}")


class AgapoRecipe(Table, frozen=True):
    """Reinforcement learning from the checkpoint in `start`; the finished one goes to `output`.

    Of `prompts` drawn questions, `standard_share` of them in standard mode, those that the start solves in all
    `group_size` answers are dropped; every step asks `groups` of the others. `updates` steps of the optimizer are taken
    on parts of what a step drew. `all_wrong_reward` (below zero) is the advantage of answers in a group that has no
    right one, and `kl_weight` is of the divergence from the start. `method`: agapo, or what it is compared with: grpo
    (clipped at `clip`), sft (on the traces of the same questions, as many in a step as the others have answers).
    `hardest` is the step of the families' difficulty, as in Mix.
    """

    start: str
    output: str
    steps: int
    prompts: int
    groups: int
    learning_rate: float
    max_tokens: int
    batch_tokens: int
    evaluate_every: int
    evaluation_items: int
    save_every: int
    families: dict[str, float]
    method: Method = "agapo"
    group_size: Annotated[int, msgspec.Meta(ge=2)] = 8
    updates: int = 1
    kl_weight: float = 0.01
    all_wrong_reward: Annotated[float, msgspec.Meta(le=0.0)] = -0.1
    clip: float = 0.2
    temperature: Annotated[float, msgspec.Meta(gt=0.0)] = 1.0
    standard_share: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)] = 0.0
    hardest: Annotated[int, msgspec.Meta(ge=0)] | None = None
    compare: Comparison | None = None

    @property
    def sequences_per_step(self) -> int:
        """How many sequences a step learns from, whatever the method."""
        return self.groups * self.group_size

    @property
    def prompts_per_step(self) -> int:
        """How many questions a step has: sft learns one trace of each, the others several answers."""
        return self.sequences_per_step if self.method == "sft" else self.groups


class Recipe(Table, frozen=True):
    """One run from fresh weights: the tokenizer, then the stages in their order.

    State is saved every `save_every` steps, and held-out examples are checked every `check_every` of fine-tuning.
    """

    seed: int
    model: ModelRecipe
    stages: tuple[Stage, ...]
    weight_decay: float
    check_every: Annotated[int, msgspec.Meta(ge=1)]
    save_every: Annotated[int, msgspec.Meta(ge=1)]
    agapo: AgapoRecipe | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for two stages of one name, and for a mean of what does not come before it."""
        before: list[str] = []
        for stage in self.stages:
            if stage.name in before:
                raise ValueError(f"stages: two have the name {stage.name!r}")
            if isinstance(stage, MeanStage):
                later = [name for name in stage.of if name not in before]
                if later:
                    raise ValueError(f"stages: {stage.name!r} is the mean of {later[0]!r}, which no stage before it is")
            before.append(stage.name)

    @property
    def digest(self) -> str:
        """Of all that decides the weights of the last stage."""
        decisive = (self.seed, self.weight_decay, self.model, self.stages)
        return hashlib.sha256(msgspec.json.encode(decisive)).hexdigest()[:16]


def scaled(recipe: Recipe, factor: float) -> Recipe:
    """The same with stages `factor` times as long; shorter ones have no needle test and end after `least_tokens`."""

    def of(stage: Stage) -> Stage:
        if isinstance(stage, SftStage):
            return msgspec.structs.replace(stage, tokens=round(stage.tokens * factor))
        if isinstance(stage, ExtendStage):
            least, most = round(stage.least_tokens * factor), round(stage.most_tokens * factor)
            if factor < 1.0:
                return msgspec.structs.replace(stage, least_tokens=least, most_tokens=least, gate_items=0)
            return msgspec.structs.replace(stage, least_tokens=least, most_tokens=most)
        return stage

    return recipe if factor == 1.0 else msgspec.structs.replace(recipe, stages=tuple(map(of, recipe.stages)))


def load(path: Path) -> Recipe:
    """The recipe of a TOML file, in which `[mix]` and `[extend]` hold what all stages have where they say nothing else.

    Raises ValueError with the field's name when the file does not describe a recipe.
    """
    try:
        fields = tomllib.loads(path.read_text())
        shared = {"mix": fields.pop("mix", {}), "extend": fields.pop("extend", {})}
        fields["stages"] = [_completed(stage, shared) for stage in fields.get("stages", ())]
        return msgspec.convert(fields, Recipe)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ValueError(f"{path}: {error}") from error


def _completed(stage: dict[str, Any], shared: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A stage's table with what the shared ones have and it has not."""
    if stage.get("kind") == "mean":
        return stage
    common = shared["extend"] if stage.get("kind") == "extend" else {}
    return {**common, **stage, "mix": {**shared["mix"], **stage.get("mix", {})}}
