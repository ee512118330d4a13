"""TLS by uvicorn's own options; and what a start says of an address that is open to others."""

import asyncio
import json
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.load import client as load_client
from benchmarks.load.client import HttpError, post
from chat_templates.format import ChatFormat
from server.app import create_app
from server.cli_errors import UsageError
from server.launch import DrainingServer, bind, loaded_config, open_address_warning
from server.modes.profile import Profile
from server.settings import Settings
from tests.fake_engine import FakeEngine
from tests.server.conftest import always, body

OPENSSL = shutil.which("openssl")
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


@pytest.fixture
def url(files: tuple[Path, Path], engine: FakeEngine, profile: Profile, fmt: ChatFormat) -> Iterator[str]:
    settings = Settings(ssl_keyfile=files[0], ssl_certfile=files[1])
    listener = bind("127.0.0.1", 0)
    app = create_app(engine, settings, profile, fmt)
    server = DrainingServer(app.state.serving, loaded_config(app, settings))
    thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[listener]),))
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
