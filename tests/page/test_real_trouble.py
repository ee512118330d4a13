"""The page when the real server loses its engine, and when the connection to it is cut, in the middle of an answer."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, expect

from tests.page.chromium import needs_chromium
from tests.page.doing import ask, runs, settle
from tests.real_server import RealServer

pytestmark = [needs_chromium, pytest.mark.engine, pytest.mark.timeout(600)]

LONG_LIST = '{"type": "array", "items": {"enum": [7]}, "minItems": 5000}'
"""A schema whose answer takes longer than any test does."""
LIMIT = "20000"


class Cable:
    """A connection to `url` that can be cut; `url` of its own."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._target = (address.hostname or "", address.port or 0)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.close()
        self.cut()

    def cut(self) -> None:
        """Ends what goes through it now; what comes later goes through again."""
        while self._ends:
            end = self._ends.pop()
            with suppress(OSError):  # it had ended
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._ends += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture
def cable(real_server: RealServer) -> Iterator[Cable]:
    with Cable(real_server.url) as cable:
        yield cable


def begin_a_long_answer(page: Page) -> None:
    """Returns when its first words are there."""
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("textbox", name="JSON schema of the answer", exact=True).fill(LONG_LIST)
    page.get_by_role("textbox", name="max_completion_tokens").fill(LIMIT)
    ask(page, "Count.", mode="standard")
    expect(runs(page).locator(".markdown")).to_contain_text("7")


def answer_again(page: Page) -> None:
    """By the retry that is offered, with a shorter answer."""
    page.get_by_role("textbox", name="JSON schema of the answer", exact=True).fill("")
    page.get_by_role("textbox", name="max_completion_tokens").fill("20")
    page.get_by_role("button", name="Again in standard").click()
    expect(runs(page).locator(".error")).to_have_count(0)
    expect(runs(page).locator(".numbers")).to_contain_text("tokens")
    settle(page)
    expect(runs(page)).to_have_count(1)


def test_the_engine_is_killed_in_the_middle_of_an_answer(
    new_page: Callable[..., Page], real_server: RealServer
) -> None:
    page = new_page(real_server.url)
    begin_a_long_answer(page)
    os.kill(real_server.engine_pid, signal.SIGKILL)
    expect(runs(page).locator(".error")).to_contain_text("while it worked on this request")
    expect(runs(page).locator(".markdown")).to_contain_text("7")
    expect(page.locator(".banner")).to_be_visible()
    page.get_by_label("Message", exact=True).fill("typed meanwhile")
    real_server.wait_until(200)
    expect(page.locator(".banner")).to_be_hidden()
    expect(page.get_by_label("Message", exact=True)).to_have_value("typed meanwhile")
    answer_again(page)


def test_the_connection_is_cut_in_the_middle_of_an_answer(new_page: Callable[..., Page], cable: Cable) -> None:
    page = new_page(cable.url)
    begin_a_long_answer(page)
    cable.cut()
    expect(runs(page).locator(".error")).to_contain_text("What came before is kept")
    expect(runs(page).locator(".markdown")).to_contain_text("7")
    answer_again(page)
