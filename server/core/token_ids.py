"""Token ids that come from clients."""

from collections.abc import Sequence

from server.core.serving import Serving
from server.errors import BadRequestError


def known_ids(ids: Sequence[int], field: str, serving: Serving) -> Sequence[int]:
    """`ids`, all of which the model has; raises BadRequestError for `field`."""
    unknown = {token_id for token_id in set(ids) if not serving.fmt.vocabulary.token_text(token_id)}
    if unknown:
        raise BadRequestError(f"{field}: the model has no token {min(unknown)}.", param=field)
    return ids
