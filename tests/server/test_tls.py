"""TLS by uvicorn's own options; and what a start says of an address that is open to others."""

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.load import client as load_client
from benchmarks.load.client import HttpError, post
from chat_templates.format import ChatFormat
from server.app import create_app
from server.cli_errors import UsageError
from server.draining import DrainingServer
from server.launch import loaded_config, open_address_warning
from server.listeners import bind
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import always, body, served

OPENSSL = shutil.which("openssl")
NO_TLS = b"\x15\x03\x01\x00\x02\x02\x46"  # an alert: the version is not one that is spoken here
SUBJECT = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]


@pytest.fixture
def engine(fmt: ChatFormat) -> FakeEngine:
    return FakeEngine(always([*fmt.encode_text("Hello"), fmt.end_of_turn_id]), (fmt.end_of_turn_id,))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A key and its certificate, which is its own authority."""
    if OPENSSL is None:
        pytest.skip("there is no openssl here")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    paths = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([OPENSSL, *made, *paths, *SUBJECT], check=True, capture_output=True)
    return key, certificate


@asynccontextmanager
async def serving(
    files: tuple[Path, Path], engine: FakeEngine, profile: Profile, fmt: ChatFormat, **options: Any
) -> AsyncIterator[tuple[DrainingServer, int]]:
    settings = Settings(ssl_keyfile=files[0], ssl_certfile=files[1], **options)
    async with served(engine, profile, fmt, settings) as one:
        yield one


async def everything(port: int, said: bytes = b"", *, context: ssl.SSLContext | None = None) -> bytes:
    """What the server says until it ends the connection, or the handshake."""
    async with asyncio.timeout(60):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        except ConnectionError:
            return b""
        try:
            writer.write(said)
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


@pytest.mark.parametrize("said", [b"", b"\x16\x03", b"GET / HTTP/1.1\r\n\r\n"], ids=["nothing", "a part", "no TLS"])
async def test_a_client_that_begins_no_handshake_is_ended(
    files: tuple[Path, Path], engine: FakeEngine, profile: Profile, fmt: ChatFormat, said: bytes
) -> None:
    """Without the limit it would be after a minute, which is longer than is waited here."""
    async with serving(files, engine, profile, fmt, header_timeout=0.3) as (_, port):
        started = asyncio.get_running_loop().time()
        assert await everything(port, said) in (b"", NO_TLS)
        assert asyncio.get_running_loop().time() - started < 50


def test_the_loop_of_a_real_server_ends_them_too(
    files: tuple[Path, Path], engine: FakeEngine, profile: Profile, fmt: ChatFormat
) -> None:
    pytest.importorskip("uvloop").run(silent(files, engine, profile, fmt))


async def silent(files: tuple[Path, Path], engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    async with serving(files, engine, profile, fmt, header_timeout=0.3) as (server, port):
        assert await everything(port) == b""
        assert not server.server_state.connections


async def test_a_client_that_says_nothing_after_its_handshake_is_ended(
    files: tuple[Path, Path], engine: FakeEngine, profile: Profile, fmt: ChatFormat
) -> None:
    context = ssl.create_default_context(cafile=files[1])
    async with serving(files, engine, profile, fmt, header_timeout=2.0) as (server, port):
        assert await everything(port, context=context) == b""
        while server.server_state.connections:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)


async def test_connections_count_before_their_handshake(
    files: tuple[Path, Path], engine: FakeEngine, profile: Profile, fmt: ChatFormat
) -> None:
    context = ssl.create_default_context(cafile=files[1])
    ask = b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with serving(files, engine, profile, fmt, max_connections=4) as (_, port):
        with ExitStack() as held:
            for _ in range(4):
                held.enter_context(socket.create_connection(("127.0.0.1", port)))
            while await everything(port, ask, context=context):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        while not (answer := await everything(port, ask, context=context)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert answer.startswith(b"HTTP/1.1 200 ")


@pytest.fixture
def url(files: tuple[Path, Path], engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> Iterator[str]:
    settings = Settings(ssl_keyfile=files[0], ssl_certfile=files[1])
    listener = bind("127.0.0.1", 0)
    app = create_app(engine, settings, profile, fmt)
    server = DrainingServer(app.state.serving, loaded_config(app, settings))

    def serve() -> None:
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:  # as `twogear serve` does
            runner.run(server.serve(sockets=[listener]))

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("stream", [False, True])
def test_answers_come_over_tls(url: str, files: tuple[Path, Path], stream: bool) -> None:
    context = ssl.create_default_context(cafile=files[1])
    response = httpx.post(f"{url}/v1/chat/completions", json=body(stream=stream), verify=context, timeout=60)
    assert response.status_code == 200
    assert "Hello" in response.text


def test_the_benchmarks_client_speaks_tls(url: str, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    chat = f"{url}/v1/chat/completions"
    content = json.dumps(body(stream=True)).encode()
    parts: list[bytes] = []
    with pytest.raises(HttpError, match="certificate"):
        asyncio.run(post(chat, content, lambda part, _: parts.append(part)))
    assert not parts
    monkeypatch.setenv("SSL_CERT_FILE", str(files[1]))
    load_client._tls.cache_clear()
    asyncio.run(post(chat, content, lambda part, _: parts.append(part)))
    load_client._tls.cache_clear()
    assert b"".join(parts).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("content", ["", "no certificate"])
def test_files_that_are_no_certificate(
    files: tuple[Path, Path], engine: FakeEngine, profile: Profile, fmt: ChatFormat, content: str
) -> None:
    files[1].write_text(content)
    with pytest.raises(UsageError, match="--ssl-…: the files cannot be used"):
        config(files[0], files[1], engine, profile, fmt)


def test_a_certificate_that_is_not_there(engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    with pytest.raises(UsageError, match="No such file"):
        config(Path("/nowhere/key.pem"), Path("/nowhere/certificate.pem"), engine, profile, fmt)


def config(key: Path, certificate: Path, engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> None:
    settings = Settings(ssl_keyfile=key, ssl_certfile=certificate)
    loaded_config(create_app(engine, settings, profile, fmt), settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "server.example"])
def test_an_open_address_without_keys_says_so(host: str) -> None:
    assert open_address_warning(Settings(host=host), has_keys=True) == ""
    said = open_address_warning(Settings(host=host), has_keys=False)
    assert said.startswith(f"Anyone who can reach {host} may use this server")
    assert "--api-keys" in said


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_local_one_need_not(host: str) -> None:
    assert open_address_warning(Settings(host=host), has_keys=False) == ""
