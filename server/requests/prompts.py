"""Client text to prompt ids, away from the event loop where it is long."""

import asyncio
from collections.abc import Callable

from chat_templates.errors import FormatError
from server.errors import BadRequestError
from server.serving import Serving

LONG_PROMPT = 32_768  # bytes or characters from which the work would hold up other requests' tokens


async def encode_prompt(text: str, serving: Serving) -> list[int]:
    """The ids of a raw prompt, none of them a control token; raises BadRequestError."""
    return await to_ids(lambda: serving.fmt.encode_text(text), len(text), "prompt")


async def to_ids(work: Callable[[], list[int]], size: int, param: str | None = None) -> list[int]:
    """What `work` yields for a prompt of about `size` bytes; raises BadRequestError, for `param` if that is set."""
    try:
        return work() if size < LONG_PROMPT else await asyncio.to_thread(work)
    except FormatError as error:
        raise BadRequestError(error.message, param=param or error.param) from None
