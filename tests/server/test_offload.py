"""Long work away from the event loop: what it made is freed where it was made, and others get their turns."""

import asyncio
import gc
import sys
import threading
import weakref
from collections.abc import Iterator

import pytest

from chat_templates.errors import FormatError
from server.errors import ApiError, BadRequestError
from server.offload import LONG, READING, SWITCH_SECONDS, offload_long, prefer_event_loop, read_long


class Body:
    """Something large."""


@pytest.mark.parametrize("error", [BadRequestError("no"), FormatError("no", "messages")])
async def test_what_a_refused_body_became_is_freed_in_its_own_thread(error: ApiError | FormatError) -> None:
    freed: list[str] = []

    def read() -> None:
        body = Body()
        weakref.finalize(body, lambda: freed.append(threading.current_thread().name))
        try:
            int([body])  # type: ignore[call-overload]
        except TypeError:
            raise error from None

    with pytest.raises((ApiError, FormatError)) as caught:
        await read_long(read, LONG)
    assert caught.value is error
    del caught
    assert len(freed) == 1
    assert freed[0].startswith("reading")


async def test_an_error_of_another_kind_keeps_its_traceback_for_the_log() -> None:
    def fail() -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError) as caught:
        await offload_long(READING, fail)
    assert caught.traceback[-1].name == "fail"


async def test_no_garbage_collection_meanwhile() -> None:
    began, may_end = threading.Event(), threading.Event()

    def work() -> bool:
        began.set()
        may_end.wait(60)
        return gc.isenabled()

    task = asyncio.create_task(offload_long(READING, work))
    await asyncio.to_thread(began.wait, 60)
    may_end.set()
    assert not await task
    assert gc.isenabled()


@pytest.fixture
def switch_interval() -> Iterator[None]:
    before = sys.getswitchinterval()
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("switch_interval")
def test_threads_take_short_turns() -> None:
    prefer_event_loop()
    assert sys.getswitchinterval() == pytest.approx(SWITCH_SECONDS)


async def test_what_long_work_made_is_old_for_the_garbage_collector() -> None:
    """Else the next young collection, which comes at once, would go through all of it under the interpreter's lock."""
    made = await read_long(lambda: [Body() for _ in range(10)], LONG)
    old = set(map(id, gc.get_objects(generation=2)))
    assert all(id(body) in old for body in made)
