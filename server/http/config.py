"""How uvicorn serves an app here: our protocol and limits, TLS, and how long it waits at the end."""

from typing import Any

import uvicorn

from server.http.connections import Connections
from server.http.protocol import protocol_of
from server.http.tls import Config
from server.settings import Settings

CLOSE_SECONDS = 2  # for connections to end once nothing is left to wait for


def server_config(app: Any, settings: Settings, **options: Any) -> uvicorn.Config:
    """How uvicorn serves the ASGI app; `options` are more of uvicorn's."""
    connections = Connections(settings)
    return Config(
        app,
        connections,
        http=protocol_of(connections),
        ws="none",
        backlog=connections.backlog,
        log_config=None,
        access_log=settings.verbose,
        timeout_keep_alive=settings.keep_alive,
        timeout_graceful_shutdown=CLOSE_SECONDS,
        ssl_keyfile=settings.ssl_keyfile,
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile_password=settings.ssl_keyfile_password,
        ssl_ca_certs=settings.ssl_ca_certs,
        ssl_cert_reqs=settings.ssl_cert_reqs,
        ssl_ciphers=settings.ssl_ciphers,
        **options,
    )
