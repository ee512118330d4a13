"""The gate before all routes, a plain ASGI middleware: web pages, hosts, keys. What a key may spend is the core's part.

Each request passes here, so that it does little, and nothing at all to the events of a stream that needs no headers.
"""

from collections.abc import Awaitable, Mapping, Sequence
from http import HTTPStatus

from fastapi import Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.access.access import Access, Group
from server.access.origins import Origins, is_preflight
from server.api.common.openapi import Api
from server.errors import ApiError, ForbiddenError
from server.http.reading import CALLER
from server.http.responses import error_response, route_path

OPEN_PAGES = ("/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect")


class Routes:
    """What the paths of APIs belong to. One that none of them names belongs to the models, and so needs a key.

    `open_paths` are of no API, and need none.
    """

    def __init__(self, apis: Sequence[Api], open_paths: Sequence[str] = ()) -> None:
        named = {path: group for api in apis for path, group in api.access.items()}
        groups: dict[str, Group] = {path: None if group == "open" else group for path, group in named.items()}
        groups |= dict.fromkeys(open_paths)
        self._exact: dict[str, Group] = {**dict.fromkeys(OPEN_PAGES), **groups}
        self._patterns = [(compile_path(path)[0], group) for path, group in groups.items() if "{" in path]

    def group(self, path: str) -> Group:
        """What `path` belongs to."""
        if path in self._exact:
            return self._exact[path]
        return next((group for pattern, group in self._patterns if pattern.match(path)), "models")


class Gate:
    """Lets through what may pass, with its Caller in the scope; answers everything else."""

    def __init__(self, app: ASGIApp, access: Access, origins: Origins, routes: Routes) -> None:
        self._app = app
        self._access = access
        self._origins = origins
        self._routes = routes

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serves one request."""
        if scope["type"] != "http":
            return self._app(scope, receive, send)
        headers = dict(reversed(scope["headers"]))  # of a header that comes twice, the first
        origin = headers.get(b"origin")
        added = self._origins.response_headers(origin) if origin and self._origins.allows(origin) else []
        try:
            self._origins.check(scope["method"], headers, (scope.get("server") or ("",))[0] or "")
            if is_preflight(scope["method"], headers):
                return self._preflight(headers)(scope, receive, send)
            scope[CALLER] = self._access.caller(headers, self._routes.group(route_path(scope)))
        except ApiError as error:
            return error_response(error, scope)(scope, receive, _with(added, scope, send))
        if added or self._access.has_keys:
            send = _with(added, scope, send)
        return self._app(scope, receive, send)

    def _preflight(self, headers: Mapping[bytes, bytes]) -> Response:
        if not self._origins.allows(headers[b"origin"]):
            raise ForbiddenError(
                f"Web pages of {headers[b'origin'].decode('latin-1')[:128]!r} may not use this server."
            )
        response = Response(status_code=HTTPStatus.NO_CONTENT)
        response.raw_headers += self._origins.preflight_headers(headers)
        return response


def _with(added: list[tuple[bytes, bytes]], scope: Scope, send: Send) -> Send:
    """`send` that adds headers to the start of the response: these, and what its Caller tells of its limits."""

    def sending(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            limits = scope[CALLER].limit_headers if CALLER in scope else []
            message = {**message, "headers": [*message.get("headers", ()), *added, *limits]}
        return send(message)

    return sending
