"""A Ray head that is not there is told at once, in one line."""

import socket

import pytest

from engine.ray_head import check_head


def test_one_that_listens_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        check_head(f"127.0.0.1:{head.getsockname()[1]}")
    check_head("auto")


@pytest.mark.parametrize("address", ["127.0.0.1:9", "127.0.0.1", ":6379", "head:port", "127.0.0.1:99999"])
def test_others_are_refused_by_their_address(address: str) -> None:
    with pytest.raises(ConnectionError) as refused:
        check_head(address)
    (line,) = str(refused.value).splitlines()
    assert address in line
