"""One object, served in a spawned child process over a pipe.

It knows nothing of models: it carries calls, streams and errors, ends the child, and starts a
new one after a death. What holds gigabytes lives in such a child, because only the end of a
process gives back every byte, and because a process killed for memory must not take the page
with it.

Two pipes lead to the child. Calls and streams take turns on the first; the second carries
interrupts and cancellations, so that they arrive while a stream runs. When the parent dies both
pipes end, and the child with them.
"""

from __future__ import annotations

import importlib
import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import psutil

from lora_studio.errors import StudioError

logger = logging.getLogger(__name__)

Factory = str | Callable[..., Any]

TERMINATE_GRACE_S = 3.0
"""How long a child may take to end by itself before it is killed."""
DRAIN_GRACE_S = 30.0
"""How long a closed stream may take to its next item, a long prompt's reading included."""


class Child:
    """A lazily started child process that holds one object and answers for it.

    Calls from several threads take turns; an open stream keeps its turn until it is exhausted
    or closed, so one thread must not call while its own stream is open.

    Args:
        factory: What builds the object inside the child: `"module:Class"`, or a callable the
            child can import. Naming it by text keeps its imports out of this process.
        args: Arguments of the factory; they are pickled.
    """

    def __init__(self, factory: Factory, *args: Any) -> None:
        self._factory = factory
        self._args = args
        self._turn = threading.Lock()
        self._state = threading.Lock()
        self._link: _Link | None = None
        self._is_closed = False
        self._tickets = itertools.count(1)

    @property
    def alive(self) -> bool:
        """Whether a child is running now."""
        link = self._link
        return link is not None and link.process.is_alive()

    @property
    def pid(self) -> int | None:
        """Process id of the running child, or None."""
        link = self._link
        return link.process.pid if link is not None and link.process.is_alive() else None

    def call(self, method: str, **kwargs: Any) -> Any:
        """Call a method of the object, starting the child if needed, and return its result.

        Raises:
            StudioError: The object's own, as itself; `chat.child_failed` for any other
                exception; `chat.child_died` or `chat.child_closed` if the child ends meanwhile.
        """
        with self._turn:
            link = self._running()
            self._send(link, (next(self._tickets), False, method, kwargs))
            kind, value = self._receive(link)
        if kind == "error":
            raise value
        return value

    def stream(self, method: str, **kwargs: Any) -> Iterator[Any]:
        """Call a generator method and yield its items as they come.

        Closing the iterator early returns at once: the generator in the child is closed at its
        next item, and the turn kept until then.

        Raises:
            StudioError: As `call`, at the item where it happens.
        """
        self._turn.acquire()
        is_going_on = False
        try:
            link = self._running()
            ticket = next(self._tickets)
            self._send(link, (ticket, True, method, kwargs))
            is_going_on = True
            while True:
                kind, value = self._receive(link)
                is_going_on = kind == "item"
                if kind == "error":
                    raise value
                if not is_going_on:
                    return
                yield value
        finally:
            if is_going_on:
                link.control("cancel", ticket)
                threading.Thread(target=self._drain, args=(link,), daemon=True).start()
            else:
                self._turn.release()

    def interrupt(self, method: str, **kwargs: Any) -> None:
        """Call a method of the object beside whatever runs, without waiting for it.

        Nothing happens when there is no child, or its object is not built yet.
        """
        link = self._link
        if link is not None:
            link.control("call", (method, kwargs))

    def retire(self) -> None:
        """End the child once nobody has the turn."""
        with self._turn:
            self.close()

    def close(self) -> None:
        """End the child, which gives back every byte.

        A call that is waiting meanwhile raises `chat.child_closed`, and so does every later one
        until `open`: whoever began before must not start a child for which there is no room now.
        """
        with self._state:
            link, self._link = self._link, None
            self._is_closed = True
        if link is not None:
            link.end()

    def open(self) -> None:
        """Let calls start a child again; it starts with the first of them."""
        with self._state:
            self._is_closed = False

    def _running(self) -> _Link:
        with self._state:
            if self._is_closed:
                raise StudioError("chat.child_closed")
            if self._link is None or not self._link.process.is_alive():
                self._link = _start(self._factory, self._args)
            return self._link

    def _send(self, link: _Link, request: tuple[int, bool, str, dict[str, Any]]) -> None:
        try:
            link.work.send(request)
        except OSError as error:
            raise self._lost(link) from error

    def _receive(self, link: _Link) -> tuple[str, Any]:
        try:
            return link.work.recv()
        except (EOFError, OSError) as error:
            raise self._lost(link) from error

    def _lost(self, link: _Link) -> StudioError:
        """Forget a child that ended, and say whether it was meant to; it is gone then."""
        self._forget(link)
        was_closed = link.closed
        link.end()  # its pipe may close before what else it had open
        if was_closed:
            return StudioError("chat.child_closed")
        logger.error("child %s died with exit code %s", link.process.pid, link.process.exitcode)
        return StudioError("chat.child_died")

    def _forget(self, link: _Link) -> None:
        with self._state:
            if self._link is link:
                self._link = None

    def _drain(self, link: _Link) -> None:
        """Read off what a cancelled stream has sent, then give back its turn; end one that hangs.

        Its last items may still be under way: whoever reads next must not be given them.
        """
        deadline = time.monotonic() + DRAIN_GRACE_S
        try:
            while link.work.poll(max(0.0, deadline - time.monotonic())):
                if link.work.recv()[0] != "item":
                    return
            self._forget(link)
            link.end()
        except (EOFError, OSError):
            self._lost(link)
        finally:
            self._turn.release()


class InProcess:
    """The same object and the same calls without a child.

    For the command line, and for machines that lend their accelerator to one process only.
    Exceptions come as they are.

    Args:
        factory: As `Child`; built at the first call.
        args: Arguments of the factory.
    """

    def __init__(self, factory: Factory, *args: Any) -> None:
        self._factory = factory
        self._args = args
        self._building = threading.Lock()
        self._target: Any = None
        self._is_closed = False

    @property
    def alive(self) -> bool:
        """Whether the object is built."""
        return self._target is not None

    @property
    def pid(self) -> int | None:
        """This process, once the object is built."""
        return os.getpid() if self.alive else None

    def call(self, method: str, **kwargs: Any) -> Any:
        """Call a method of the object, and return its result.

        Raises:
            StudioError: `chat.child_closed` between `close` and `open`.
        """
        with self._building:
            if self._is_closed:
                raise StudioError("chat.child_closed")
            if self._target is None:
                self._target = _resolve(self._factory)(*self._args)
            target = self._target
        return getattr(target, method)(**kwargs)

    def stream(self, method: str, **kwargs: Any) -> Iterator[Any]:
        """Call a generator method and yield its items."""
        yield from self.call(method, **kwargs)

    def interrupt(self, method: str, **kwargs: Any) -> None:
        """Call a method from another thread while a stream runs; nothing before the first call."""
        target = self._target
        if target is not None:
            getattr(target, method)(**kwargs)

    def retire(self) -> None:
        """Let go of the object."""
        self.close()

    def close(self) -> None:
        """Let go of the object; calls are refused until `open`."""
        with self._building:
            self._target = None
            self._is_closed = True

    def open(self) -> None:
        """Let calls build the object again."""
        self._is_closed = False


@dataclass(eq=False)
class _Link:
    """The parent's ends: a running child and its two pipes."""

    process: SpawnProcess
    work: Connection
    side: Connection
    closed: bool = False

    def __post_init__(self) -> None:
        self._side_turn = threading.Lock()
        self._ending = threading.Lock()

    def control(self, kind: str, value: Any) -> None:
        """Send on the side pipe; a child that is gone needs no message."""
        try:
            with self._side_turn:
                self.side.send((kind, value))
        except OSError:
            logger.debug("child %s is gone", self.process.pid)

    def end(self) -> None:
        """End the process and reap it. The pipes close when their last reader lets go."""
        self.closed = True
        with self._ending:
            if self.process.is_alive():  # the number of one that was reaped may be another's by now
                _end_children(self.process.pid)
            self.process.terminate()
            self.process.join(TERMINATE_GRACE_S)
            if self.process.is_alive():
                self.process.kill()
                self.process.join()


def _start(factory: Factory, args: tuple[Any, ...]) -> _Link:
    context = multiprocessing.get_context("spawn")
    work, child_work = context.Pipe()
    side, child_side = context.Pipe()
    process = context.Process(
        target=_serve, args=(child_work, child_side, factory, args), daemon=True
    )
    process.start()
    # Only the child may hold its own ends, or its death would never show as the end of a pipe.
    child_work.close()
    child_side.close()
    return _Link(process, work, side)


def _serve(work: Connection, side: Connection, factory: Factory, args: tuple[Any, ...]) -> None:
    """Run the child: requests on this thread, interrupts on another."""
    # Ctrl-C in the terminal reaches the whole group; the parent is the one that ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = _Server(work, factory, args)
    threading.Thread(target=server.listen, args=(side,), daemon=True).start()
    server.run()


class _Server:
    """The child's side: builds the object at the first request, and answers for it."""

    def __init__(self, work: Connection, factory: Factory, args: tuple[Any, ...]) -> None:
        self.work = work
        self.factory = factory
        self.args = args
        self.target: Any = None
        self.cancelled = 0

    def run(self) -> None:
        """Answer requests until the parent is gone."""
        try:
            while True:
                self.answer(*self.work.recv())
        except (EOFError, OSError):
            return

    def listen(self, side: Connection) -> None:
        """Obey interrupts and cancellations; leave at once when the parent is gone."""
        try:
            while True:
                kind, value = side.recv()
                if kind == "cancel":
                    self.cancelled = value
                elif self.target is not None:
                    method, kwargs = value
                    bound = getattr(self.target, method)
                    threading.Thread(target=bound, kwargs=kwargs, daemon=True).start()
        except (EOFError, OSError):
            _end_children(os.getpid())
            os._exit(0)  # the main thread may be deep in a computation that nobody waits for

    def answer(self, ticket: int, streamed: bool, method: str, kwargs: dict[str, Any]) -> None:  # noqa: FBT001 - from a pipe
        """Send a result, or a stream's items and its end, or an error."""
        try:
            if self.target is None:
                self.target = _resolve(self.factory)(*self.args)
            result = getattr(self.target, method)(**kwargs)
            if streamed:
                self.forward(ticket, result)
                result = None
            self.work.send(("result", result))
        except (BrokenPipeError, ConnectionResetError):
            raise
        except StudioError as error:
            self.work.send(("error", error))
        except Exception as error:  # the boundary of the process: nothing may leave it raw
            logger.error("%s failed in the child", method, exc_info=error)
            cause = f"{type(error).__name__}: {error}"
            self.work.send(("error", StudioError("chat.child_failed", cause=cause)))

    def forward(self, ticket: int, items: Iterable[Any]) -> None:
        """Send a stream's items until it ends or is cancelled, then close it."""
        try:
            for item in items:
                if self.cancelled == ticket:
                    return
                self.work.send(("item", item))
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()


def _end_children(pid: int | None) -> None:
    """End the programs that a process has started: its own end would leave them running."""
    with suppress(psutil.Error):
        for one in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                one.kill()


def _resolve(factory: Factory) -> Callable[..., Any]:
    """Import a factory that is given as `module:name`."""
    if not isinstance(factory, str):
        return factory
    module, _, name = factory.partition(":")
    built: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return built
