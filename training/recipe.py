"""A training recipe: everything that decides a run, read from one TOML file."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

Method = Literal["agapo", "grpo", "sft"]
METHODS: tuple[Method, ...] = get_args(Method)


class ModelRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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


class SftRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Supervised fine-tuning on both modes together.

    `tokens` bounds the run; `reasoning_ratio` is reasoning tokens per standard token; `curriculum` and `decay` are
    shares of the run: how long difficulty grows at its start, and how long the rate falls at its end. Of the reasoning
    examples `cut_share` have their reasoning cut off and ended as a server does when a budget is spent, with `wrap_up`,
    or else `short_wrap_up`, where the budget holds it twice; `early_cut_share` of these within 64 tokens. With a
    `wrong_draft_share` the thought about a task begins with a draft of its answer, wrong in that share of those that
    are not cut early. Of all examples `needles_share` are texts with codes to be found. `learns`: the answers, or the
    prompts with them. `start` names a checkpoint's folder to go on from, with its tokenizer, instead of fresh weights.
    `hardest` is the last step of the families' difficulty that is trained and checked; where it is not given, or there
    are fewer, all.
    """

    tokens: int
    batch_tokens: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    reasoning_ratio: float
    curriculum: float
    decay: float
    conversation_share: float
    json_share: float
    copy_share: float
    needles_share: float
    tools_share: float
    rephrase_share: float
    history_share: float
    cut_share: float
    wrap_up: str
    evaluate_every: int
    save_every: int
    families: dict[str, float]
    short_wrap_up: str = ""
    early_cut_share: float = 0.5
    wrong_draft_share: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] | None = None
    start: str | None = None
    learns: Literal["answers", "everything"] = "answers"
    hardest: Annotated[int, msgspec.Meta(ge=0)] | None = None


class PretrainRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What comes before fine-tuning: its examples at their easiest, every token of them learnt, prompts too."""

    tokens: int
    learning_rate: float
    warmup_steps: int
    decay: float


class ExtendStage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Texts of up to `length` tokens, `batch_tokens` of them in a step; `drill_share` of these are short drills.

    In global layers a text's filler counts up to `filler_counts` times (uniform in the logarithm), as that of a text so
    many times as long. The needle test comes after `least_tokens` (0: before any training) and again after every
    `gate_every`, up to `most_tokens`. `gradient_checkpointing` computes activations twice instead of keeping them.
    """

    length: int
    batch_tokens: int
    learning_rate: float
    least_tokens: int
    gate_every: Annotated[int, msgspec.Meta(ge=1)]
    most_tokens: int
    drill_share: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)] = 0.0
    filler_counts: Annotated[float, msgspec.Meta(ge=1.0)] = 1.0
    gradient_checkpointing: bool = False


class ExtendRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Context extension from the checkpoint in `start`; the finished one goes to `output`.

    Each text is asked up to `questions` questions; of all tokens `sft_share` are ordinary batches of fine-tuning. A
    stage passes when every cell of the needle test is at least `gate`; it has `gate_items` questions of the kinds in
    `gate_families` over eleven depths and all lengths from the first stage's, doubling, to the stage's own.
    """

    start: str
    output: str
    questions: Annotated[int, msgspec.Meta(ge=1)]
    sft_share: Annotated[float, msgspec.Meta(ge=0.0, lt=1.0)]
    warmup_steps: Annotated[int, msgspec.Meta(ge=1)]
    gate: Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
    gate_items: int
    gate_families: tuple[Literal["single", "distractors", "several", "variables"], ...]
    save_every: int
    stages: tuple[ExtendStage, ...]

    def __post_init__(self) -> None:
        """Raises ValueError for lengths that do not stand 1 : 8 : 32."""
        lengths = [stage.length for stage in self.stages]
        if not lengths or lengths != [factor * lengths[0] for factor in (1, 8, 32)][: len(lengths)]:
            raise ValueError(f"extend.stages: lengths {lengths} do not stand 1 : 8 : 32")


class AgapoRecipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Reinforcement learning from the checkpoint in `start`; the finished one goes to `output`.

    Of `prompts` drawn questions, `standard_share` of them in standard mode, those that the start solves in all
    `group_size` answers are dropped; every step asks `groups` of the others. `updates` steps of the optimizer are taken
    on parts of what a step drew. `all_wrong_reward` (below zero) is the advantage of answers in a group that has no
    right one, and `kl_weight` is of the divergence from the start. `method`: agapo, or what it is compared with: grpo
    (clipped at `clip`), sft (on the traces of the same questions). `hardest` is the step of the families' difficulty,
    as in SftRecipe.
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


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run; `output` is where the finished checkpoint goes, relative to the working directory."""

    seed: int
    output: str
    model: ModelRecipe
    sft: SftRecipe
    pretrain: PretrainRecipe | None = None
    extend: ExtendRecipe | None = None
    agapo: AgapoRecipe | None = None


def load(path: Path) -> Recipe:
    """Raises ValueError with the field's name when the file does not describe a recipe."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), Recipe)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ValueError(f"{path}: {error}") from error
