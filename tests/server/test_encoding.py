"""JSON of long lists, which is made in parts."""

import orjson
import pytest

from server.http.responses import encoded, encoded_list

PART = 32_768


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 2 * PART])
def test_a_list_in_parts_is_the_list(size: int) -> None:
    items = list(range(size))
    told = orjson.loads(orjson.dumps(encoded({"items": encoded_list(items), "texts": encoded_list(items, str)})))
    assert told == {"items": items, "texts": list(map(str, items))}
