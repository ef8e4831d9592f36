"""Tells a webhook how a run ended: one small POST, tried again where that may help."""

from __future__ import annotations

import logging
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from lora_studio.errors import RunError
from lora_studio.runs.events import EventWriter
from lora_studio.runs.folder import RunFolder
from lora_studio.runs.history import History

log = logging.getLogger(__name__)

LIMIT_S = (3, 5)
"""Time to connect, and to wait for a word of the answer."""
RETRIES = 2
WAIT_S = 0.5
"""The first retry comes at once, the second after twice this time."""
BUSY = (429, 500, 502, 503, 504)
"""Answers after which another try may do better."""
REDIRECTED = 300
"""From this status on nothing was taken; a redirected POST would arrive without its body."""


class Webhook:
    """Tells one address once how a run ended.

    The address is a secret: whoever knows it may write there. It is put into no event, log or
    message, and so are the messages of the libraries, which repeat it.

    Args:
        url: An http or https address.
        folder: The run.
        events: Where it is noted that the address could not be told.
    """

    def __init__(self, url: str, folder: RunFolder, events: EventWriter) -> None:
        self._url = url
        self._folder = folder
        self._events = events

    def tell(self) -> None:
        """Send how the run ended; a failure is a warning event."""
        history = History(self._folder).update()
        try:
            post(self._url, message(history))
        except requests.RequestException as error:
            cause = RunError("training.webhook_failed", reason=reason(error))
            log.warning("%s", cause)
            self._events.write("warning", step=history.step, cause=cause.to_dict())


def message(history: History) -> dict[str, Any]:
    """Return what is sent of a run that is over; numbers that were never measured are None.

    `loss` and `eval_loss` are the last ones, `seconds` is from the first event to the last,
    without the time between an end and a resumption.
    """
    summary = history.summary()
    seconds = (history.last_time or 0.0) - (history.first_time or 0.0) - history.away_s
    return {
        "run": summary["id"],
        "status": summary["status"],
        "loss": summary["last_train_loss"],
        "eval_loss": summary["eval_losses"][-1] if summary["eval_losses"] else None,
        "adapter": summary["adapter"],
        "seconds": round(seconds, 1),
    }


def post(url: str, body: dict[str, Any]) -> None:
    """Send a body as JSON within twenty seconds at the worst.

    Raises:
        requests.RequestException: If it was not taken.
    """
    # It names the address when it tries again.
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    retries = Retry(
        RETRIES,
        read=False,  # it may have arrived: nobody is told twice
        redirect=False,
        backoff_factor=WAIT_S,
        status_forcelist=BUSY,
        allowed_methods=["POST"],
        raise_on_status=False,
        respect_retry_after_header=False,  # a server could ask for an hour
    )
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(max_retries=retries))
        answer = session.post(url, json=body, timeout=LIMIT_S, allow_redirects=False)
    if answer.status_code >= REDIRECTED:
        raise requests.HTTPError(response=answer)


def reason(error: requests.RequestException) -> str:
    """Return why it was not taken, in a word or a number."""
    return str(error.response.status_code) if error.response is not None else type(error).__name__
