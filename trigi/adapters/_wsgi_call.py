"""One call of a WSGI application: a thread, and a task that waits for it.

In the thread is all that is the application's, from `application(environ, start_response)` to `close()`. What it
produces it puts into an outbox, from which the task sends; it crosses to the task to read the request's body, and where
it has to wait (`_wsgi_crossing.py`).
"""

from __future__ import annotations

import io
import logging
import os
import stat
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from wsgiref.util import FileWrapper

import trio

from trigi.exceptions import ApplicationError
from trigi.typing import Message, Receive, Scope, Send, WSGIApplication

from ._wsgi_crossing import Crossing, Outbox
from ._wsgi_environ import make_environ
from ._wsgi_input import ErrorStream, Input
from ._wsgi_start import check_start

__all__ = ["WSGICall"]

logger = logging.getLogger("trigi.error")

STUCK_SHARE = 0.9
"""Of `cleanup_timeout`, after which a thread is reported: a process that gives up then does it with the report."""

ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]


class WSGICall:
    """One call of an application, from its environ to the end of its response.

    Attributes:
        environ: what the application is called with.
    """

    def __init__(
        self, application: WSGIApplication, scope: Scope, receive: Receive, *, is_multithread: bool
    ) -> None:
        self._application = application
        self._scope = scope
        self._crossing = Crossing()
        self._outbox = Outbox(self._crossing)
        self.environ = make_environ(scope)
        self._input = Input(receive, self._crossing, expects_continue="HTTP_EXPECT" in self.environ)
        self._errors = ErrorStream()
        self._must_look = _sends_into_the_void(scope)
        self.environ |= {
            "wsgi.input": self._input,
            "wsgi.errors": self._errors,
            "wsgi.file_wrapper": FileWrapper,
            "wsgi.multithread": is_multithread,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        self._start: Message | None = None  # as start_response() was called last
        self._started = False  # it can't be replaced any more
        self._complete = False  # the response has all its body
        self._bodyless = False
        self._remaining: int | None = None  # bytes of body that the content-length still promises
        self._error: BaseException | None = None
        self._ended = trio.Event()

    # In trio

    async def run(self, send: Send, limiter: trio.CapacityLimiter, cleanup_timeout: float) -> None:
        """Call the application in a thread, send what it produces, and wait for its end.

        Raises:
            BaseException: the application's own, once what it has produced before is sent. If the call was cancelled,
                it is in a group, beside `trio.Cancelled`.
            ApplicationError: the server has refused what was sent.

        Cancellation: as for `WSGIAdapter`.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._wait_for_thread, limiter)
                try:
                    await self._outbox.deliver(send)
                except BaseException:
                    self._crossing.close()
                    nursery.cancel_scope.cancel()
                    seconds = cleanup_timeout * STUCK_SHARE
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + seconds):
                        await self._ended.wait()
                    if not self._ended.is_set():
                        self._report_stuck(seconds)
                    raise
        except BaseException as cancelled:
            _, error = self._take_errors()
            if error is None:
                raise
            errors = [cancelled, error]
            try:
                raise BaseExceptionGroup("a WSGI application failed, and was cancelled", errors) from None
            finally:
                del error, errors
        self._crossing.close()
        failure, error = self._take_errors()
        try:
            if failure is not None and not isinstance(failure, OSError):
                raise failure from (None if error is failure else error)
            if error is not None:
                raise error
        finally:
            del failure, error

    def _take_errors(self) -> tuple[Exception | None, BaseException | None]:
        """What `send()` raised, and what the application did: not kept, as their tracebacks lead back here."""
        failure, self._outbox.failure = self._outbox.failure, None
        error, self._error = self._error, None
        return failure, error

    @trio.lowlevel.enable_ki_protection  # Ctrl-C belongs to the program that serves
    async def _wait_for_thread(self, limiter: trio.CapacityLimiter) -> None:
        try:
            await trio.to_thread.run_sync(self._run_in_thread, limiter=limiter, thread_name="wsgi")
        finally:
            self._ended.set()
            self._outbox.end()

    def _report_stuck(self, seconds: float) -> None:
        """Name the thread, and where in the application it is."""
        frame = sys._current_frames().get(self._crossing.thread or 0)  # noqa: SLF001 - as its documentation says
        stack = "" if frame is None else "".join(traceback.format_stack(frame))
        method = ascii(self._scope["method"])[1:-1]
        target = ascii(self.environ["REQUEST_URI"])[1:-1]
        logger.warning(
            "WSGI application still running %.1f s after it was cancelled, on %s %s, in thread %s:\n%s",
            seconds,
            method,
            target,
            self._crossing.thread,
            stack,
            extra={"trigi": {"method": method, "target": target, "thread": self._crossing.thread}},
        )

    # In the thread

    def _run_in_thread(self) -> None:
        self._crossing.thread = threading.get_ident()
        try:
            result = self._application(self.environ, self.start_response)
            try:
                self._send_result(result)
            except trio.Cancelled:
                raise
            except BaseException as error:
                self._error = error  # unless close() fails as well: not if it is cancelled
                raise
            finally:
                close = getattr(result, "close", None)
                if close is not None:
                    close()
        except trio.Cancelled:
            if self._error is None:
                raise
        except BaseException as error:  # noqa: BLE001 - raised in the task, by run()
            self._error = error
        finally:
            self._errors.flush()
            self._crossing.thread = None  # it will be another request's

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], None]:
        """The response begins, or begins anew with an error's (PEP 3333, "The start_response Callable").

        Raises:
            ApplicationError: it was called before, without `exc_info`; or status and headers are not as they should be.
            BaseException: that of `exc_info`, if it comes too late.
        """
        if exc_info is not None and exc_info[1] is not None:
            try:
                if self._started:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # or it would be part of a cycle
        elif self._start is not None:
            raise ApplicationError("start_response() was called before: a second call needs exc_info")
        code, fields, length = check_start(status, headers)
        self._start = {"type": "http.response.start", "status": code, "headers": fields}
        self._bodyless = self._scope["method"] == "HEAD" or code in (204, 304)
        self._remaining = length
        return self.write

    def write(self, data: bytes, /) -> None:
        """The older way to send a piece of the body; raises what a step of the iteration would."""
        if not isinstance(data, bytes):
            raise ApplicationError(f"write() takes bytes, got {type(data).__name__}")
        if self._remaining is not None and len(data) > self._remaining and not self._bodyless:
            raise ApplicationError(
                f"write(): {len(data) - self._remaining} bytes more than the Content-Length"
            )
        if data and self._complete:
            raise ApplicationError("write() was called after the end of the response")
        if data and self._bodyless:
            # An iteration would just be ended. Who writes for ever has to learn that the client has left.
            self._outbox.put(*self._take_start(), b"")
            self._input.check_client()
        else:
            self._send_block(data)

    def _send_result(self, result: Iterable[bytes]) -> None:
        """Iterate, and send each block before the next is asked for."""
        if type(result) is FileWrapper and self._send_file(result):
            return
        if self._complete:  # by write()
            return
        if type(result) in (list, tuple) and self._send_list(result):
            return
        for block in result:
            if not isinstance(block, bytes):
                raise ApplicationError(
                    f"a WSGI application gives blocks of bytes, got {type(block).__name__}"
                )
            if self._send_block(block):
                return
        self._complete = True
        self._add_length(0)
        self._outbox.put(*self._take_start(), last=True)

    def _send_list(self, blocks: Iterable[bytes]) -> bool:
        """Send a whole body at once, unless there is something about it. It has no `close()`, and the thread ends."""
        if not all(isinstance(block, bytes) for block in blocks):
            return False
        length = sum(map(len, blocks))
        self._add_length(length)
        if self._bodyless or self._remaining not in (None, length):
            return False
        self._complete = True
        self._outbox.put(*self._take_start(), *filter(None, blocks), last=True, wake=False)
        return True

    def _send_block(self, block: bytes) -> bool:
        """Send a block, and with the first that is not empty the start; whether the response is complete."""
        if (
            self._complete
        ):  # by write(), after which the iteration gives nothing but empty blocks, or too many
            self._outbox.check()
            return True
        if not block or self._must_look:
            self._input.check_client()
        if not block:
            self._outbox.check()
            return False
        start = self._take_start()
        if self._bodyless:
            self._complete = True
        elif self._remaining is not None:
            # PEP 3333, "Handling the Content-Length Header": not more than it says, and no iteration after that.
            block = block[: self._remaining]
            self._remaining -= len(block)
            self._complete = self._remaining == 0
        body = () if self._bodyless or not block else (block,)
        self._outbox.put(*start, *body, last=self._complete)
        return self._complete

    def _take_start(self) -> list[Message]:
        """The start of the response, if it is not sent yet."""
        if self._started:
            return []
        if self._start is None:
            raise ApplicationError("start_response() was not called before the body")
        self._started = True
        return [self._start]

    def _add_length(self, length: int) -> None:
        """Say how long the body is, if the application has not, and could have."""
        if self._start is None or self._started or self._remaining is not None:
            return
        # The answer to HEAD may have been left empty, and says nothing of GET's then.
        if self._start["status"] in (204, 304) or (self._bodyless and not length):
            return
        self._start["headers"].append((b"content-length", b"%d" % length))
        self._remaining = length

    def _send_file(self, wrapper: FileWrapper) -> bool:
        """Have the server send a regular file, from where it is (PEP 3333, "Optional Platform-Specific File Handling").

        Returns:
            Whether it does. Otherwise the file is to be read like any other iterable.
        """
        file = wrapper.filelike
        span = _span(file)
        if span is None or self._start is None or self._bodyless or self._complete:
            return False
        position, size = span
        count = size - position if self._remaining is None else min(size - position, self._remaining)
        extensions = self._scope.get("extensions") or {}
        if count <= 0:
            return False
        if "http.response.zerocopysend" in extensions:
            message = {"type": "http.response.zerocopysend", "file": file, "offset": position, "count": count}
        elif "http.response.pathsend" in extensions and count == size and not self._started:
            path = _path(file)
            if path is None:
                return False
            message = {"type": "http.response.pathsend", "path": path}
        else:
            return False
        self._add_length(count)
        self._complete = True
        self._outbox.put(*self._take_start(), message, last=True)
        self._outbox.flush()
        return True


def _sends_into_the_void(scope: Scope) -> bool:
    """Whether `send()` does not raise once the client has left: ASGI has that since HTTP 2.4."""
    major, _, minor = scope["asgi"].get("spec_version", "2.0").partition(".")
    return major == "2" and minor.isdecimal() and int(minor) < 4


def _span(file: Any) -> tuple[int, int] | None:
    """Position and size of an open regular file, if it is one and nothing else: what decompresses has other bytes."""
    raw = file.raw if type(file) is io.BufferedReader else file
    if type(raw) is not io.FileIO:
        return None
    with suppress(OSError, ValueError):
        status = os.fstat(file.fileno())
        if stat.S_ISREG(status.st_mode):
            return file.tell(), status.st_size
    return None


def _path(file: Any) -> str | None:
    """By which path an open file can be opened again, if by any."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        path = Path(os.fsdecode(file.name)).absolute()
        if os.path.samestat(path.stat(), os.fstat(file.fileno())):
            return str(path)
    return None
