"""Makes the FastAPI app around an engine client; the engine is an argument, so that tests need no model."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from starlette.types import ASGIApp

from chat_templates.format import ChatFormat
from server.access.access import Access
from server.access.gate import Gate, Routes
from server.access.keys import KeyFile
from server.access.origins import Origins, is_loopback
from server.api.common.openapi import Api, install_openapi
from server.api.registry import APIS
from server.core.serving import Serving
from server.engine_client import EngineClient
from server.http.page import PATHS, page_routes
from server.http.responses import HeadAsGet, install_error_handlers
from server.modes.profile import Profile
from server.settings import Settings
from server.telemetry.layer import RequestLayer, Watcher
from server.telemetry.observers import Observer


class App(FastAPI):
    """With a layer around all others, so that no response is without an id, and none unseen."""

    watchers: Sequence[Watcher] = ()
    keeps_texts = False

    def build_middleware_stack(self) -> ASGIApp:
        """Called by Starlette before the first request."""
        stack = super().build_middleware_stack()
        return RequestLayer(stack, self.watchers, self.state.error_shapes, keeps_texts=self.keeps_texts)


def create_app(
    engine: EngineClient,
    settings: Settings,
    profile: Profile,
    fmt: ChatFormat,
    apis: Sequence[Api] = APIS,
    *,
    keys: KeyFile | None = None,
    observers: Sequence[Observer] = (),
) -> FastAPI:
    """The app; it starts the engine with itself and closes it at its end, as it does `observers`.

    Without `keys`, requests need none.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        yield
        await engine.close()
        for observer in observers:
            await asyncio.to_thread(observer.close)

    app = App(
        title="Twogear",
        version=version("twogear"),
        description="One model, two gears: `reasoning_mode` picks template, sampling and token budget.",
        lifespan=lifespan,
        root_path=settings.root_path,
        openapi_url="/openapi.json" if settings.docs else None,
    )
    serving = app.state.serving = Serving(
        settings=settings, profile=profile, fmt=fmt, engine=engine, access=Access(keys)
    )
    app.watchers = (serving.metrics.responded, *(observer.write for observer in observers))
    for collector in (one for observer in observers for one in observer.collectors):
        serving.metrics.registry.register(collector)
    app.keeps_texts = settings.log_text
    for api in apis:
        app.include_router(api.router)
    if settings.ui:
        app.router.routes.extend(page_routes())
    app.add_middleware(HeadAsGet)
    install_error_handlers(app, [api.errors for api in apis if api.errors is not None])
    install_openapi(app, apis, lambda: list(serving.modes.by_name))
    app.add_middleware(
        Gate,
        access=serving.access,
        origins=origins_of(settings),
        routes=Routes(apis, open_paths=PATHS if settings.ui else ()),
    )
    return app


def origins_of(settings: Settings) -> Origins:
    """The web pages and hosts that the settings allow."""
    return Origins(
        allowed=frozenset(settings.allowed_origins),
        hosts=frozenset(settings.allowed_hosts),
        is_local=is_loopback(settings.host),
    )
