"""Whose studio a request is for: the only one on a person's machine, their own on a Space."""

from __future__ import annotations

import hashlib
import re
import secrets

import gradio as gr

from lora_studio.studio import Studio

COOKIE = "lora_studio_visitor"
_ID = re.compile(r"[0-9a-f]{32}")
FOLDER_CHARS = SESSION_CHARS = 32


def new_visitor() -> str:
    """Return a name that nobody can guess."""
    return secrets.token_hex(16)


def is_visitor(name: str | None) -> bool:
    """Return whether a cookie holds a name of the form that `new_visitor` gives."""
    return bool(name and _ID.fullmatch(name))


def asker(request: gr.Request, place: str) -> str:
    """Return who asks, for `Answers.stop`: a tab of a browser, and a place in it."""
    return f"{request.session_hash}/{place}"


class Door:
    """Opens the right studio for each request.

    A Space tells visitors apart by a cookie that the server sets. A browser that refuses cookies
    in a frame still gets a studio of its own, as long as its tab is open.
    """

    def __init__(self, studio: Studio) -> None:
        self.main = studio

    def enter(self, request: gr.Request | None) -> Studio:
        """Return the studio that a request may see."""
        if not self.main.settings.space_id:
            return self.main
        cookie = request.cookies.get(COOKIE) if request else None
        if cookie and is_visitor(cookie):
            # The cookie opens this studio; its folder's name stands in recipes and logs.
            return self.main.for_visitor(hashlib.sha256(cookie.encode()).hexdigest()[:FOLDER_CHARS])
        session = re.sub(r"[^0-9a-z]", "", str(request.session_hash) if request else "")
        return self.main.for_visitor(f"tab-{session[:SESSION_CHARS]}")
