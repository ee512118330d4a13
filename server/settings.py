"""Every default of the front end, in one frozen object; the command line and its help read them from here.

The engine's own options are not here: they belong to the engine process (`engine`) and go through unchanged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from model_impl.weights import DEFAULT

EMBEDDED_MODEL = Path(__file__).parent.parent / "models" / "twogear-tiny"


class LoraModule(NamedTuple):
    """A LoRA adapter to serve: the model name that clients send, its folder or hub id, and the name of the model that
    it is for, if that is said.
    """

    name: str
    path: str
    base: str = ""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the front end serves. Times in seconds, sizes in bytes."""

    model: str = str(EMBEDDED_MODEL)
    """A local folder or a hub id."""
    host: str = "127.0.0.1"
    port: int = 8000
    weights: str = DEFAULT
    """In how many bits the engine holds the weights, as clients are told; `server.model_files` asks the checkpoint."""
    weights_asked: str | None = None
    """What flag or environment say of it; None if neither does."""
    served_model_name: str | None = None
    """The name that clients send; None: the folder's name, or the hub id."""
    profile: Path | None = None
    """None: the shipped one for the model's family."""
    chat_template: Path | None = None
    """None: the checkpoint's own; ours if it has none."""
    default_chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """What chat templates are told where a request says nothing else, thinking on or off among it."""
    lora_modules: tuple[LoraModule, ...] = ()
    """LoRA adapters that are served from the start."""
    allow_lora_updates: bool = False
    """Whether adapters may be loaded and unloaded by requests."""
    max_body_bytes: int = 4 * 1024 * 1024
    """32 for each token of a context of 131072, more than any prompt that fits into it needs."""
    max_bodies_bytes: int = 64 * 1024 * 1024
    """All bodies together that are long and still coming in."""
    max_parsed_bytes: int = 256 * 1024 * 1024
    """What the long bodies may take that are parsed and not yet planned, at PARSED_BYTES for each of theirs."""
    max_response_bytes: int = 256 * 1024 * 1024
    """What the log-probabilities of one response may take until it is whole."""
    max_responses_bytes: int = 1024 * 1024 * 1024
    """The same of all responses together, as far as they have come."""
    keep_alive: int = 75
    """How long an idle connection stays open: longer than the usual client keeps it."""
    header_timeout: float = 20.0
    """How long the head of a request may take to come, and a new connection's first byte."""
    body_timeout: float = 60.0
    """How long the body may take, beside a second for each 64 KiB of it."""
    max_connections: int = 16_384
    """Open at once, fewer where the system allows fewer files."""
    max_connections_per_address: int = 1024
    """The same from one address, or one /64 of IPv6; this machine's own, where proxies are, may have all."""
    stall_seconds: float = 60.0
    """How long a client may leave what waits for it unread before its connection is ended."""
    retry_after: int = 2
    """What clients are told to wait when the server cannot take a request now."""
    remember_generated: bool = True
    """Whether an answer that comes back in a conversation keeps the tokens that the model wrote."""
    isolate_keys: bool = False
    """Whether the prefix cache is apart for each API key."""
    max_waiting: int = 2048
    """How many choices may wait for a place in the engine."""
    max_in_flight: int | None = None
    """How many choices may run and wait, if that is bounded apart from what may wait."""
    max_waiting_tokens: int | None = None
    """How many tokens the prompts of requests that wait may have before no more is taken; None: any number."""
    max_committed: float | None = None
    """How many times the KV cache may be promised to what runs and waits; None: any number of times."""
    max_wait_seconds: float = 300.0
    """How long a request may wait for its first place."""
    max_stored_responses: int = 10_000
    """How many responses of `/v1/responses` are kept for clients to come back to; 0: none."""
    max_stored_bytes: int = 256 * 1024 * 1024
    """What they may take in all, with their inputs."""
    allow_priority: bool = False
    """Whether clients may set the priority of their requests."""
    reasoning_fields: tuple[str, ...] = ("reasoning_content", "reasoning")
    """The names under which chat completions show the thinking."""
    api_keys: Path | None = None
    """The file of API keys; None: requests need no key, unless the command line or the environment has one."""
    api_key_hashes: tuple[str, ...] = ()
    """Of the keys that the command line or the environment has."""
    allowed_origins: tuple[str, ...] = ()
    """Of the web pages that may use the server, as browsers send them; `*` for all."""
    allowed_hosts: tuple[str, ...] = ()
    """The names by which the server may be called, beside those of a loopback address."""
    root_path: str = ""
    """The path under which a proxy serves this server."""
    docs: bool = True
    """Whether there are /docs, /redoc and /openapi.json."""
    ui: bool = True
    """Whether there is a page at / to talk to the server with."""
    ssl_keyfile: Path | None = None
    ssl_certfile: Path | None = None
    """With the key, TLS is spoken."""
    ssl_keyfile_password: str | None = None
    ssl_ca_certs: Path | None = None
    """Of the authorities whose clients are let in, where `ssl_cert_reqs` asks for certificates of theirs."""
    ssl_cert_reqs: int = 0
    """0: clients need no certificate; 1: they may have one; 2: they must."""
    ssl_ciphers: str | None = None
    """OpenSSL's names; None: its own choice."""
    verbose: bool = False
    """Whether the log of the engine and of every request is shown."""
    request_log: str | None = None
    """A file for one JSON line of each request; `-` is stderr, None is none."""
    log_text: bool = False
    """Whether these lines have what was asked and answered."""
    otlp_traces_endpoint: str | None = None
    """The URL that traces are sent to; None: there are none."""
    data_parallel_size: int = 1
    """How many engines there are; requests are routed between them (`server.routing`)."""
    api_server_count: int = 1
    """How many processes speak HTTP, all on one port (`server.http.front_ends`); 1: the server does so itself."""
    drain_seconds: float = 10.0
    """How long running requests may go on after a termination signal; thinking is closed after half of it."""
    engine_timeout: float = 300.0
    """How long one step of the engine may take at most, or its start without a sign of life, before it is killed and
    started again. Where its own steps are short, less is enough (`server.step_watch`)."""

    @property
    def system_fingerprint(self) -> str:
        """What decides, beside the request, what is answered: the same model answers otherwise in fewer bits."""
        return f"twogear-{self.weights}"

    @cached_property
    def model_name(self) -> str:
        """The name under which the model is listed. Cached: to look at the folder in every request takes 0.1 ms."""
        if self.served_model_name is not None:
            return self.served_model_name
        folder = Path(self.model)
        return folder.resolve().name if folder.is_dir() else self.model
