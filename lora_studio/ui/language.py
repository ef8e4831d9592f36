"""The page's words: labels that the browser translates, sentences that a handler says.

Fixed texts are keys that Gradio resolves in the browser; the `page` and `help` sections of the
string table are handed to it whole. What a handler makes up is said in the language of the
request: the cookie set by the page's switch, else the browser's own.
"""

from __future__ import annotations

import gradio as gr

from lora_studio.wording import LANGUAGES, say, table

COOKIE = "lora_studio_language"
SECTIONS = ("page.", "help.")


def translations() -> gr.I18n:
    """Return every fixed text of the page in every language, for `launch(i18n=…)`."""
    fixed = {key: texts for key, texts in table().items() if key.startswith(SECTIONS)}
    return gr.I18n(
        **{
            language: {key: _unescaped(texts[language]) for key, texts in fixed.items()}
            for language in LANGUAGES
        }
    )


def _unescaped(sentence: str) -> str:
    """Return a sentence as `str.format` would leave it: doubled braces are single ones."""
    return sentence.replace("{{", "{").replace("}}", "}")


_MARK = gr.I18n()


def text(key: str) -> gr.I18nData:
    """Return a fixed text of the page, translated in the browser."""
    full = f"page.{key}"
    if full not in table():
        raise KeyError(full)
    return _MARK(full)


def hint(path: str) -> gr.I18nData:
    """Return the help sentence of a recipe setting, as `adapter.r`."""
    full = f"help.{path.replace('.', '_')}"
    if full not in table():
        raise KeyError(full)
    return _MARK(full)


def language_of(request: gr.Request | None) -> str:
    """Return the language a request is to be answered in."""
    if request is None:
        return "en"
    chosen = request.cookies.get(COOKIE)
    if chosen in LANGUAGES:
        return chosen
    wanted = request.headers.get("accept-language", "").lower()
    return "ko" if wanted.startswith("ko") else "en"


class Voice:
    """Says sentences of the `page` section in one language."""

    def __init__(self, request: gr.Request | None) -> None:
        self.language = language_of(request)

    def __call__(self, key: str, **values: object) -> str:
        """Return the sentence `page.<key>`."""
        return say(f"page.{key}", self.language, **values)
