"""Starts the page: the only place that knows how Gradio is launched."""

from __future__ import annotations

import logging
import os
import threading

# Read by gradio when it is imported.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from lora_studio.cases.machine import Machine
from lora_studio.errors import RunError
from lora_studio.settings import Settings
from lora_studio.studio import Studio
from lora_studio.ui.language import translations
from lora_studio.ui.page import build_page
from lora_studio.ui.protection import Protection
from lora_studio.wording import ASSETS

log = logging.getLogger(__name__)

LOOK_FOR_CLICK_S, LOOK_FOR_PROGRESS_S = 0.02, 0.1
"""Too short to be felt."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(settings: Settings, *, block: bool = True) -> gr.Blocks:
    """Serve the page until interrupted.

    Args:
        settings: Address, limits and home folder.
        block: Return at once if False; `page.close()` then ends it.

    Raises:
        RunError: If the page would listen beyond this machine without a password.
    """
    is_space = settings.space_id is not None
    if settings.host not in LOOPBACK and not is_space and settings.auth is None:
        raise RunError("run.needs_password", host=settings.host)
    studio = Studio(settings, Machine.open(settings, isolated=True))
    studio.shipping.sweep()
    page = build_page(studio)
    page.queue(default_concurrency_limit=8)
    # Gradio looks for a click a thousand times a second and for progress a hundred times, 7 % of a
    # core while nobody is there. It has no setting for that (queueing.py, 6.31).
    page._queue.sleep_when_free = LOOK_FOR_CLICK_S  # noqa: SLF001
    page._queue.progress_update_sleep_when_free = LOOK_FOR_PROGRESS_S  # noqa: SLF001
    try:
        page.launch(
            server_name=settings.host,
            server_port=settings.port,
            share=False,
            show_error=False,
            auth=settings.auth,
            max_file_size=settings.max_upload_mb * 1_000_000,
            theme=_theme(),
            css_paths=ASSETS / "studio.css",
            i18n=translations(),
            app_kwargs={"middleware": _middleware(settings)},
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
            # Else Gradio asks its own page once, and on a busy machine gives up after 3 seconds.
            _frontend=False,
        )
        log.info("LoRA Studio is at %s", page.local_url)
        studio.line.keep_dispatching()
        if is_space:
            threading.Thread(target=studio.models.fetch_starter, daemon=True).start()
        if block:
            page.block_thread()
    finally:
        if block:
            studio.close()
    return page


def _middleware(settings: Settings) -> list[Middleware]:
    space = settings.space_id is not None
    stack = [Middleware(Protection, space=space)]
    if settings.host in LOOPBACK and not space:
        # A page of another name that resolves to this address (DNS rebinding) is refused.
        stack.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK)))
    return stack


def _theme() -> gr.themes.Base:
    """Return the look: one accent, slate greys, the platform's own fonts."""
    fonts = ("system-ui", "-apple-system", "Segoe UI", "Apple SD Gothic Neo", "Malgun Gothic",
             "Noto Sans KR", "Noto Sans CJK KR", "sans-serif")  # fmt: skip
    return gr.themes.Base(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=fonts,
        font_mono=("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"),
        radius_size="md",
    ).set(
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_text_color="white",
        button_primary_background_fill_dark="#2dd4bf",
        button_primary_background_fill_hover_dark="#5eead4",
        button_primary_text_color_dark="#0b1f1d",
        body_background_fill="#f6f7f9",
        body_background_fill_dark="#10161d",
        block_background_fill_dark="#182029",
        block_shadow="none",
        slider_color="#0f766e",
        slider_color_dark="#2dd4bf",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
    )
