"""A call of an application: in its exchange's cancel scope, so that whatever comes out of it ends here (I6)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from math import inf
from types import coroutine
from typing import Any

import trio

from trigi.exceptions import ClientDisconnected
from trigi.typing import Receive, Send

from .exchange import Exchange

__all__ = ["call_application", "failure_of"]


@trio.lowlevel.enable_ki_protection  # Ctrl-C belongs to the program that serves, not to whichever request is running
async def call_application(
    exchange: Exchange, scope: dict[str, Any], receive: Receive, send: Send
) -> BaseException | None:
    """Call the application, and give what went wrong in it, `None` if nothing did.

    No failure but the application's own is given: not that the client has gone, in whatever exception group or
    framework's exception that comes back, and not that the exchange or the server was cancelled. Every other
    exception is: `SystemExit` and a stray `Cancelled` end the request and nothing else.

    Cancellation: from outside, the next checkpoint of the caller raises.
    """
    try:
        with exchange.cancel_scope:
            call = exchange.context.application(scope, receive, send)
            await (call if exchange.on_wait is None else _notice_wait(_run(call), exchange.on_wait))
    except BaseException as error:  # noqa: BLE001 - see above
        return failure_of(error, disconnected=exchange.disconnected)
    finally:
        exchange.context.running.discard(exchange)
    return None


def failure_of(error: BaseException, *, disconnected: bool) -> BaseException | None:
    """What of an exception is a failure: not that the task was cancelled, nor that its client has disconnected."""
    cancelled = trio.current_effective_deadline() == -inf

    def is_expected(leaf: BaseException) -> bool:
        if isinstance(leaf, BaseExceptionGroup):
            return False
        if isinstance(leaf, trio.Cancelled):
            return cancelled
        return disconnected and _comes_of_disconnect(leaf)

    if isinstance(error, BaseExceptionGroup):
        try:
            return error.split(is_expected)[1]
        except Exception:  # noqa: BLE001 - of a group of the application's own making
            return error
    return None if is_expected(error) else error


def _comes_of_disconnect(error: BaseException) -> bool:
    """Whether it is the `ClientDisconnected` that `send()` raised, or was raised while that was handled."""
    seen = set()
    chain: BaseException | None = error
    while chain is not None and id(chain) not in seen:
        if isinstance(chain, ClientDisconnected):
            return True
        seen.add(id(chain))
        chain = chain.__cause__ or chain.__context__
    return False


async def _run(call: Awaitable[object]) -> None:
    await call


@coroutine
def _notice_wait(call: Coroutine[Any, Any, None], notice: Callable[[], None]) -> Generator[Any, Any, None]:
    """Await the call as `await` does, but call `notice` when it waits for the first time."""
    try:
        trap = call.send(None)
        notice()
        while True:
            try:
                outcome = yield trap
            except GeneratorExit:
                call.close()
                raise
            except BaseException as error:  # noqa: BLE001 - the call's to handle
                trap = call.throw(error)
            else:
                trap = call.send(outcome)
    except StopIteration:
        return
