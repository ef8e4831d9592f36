"""What stands between the network and the page: headers, cookies, and the page's first script.

Pure ASGI, because Gradio's streams must pass unbuffered.
"""

from __future__ import annotations

from http.cookies import SimpleCookie
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_studio.ui import visitors
from lora_studio.ui.language import COOKIE as LANGUAGE
from lora_studio.wording import ASSETS

POLICY = {
    "default-src": "'self'",
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval' blob:",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "connect-src": "'self'",
    "worker-src": "'self' blob:",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
}


def first_script() -> bytes:
    """Return the script that settles language and shade before Gradio starts."""
    script = (ASSETS / "first.js").read_text(encoding="utf-8")
    return f"<script>{script.replace('LANGUAGE_COOKIE', LANGUAGE)}</script>".encode()


class Protection:
    """Adds the security headers to every response and the first script to the page.

    What another site's page makes the browser send here is refused.

    Args:
        app: The application within.
        space: Whether this is a Space: shown in a frame of huggingface.co, with visitors.
    """

    def __init__(self, app: ASGIApp, *, space: bool) -> None:
        self._app = app
        self._space = space
        ancestors = "https://huggingface.co" if space else "'none'"
        rules = {**POLICY, "frame-ancestors": ancestors}
        self._policy = "; ".join(f"{name} {value}" for name, value in rules.items())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request through, unless another site's page makes the browser send it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if _is_foreign(scope):
            await PlainTextResponse("Refused: sent by another site.", 403)(scope, receive, send)
            return
        await self._app(scope, receive, _Dressed(scope, send, self._policy, space=self._space))


class _Dressed:
    """One response on its way out."""

    def __init__(self, scope: Scope, send: Send, policy: str, *, space: bool) -> None:
        self._send = send
        self._policy = policy
        self._is_page = scope["path"] == "/" and scope["method"] == "GET"
        self._new_visitor = space and not visitors.is_visitor(_cookie(scope, visitors.COOKIE))
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        """Dress the response's start; gather the page's body to put the first script in."""
        if message["type"] == "http.response.start":
            self._add_headers(message)
            if self._is_page:
                self._start = message
                return
        elif self._start is not None:
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            message = self._finish(self._start)
            await self._send(self._start)
        await self._send(message)

    def _add_headers(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        headers["content-security-policy"] = self._policy
        headers["x-content-type-options"] = "nosniff"
        headers["referrer-policy"] = "same-origin"
        headers["cross-origin-opener-policy"] = "same-origin"
        if self._is_page and self._new_visitor:
            # Partitioned: a Space is shown in a frame, where other cookies are dropped.
            headers.append(
                "set-cookie",
                f"{visitors.COOKIE}={visitors.new_visitor()}; Path=/; Max-Age=2592000; HttpOnly; "
                "Secure; SameSite=None; Partitioned",
            )

    def _finish(self, start: Message) -> dict[str, Any]:
        body = self._body.replace(b"<head>", b"<head>" + first_script(), 1)
        MutableHeaders(scope=start)["content-length"] = str(len(body))
        return {"type": "http.response.body", "body": body}


def _is_foreign(scope: Scope) -> bool:
    """Return whether a page of another origin sends something here.

    A browser says so itself in a header that no script can set (Fetch Metadata, W3C). It is asked
    instead of Origin because a proxy that changes the host leaves it as it is.
    """
    site = Headers(scope=scope).get("sec-fetch-site", "none")
    return scope["method"] not in ("GET", "HEAD", "OPTIONS") and site not in ("same-origin", "none")


def _cookie(scope: Scope, name: str) -> str | None:
    cookies = SimpleCookie(Headers(scope=scope).get("cookie", ""))
    return cookies[name].value if name in cookies else None
