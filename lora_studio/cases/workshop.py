"""What takes minutes and a model's memory: exports and uploads, one at a time on a machine.

Each has a process of its own, which is ended after it. So the memory comes back, and what the
page asks the workbench meanwhile is answered.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from lora_studio.child import Child, InProcess
from lora_studio.errors import StudioError

GRACE_S = {"export": 3.0, "push": 30.0}
"""How long stopped work may take to its next report before its process is ended. Of an export only
files are left then, which go; what was made on the Hub only the work itself takes back."""

ENDING = "workshop-ending"
"""The thread that clears up after work that its reader has left."""


@dataclass(eq=False, slots=True)
class _Work:
    """What goes on now."""

    owner: str
    grace_s: float
    child: Child | InProcess
    is_stopped: bool = False


class Workshop:
    """Does one work after the other; who comes meanwhile is told so.

    Args:
        serve: Makes what serves a `Workbench`.
    """

    def __init__(self, serve: Callable[[], Child | InProcess]) -> None:
        self._serve = serve
        self._turn = threading.Lock()
        self._work: _Work | None = None

    def stream(
        self, method: str, *, owner: str, held: ExitStack, **asked: Any
    ) -> Generator[dict[str, Any], None, None]:
        """Do some work; its result comes when its process is ended.

        Closing the iterator returns at once, and the work ends at its next report.

        Args:
            method: Of the workbench: `export` or `push`.
            owner: Who may stop it.
            held: Closed when the process is ended, however that came.
            asked: Of the method.

        Yields:
            What the method yields.

        Raises:
            StudioError: The method's own; `shipping.one_at_a_time` if there is other work,
                `shipping.stopped` if it was stopped.
        """
        if not self._turn.acquire(blocking=False):
            held.close()
            raise StudioError("shipping.one_at_a_time")
        work = self._work = _Work(owner, GRACE_S[method], self._serve())
        events = work.child.stream(method, **asked)
        result: dict[str, Any] | None = None
        is_left = False
        try:
            for event in events:
                if work.is_stopped:  # it may have been too young to hear of it
                    work.child.interrupt("stop")
                if "result" in event:
                    result = event
                else:
                    yield event
        except GeneratorExit:
            is_left = True
            raise
        except StudioError as error:
            if work.is_stopped and error.key == "chat.child_closed":  # by force
                raise StudioError("shipping.stopped") from error
            raise
        finally:
            events.close()  # type: ignore[attr-defined]  # both kinds make generators
            if is_left:  # it may be the page's own event loop that does not wait
                threading.Thread(target=self._end, args=(work, held), name=ENDING).start()
            else:
                self._end(work, held)
        if result is not None:
            yield result

    def stop(self, owner: str) -> bool:
        """Have this owner's work end; its stream raises when it has, unless it was done before.

        Returns:
            Whether there is such work.
        """
        work = self._work
        if work is None or work.owner != owner:
            return False
        work.is_stopped = True
        work.child.interrupt("stop")
        killer = threading.Timer(work.grace_s, work.child.close)
        killer.daemon = True
        killer.start()
        return True

    def close(self) -> None:
        """End the process of the work that goes on."""
        work = self._work
        if work is not None:
            work.is_stopped = True
            work.child.close()

    def _end(self, work: _Work, held: ExitStack) -> None:
        try:
            work.child.retire()
            held.close()
        finally:
            self._work = None
            self._turn.release()
