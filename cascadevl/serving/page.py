"""The chat page: files that hold no data and ask for none elsewhere, hence open to whoever reaches the server.

No build step: what stands in `ui/` is what a browser gets. What the page asks of the API needs the key like anybody's.
"""

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import FastAPI, Request, Response

MODULES = ("answer", "api", "app", "composer", "dom", "media", "settings", "text", "theme")
SCRIPT, STYLE, ICON, PICTURE = "text/javascript", "text/css", "image/svg+xml", "image/png"

FILES: dict[str, tuple[str, str]] = {
    "/": ("index.html", "text/html"),
    "/ui/style.css": ("style.css", STYLE),
    "/ui/icon.svg": ("icon.svg", ICON),
    "/ui/line.png": ("line.png", PICTURE),
    "/ui/receipt.png": ("receipt.png", PICTURE),
    **{f"/ui/{name}.js": (f"{name}.js", SCRIPT) for name in MODULES},
}
"""Path -> the file in `ui/`, and its type. Nothing else is served, so no path needs to be checked."""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob:",
        "media-src blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Text can then not even by mistake become markup that runs.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""What the page may do; what a model says cannot widen it."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Kept by browsers, and asked for each time whether it still holds: no page is made of files of two versions.
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Routes of the page and its files, which are read once."""
    folder = files("cascadevl.serving") / "ui"
    for path, (name, kind) in FILES.items():
        endpoint = _endpoint((folder / name).read_bytes(), kind)
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)


def _endpoint(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": etag}

    async def file(request: Request) -> Response:
        known = request.headers.get("if-none-match", "")
        if etag in [each.strip().removeprefix("W/") for each in known.split(",")]:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=kind, headers=headers)

    return file
