"""The page to talk to the server with, at `/`: what `make ui` built from `ui/`, sent as it is. It knows no API.

The page is a client as any other: it asks the APIs, with the key that its reader types in. So its files need no key.
"""

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from pathlib import Path

from fastapi import Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

PAGE_FOLDER = Path(__file__).parent.parent / "ui"
INDEX = "index.html"
PATHS = ("/", "/assets/{name}")
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    ]
)
"""Only files of this server run, style or are asked; no text becomes HTML but through the sanitizer."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Vary": "Accept-Encoding",
}


@dataclass(frozen=True)
class PageFile:
    """One file as it is sent."""

    content: bytes
    packed: bytes
    etag: str
    media_type: str


def page_routes() -> list[Route]:
    """The routes of the page; they stand in no OpenAPI document."""
    page, asset = PATHS
    return [Route(page, _page, methods=["GET"]), Route(asset, _asset, methods=["GET"])]


async def _page(request: Request) -> Response:
    """The page itself: a browser asks each time whether it has changed."""
    return _sent(PAGE_FOLDER / INDEX, request, "no-cache")


async def _asset(request: Request) -> Response:
    """What it loads: a file's name has its content's hash, so that it never changes."""
    name = request.path_params["name"]
    if name not in _assets():
        raise HTTPException(HTTPStatus.NOT_FOUND)
    return _sent(PAGE_FOLDER / "assets" / name, request, "public, max-age=31536000, immutable")


def _sent(path: Path, request: Request, caching: str) -> Response:
    file = _file(path)
    headers = {**HEADERS, "ETag": file.etag, "Cache-Control": caching}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(file.content, headers=headers, media_type=file.media_type)
    return Response(file.packed, headers={**headers, "Content-Encoding": "gzip"}, media_type=file.media_type)


@cache
def _assets() -> frozenset[str]:
    return frozenset(path.name for path in (PAGE_FOLDER / "assets").iterdir())


@cache
def _file(path: Path) -> PageFile:
    content = path.read_bytes()
    etag = f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'
    return PageFile(content, gzip.compress(content, mtime=0), etag, MEDIA_TYPES[path.suffix])
