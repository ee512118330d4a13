"""From a checked body of `POST /ask` to a request of the core."""

from server.api.common.thinking import mode_wish
from server.core.request import Conversation, Received, Request, new_id
from tests.server.example_api.body import AskRequest

NAMES = {"messages": "question", "max_tokens": "limit"}


def ask_request(asked: AskRequest, received: Received) -> Request:
    """What is asked."""
    messages = [{"role": "user", "content": asked.question}]
    if asked.instructions is not None:
        messages.insert(0, {"role": "system", "content": asked.instructions})
    return Request(
        id=new_id("ask"),
        prompt=Conversation(messages),
        received=received,
        mode=mode_wish(asked, modes={"gear": str}, budgets=["think_at_most"]),
        max_tokens=asked.limit,
        sampling={} if asked.heat is None else {"temperature": asked.heat},
        names=NAMES,
    )
