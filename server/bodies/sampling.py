"""The fields that chat and text completions share: sampling, stopping, choices, streaming."""

from typing import Annotated

from pydantic import Discriminator, Field, Tag

from server.bodies.fields import INT64, Fields, tag_of

MAX_STOPS = 16
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20  # of vLLM, unless its --max-logprobs says otherwise

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenCount = Annotated[int, Field(ge=0)]
StopString = Annotated[str, Field(min_length=1, max_length=1000)]
Stop = Annotated[
    Annotated[StopString, Tag("(text)")] | Annotated[list[StopString], Field(max_length=MAX_STOPS), Tag("(list)")],
    Discriminator(tag_of, custom_error_type="stop", custom_error_message="must be a string or a list of strings"),
]


class StreamOptions(Fields):
    """Options of a streamed response."""

    include_usage: bool = False


class SamplingFields(Fields):
    """Sampling fields that are absent take the mode's defaults."""

    model: str | None = Field(default=None, description="A listed model; an alias names the mode too.")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT64)] | None = Field(default=None, description="0 or -1: no limit")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    seed: Annotated[int, Field(ge=-INT64 - 1, le=INT64)] | None = Field(
        default=None, description="Of the first choice; each further one has the next."
    )
    stop: Stop | None = Field(default=None, description="Ends the answer before this text; thinking is not searched.")
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = Field(
        default=None, description="End the answer; thinking is not searched."
    )
    min_tokens: TokenCount | None = None
    ignore_eos: bool | None = None
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = Field(
        default=None, description="Instead of the mode's; lower runs first. Only where the server allows it."
    )
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = Field(default=None, description="How many choices.")
    return_token_ids: bool | None = Field(
        default=None, description="Token ids of the prompt and of all that was generated, as vLLM tells them."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
