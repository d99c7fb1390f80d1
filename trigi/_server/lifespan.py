"""The application's lifespan: its startup before a block, its shutdown after it (ASGI lifespan 2.0)."""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from trigi._connection.context import Observer
from trigi._protocol.asgi import LIFESPAN_SEND, Lifespan, advance, check_text, event_of
from trigi._protocol.scope import lifespan_scope
from trigi.config import Config
from trigi.exceptions import LifespanFailed
from trigi.typing import ASGI3Application, Message

__all__ = ["LifespanCall", "open_lifespan"]


@asynccontextmanager
async def open_lifespan(
    application: ASGI3Application, config: Config, observer: Observer
) -> AsyncIterator[LifespanCall]:
    """Start the application up, run the block, shut it down.

    With `lifespan="off"` the application is not called. With `"auto"`, one that raises or returns before it says
    that its startup is complete is taken not to support lifespan, and served all the same.

    The application's call is shielded, so that its clean-up is its own to time even when everything around it is
    cancelled; it is ended here, and by nothing else.

    Raises:
        LifespanFailed: the startup failed or took longer than `startup_timeout`, before the block; the shutdown
            failed or took longer than `shutdown_timeout`, after a block that did not raise.

    Cancellation: during startup, ends the application's call. Later, the shutdown runs all the same, within its
    timeout.
    """
    call = LifespanCall(application, config, observer)
    if config.lifespan == "off":
        yield call
        return
    error: BaseException | None = None
    # What the block raises is carried past the nursery, which would wrap it in a group.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(call.run)
        try:
            await call.start_up()
            yield call
        except BaseException as raised:  # noqa: BLE001 - raised again below
            error = raised
        failure = await call.shut_down()
    if error is not None:
        raise error
    if failure is not None:
        raise failure


class LifespanCall:
    """One call of the application with a lifespan scope.

    Attributes:
        state: what the application keeps for its requests.
        context: the context variables as the startup left them, for the tasks that serve.
    """

    def __init__(self, application: ASGI3Application, config: Config, observer: Observer) -> None:
        self.state: dict[str, Any] = {}
        self.context = contextvars.copy_context()
        self._application = application
        self._config = config
        self._observer = observer
        self._phase = Lifespan.STARTING
        self._message = ""
        self._error: BaseException | None = None
        self._startup_given = False
        self._cancel_scope = trio.CancelScope()
        self._answered = trio.Event()  # the application has said how its startup went, or ended
        self._stop_wanted = trio.Event()
        self._finished = trio.Event()  # … how its shutdown went, and has nothing left to do, or ended

    async def run(self) -> None:
        """Call the application; whatever it raises ends here."""
        # No deadline stands here (I7), but shut_down() always comes, and has one.
        with self._cancel_scope:
            self._cancel_scope.shield = True
            try:
                await self._application(lifespan_scope(self.state), self._receive, self._send)
            except trio.Cancelled:
                raise
            except BaseException as error:  # noqa: BLE001 - an application may raise what it likes
                self._error = error
                if self._phase is not Lifespan.FAILED:
                    stage = "serving" if self._phase is Lifespan.RUNNING else self._phase.lower()
                    self._observer.lifespan_failed(stage, error)
        self._answered.set()
        self._finished.set()

    async def start_up(self) -> None:
        """Wait for the startup to be complete, or not to be supported."""
        with trio.move_on_after(self._config.startup_timeout) as timeout:
            await self._answered.wait()
        if timeout.cancelled_caught:
            raise LifespanFailed(
                "startup", f"took longer than startup_timeout ({self._config.startup_timeout} s)"
            )
        if self._phase is Lifespan.FAILED:
            raise LifespanFailed("startup", self._message) from self._error
        if self._phase is Lifespan.STARTING and self._config.lifespan == "on":
            reason = "the application returned" if self._error is None else f"it raised {self._error!r}"
            raise LifespanFailed("startup", f"{reason} before startup was complete") from self._error

    async def shut_down(self) -> LifespanFailed | None:
        """Have the application shut down if it has started up, and end its call; what failed."""
        timed_out = False
        if self._phase is Lifespan.RUNNING and not self._finished.is_set():
            self._phase = Lifespan.STOPPING
            self._stop_wanted.set()
            with trio.CancelScope(
                shield=True, deadline=trio.current_time() + self._config.shutdown_timeout
            ) as timeout:
                await self._finished.wait()
            timed_out = timeout.cancelled_caught
        self._cancel_scope.cancel()
        if timed_out:
            return LifespanFailed("shutdown", f"took longer than {self._config.shutdown_timeout} s")
        if self._stop_wanted.is_set() and self._phase is Lifespan.FAILED:
            return LifespanFailed("shutdown", self._message)
        return None

    async def _receive(self) -> Message:
        if not self._startup_given:
            self._startup_given = True
            return {"type": "lifespan.startup"}
        if self._phase in (Lifespan.STOPPED, Lifespan.FAILED):
            # It asks for more after its last word: nothing is left for it to do.
            self._finished.set()
            await trio.sleep_forever()
        await self._stop_wanted.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        phase = advance(LIFESPAN_SEND, self._phase, event_of(message))
        self._message = check_text(message, "message") or ""
        self._phase = phase
        if phase is Lifespan.RUNNING:
            # In the application's own task, where its context variables are as its startup has set them.
            self.context = contextvars.copy_context()
        self._answered.set()
