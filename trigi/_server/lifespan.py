"""The application's lifespan: its startup before a block, its shutdown after it (ASGI lifespan 2.0)."""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from trigi._connection.observer import Observer
from trigi._protocol.asgi import LIFESPAN_SEND, Lifespan, advance, check_text, event_of
from trigi._protocol.scope import lifespan_scope
from trigi.config import Config
from trigi.exceptions import LifespanFailed
from trigi.typing import ASGI3Application, Message

__all__ = ["LifespanCall", "open_lifespan"]


@asynccontextmanager
async def open_lifespan(
    application: ASGI3Application,
    config: Config,
    observer: Observer,
    report_stuck: Callable[[LifespanFailed | None], None] = lambda _: None,
) -> AsyncIterator[LifespanCall]:
    """Start the application up, run the block, shut it down.

    With `lifespan="off"` the application is not called. With `"auto"`, one that raises or returns before it says
    that its startup is complete is taken not to support lifespan, and served all the same.

    The application's call is shielded, so that its clean-up is its own to time even when everything around it is
    cancelled; it is ended here, and by nothing else.

    Args:
        application: to be called with a lifespan scope.
        config: `lifespan` and the timeouts are read.
        observer: is told what the application raises.
        report_stuck: called when the application's call is still running `cleanup_timeout` seconds after it was
            cancelled; with what had failed, if something had. It is waited for all the same.

    Raises:
        LifespanFailed: the startup failed or took longer than `startup_timeout`, before the block; the shutdown
            failed, raised, or took longer than `shutdown_timeout`, after a block that did not raise.

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
        if not await call.wait_ended():
            report_stuck(error if isinstance(error, LifespanFailed) else failure)
    if error is not None:
        if failure is not None:
            observer.lifespan_failed("stopping", failure)  # which nobody else would hear of
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
        self._shutdown_given = False
        self._cancel_scope = trio.CancelScope()
        self._answered = trio.Event()  # the application has said how its startup went, or ended
        self._stop_wanted = trio.Event()
        self._finished = trio.Event()  # … its last word, and has nothing left to do, or ended
        self._ended = trio.Event()

    @trio.lowlevel.enable_ki_protection  # Ctrl-C belongs to the program that serves: here it would end as an error
    async def run(self) -> None:
        """Call the application; whatever it raises ends here."""
        # No deadline stands here (I7), but shut_down() always comes, and has one.
        with self._cancel_scope:
            self._cancel_scope.shield = True
            try:
                await self._application(lifespan_scope(self.state), self._receive, self._send)
            except BaseException as error:  # noqa: BLE001 - an application may raise what it likes
                self._error = self._failure(error)
        if self._error is not None and self._phase is not Lifespan.FAILED:
            self._observer.lifespan_failed(self._stage, self._error)
        self._answered.set()
        self._finished.set()
        self._ended.set()

    def _failure(self, error: BaseException) -> BaseException | None:
        """What went wrong beside being cancelled, which a nursery of the application's gives as a group."""
        if not self._cancel_scope.cancel_called:
            return error
        if isinstance(error, BaseExceptionGroup):
            return error.split(trio.Cancelled)[1]
        return None if isinstance(error, trio.Cancelled) else error

    @property
    def _stage(self) -> str:
        """Where it raised, in an observer's words."""
        if self._cancel_scope.cancel_called or self._phase in (Lifespan.STOPPING, Lifespan.STOPPED):
            return "stopping"
        return "serving" if self._phase is Lifespan.RUNNING else "starting"

    async def start_up(self) -> None:
        """Wait for the startup to be complete, or not to be supported."""
        with trio.move_on_after(self._config.startup_timeout) as timeout:
            await self._answered.wait()
            if self._phase is Lifespan.FAILED:
                await self._finished.wait()  # it may have something to clean up, and raise the cause
        if self._phase is Lifespan.FAILED:
            raise LifespanFailed("startup", self._message or self._raised()) from self._error
        if timeout.cancelled_caught:
            raise LifespanFailed(
                "startup", f"took longer than startup_timeout ({self._config.startup_timeout} s)"
            )
        if self._phase is Lifespan.STARTING and self._config.lifespan == "on":
            reason = self._raised() or "the application returned"
            raise LifespanFailed("startup", f"{reason} before startup was complete") from self._error

    async def shut_down(self) -> LifespanFailed | None:
        """Have the application shut down if it has started up, and cancel its call; what failed."""
        failure: LifespanFailed | None = None
        if self._phase is Lifespan.RUNNING and not self._finished.is_set():
            self._phase = Lifespan.STOPPING
            self._stop_wanted.set()
            seconds = self._config.shutdown_timeout
            with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds):
                await self._finished.wait()
            if self._phase is Lifespan.FAILED or self._error is not None:
                failure = LifespanFailed("shutdown", self._message or self._raised())
                failure.__cause__ = self._error
            elif not self._finished.is_set():
                failure = LifespanFailed("shutdown", f"took longer than shutdown_timeout ({seconds} s)")
        self._cancel_scope.cancel()
        return failure

    async def wait_ended(self) -> bool:
        """Wait for the cancelled call to end, for `cleanup_timeout` at most; whether it has."""
        seconds = self._config.cleanup_timeout
        with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds):
            await self._ended.wait()
        return self._ended.is_set()

    def _raised(self) -> str:
        return "" if self._error is None else f"it raised {self._error!r}"

    async def _receive(self) -> Message:
        if not self._startup_given:
            self._startup_given = True
            return {"type": "lifespan.startup"}
        if self._phase in (Lifespan.STOPPED, Lifespan.FAILED):
            # It asks for more after its last word: nothing is left for it to do.
            self._finished.set()
            await trio.sleep_forever()
        await self._stop_wanted.wait()
        if self._shutdown_given:
            await trio.sleep_forever()  # there is no third event
        self._shutdown_given = True
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        phase = advance(LIFESPAN_SEND, self._phase, event_of(message))
        self._message = check_text(message, "message") or ""
        self._phase = phase
        if phase is Lifespan.RUNNING:
            # In the application's own task, where its context variables are as its startup has set them.
            self.context = contextvars.copy_context()
        self._answered.set()
