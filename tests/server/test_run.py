"""A server as a process of its own: signals, exit statuses, and what it prints. Real processes, real sockets.

Nothing here sleeps: the application says on stderr what happens to it, and the tests wait for that.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from trigi.testing import HTTPClient, IncompleteResponse
from trigi.testing.websocket import WebSocketClient

SECONDS = 30
"""What anything here may take before it hangs: the machine may be busy."""

APP = """
import sys
import time

import trio


def say(*words):
    print("app:", *words, file=sys.stderr, flush=True)


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    name = scope["path"].strip("/") or "hello"
    say(name, "began")
    try:
        await globals()[name](scope, receive, send)
    except trio.Cancelled:
        say(name, "cancelled")
        raise
    say(name, "ended")


async def lifespan(receive, send):
    await receive()
    say("startup")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    say("shutdown")
    await send({"type": "lifespan.shutdown.complete"})


async def hello(scope, receive, send, body=b"hello"):
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def finishes(scope, receive, send):
    # It is in flight when the server is told to stop, and done a moment later.
    await scope["extensions"]["trigi"]["shutting_down"].wait()
    await hello(scope, receive, send)


async def waits(scope, receive, send):
    await receive()
    await hello(scope, receive, send)


async def endless(scope, receive, send):
    await trio.sleep_forever()


async def ignores(scope, receive, send):
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


async def thread(scope, receive, send):
    await trio.to_thread.run_sync(time.sleep, 10_000)


async def fails(scope, receive, send):
    raise ValueError("on purpose")


async def threads(scope, receive, send):
    limit = trio.to_thread.current_default_thread_limiter().total_tokens
    await hello(scope, receive, send, str(limit).encode())


async def websocket(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    message = await receive()
    say(message["type"], message["code"])
"""

LISTENING = r"INFO listening on (\S+)$"


class Program:
    """A process, and what it has printed so far, by lines.

    Attributes:
        process: trio's.
        out: of its stdout.
        err: of its stderr.
    """

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self.out: list[str] = []
        self.err: list[str] = []
        self._reading = 2
        self._changed = trio.Event()

    async def read(self, stream: trio.abc.ReceiveStream, lines: list[str]) -> None:
        """Collect the lines of one of its streams."""
        rest = ""
        async for data in stream:
            *more, rest = (rest + data.decode()).split("\n")
            lines.extend(more)
            self._change()
        if rest:
            lines.append(rest)
        self._reading -= 1
        self._change()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def line(self, pattern: str, lines: list[str] | None = None) -> re.Match[str]:
        """Wait for a line, of stderr if nothing else is said, that has this in it."""
        lines = self.err if lines is None else lines
        with trio.move_on_after(SECONDS):
            while True:
                for line in lines:
                    if found := re.search(pattern, line):
                        return found
                assert self._reading, f"it ended without {pattern!r}: {self.out}, {self.err}"
                await self._changed.wait()
        raise AssertionError(f"no {pattern!r} in {SECONDS} s: {self.out}, {self.err}")

    async def url(self) -> str:
        return (await self.line(LISTENING))[1]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def status(self) -> int:
        """Wait for its end, and for all it has printed; its exit status."""
        with trio.move_on_after(SECONDS):
            await self.process.wait()
            while self._reading:
                await self._changed.wait()
            assert self.process.returncode is not None
            return self.process.returncode
        raise AssertionError(f"it did not end in {SECONDS} s: {self.out}, {self.err}")

    async def stop(self) -> int:
        self.signal(signal.SIGTERM)
        return await self.status()

    @property
    def said(self) -> list[str]:
        """What its application said."""
        return [line.removeprefix("app: ") for line in self.err if line.startswith("app: ")]

    @property
    def logged(self) -> list[str]:
        """What else there is on stderr, without the time."""
        lines = [line for line in self.err if not line.startswith("app: ")]
        return [re.sub(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d ", "", line) for line in lines]


@pytest.fixture
async def trigi(tmp_path):
    """Starts `python -m trigi` in a folder that has `app.py`, on a port that is free; or something else than trigi."""
    (tmp_path / "app.py").write_text(APP, encoding="utf-8")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TRIGI_")}
    programs = []
    async with trio.open_nursery() as nursery:

        async def start(
            *arguments: object, app: str = "app", bind: str = "127.0.0.1:0", command=("-m", "trigi"), **more
        ) -> Program:
            binds = ["--bind", bind] if bind else []
            line = [*command, *binds, *map(str, arguments), app] if command[0] == "-m" else command
            process = await trio.lowlevel.open_process(
                [sys.executable, *line],
                cwd=tmp_path,
                env=environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                **more,
            )
            program = Program(process)
            programs.append(program)
            nursery.start_soon(program.read, process.stdout, program.out)
            nursery.start_soon(program.read, process.stderr, program.err)
            return program

        yield start
        for program in programs:
            if program.process.returncode is None:
                program.process.kill()
            await program.process.wait()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(url: str):
    with trio.fail_after(SECONDS):
        host, port = url.rsplit("/", 1)[1].rsplit(":", 1)
        stream = await trio.open_tcp_stream(host, int(port))
        async with stream:
            yield HTTPClient(stream)


async def fetch(url: str, target: str = "/") -> bytes:
    async with connected(url) as client:
        return (await client.fetch(target, headers=[(b"connection", b"close")])).body


both_signals = pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name
)


# A clean run


@both_signals
async def test_a_clean_run(trigi, number):
    """All that is printed, and in which order; nothing of it is a traceback."""
    program = await trigi()
    url = await program.url()
    assert await fetch(url) == b"hello"
    program.signal(number)
    assert await program.status() == 0
    assert program.said == ["startup", "hello began", "hello ended", "shutdown"]
    assert program.logged == [
        f"INFO listening on {url}",
        f"INFO {number.name}: shutting down; again to stop at once",
        "INFO stopped: waited 0.0 s for 0 application calls, of which 0 were cancelled",
    ]
    (line,) = program.out
    assert re.fullmatch(r'127\.0\.0\.1 - - \[[^]]+\] "GET / HTTP/1\.1" 200 5 "-" "-"', line)


@both_signals
async def test_a_request_in_flight_is_completed(trigi, number):
    program = await trigi()
    url = await program.url()
    async with connected(url) as client, connected(url) as idle:
        assert (await idle.fetch()).status == 200
        await client.request(target="/finishes")
        await program.line("finishes began")
        program.signal(number)
        response = await client.response()
        assert response.body == b"hello"
        assert response.header(b"connection") == b"close"
        assert await idle.rest() == b""
    assert await program.status() == 0
    assert program.said[-2:] == ["finishes ended", "shutdown"]
    assert any(line.startswith("INFO stopped: waited 0.") for line in program.logged)


async def test_new_connections_are_refused_while_old_ones_finish(trigi):
    program = await trigi()
    url = await program.url()
    async with connected(url) as client:
        await client.request("POST", "/waits", headers=[(b"content-length", b"1")])
        await program.line("waits began")
        program.signal(signal.SIGTERM)
        await program.line("shutting down")
        with pytest.raises((OSError, trio.BrokenResourceError, IncompleteResponse)):
            while True:  # the signal is logged a moment before
                await fetch(url)
        await client.send(b"x")
        assert (await client.response()).body == b"hello"
    assert await program.status() == 0
    assert program.said[-1] == "shutdown"


async def test_a_websocket_is_told(trigi):
    program = await trigi()
    async with connected(await program.url()) as client:
        websocket = WebSocketClient(client.stream)
        await websocket.connect("/websocket")
        program.signal(signal.SIGTERM)
        assert (await websocket.wait_closed()).code == 1012
        await websocket.wait_end()
    assert await program.status() == 0
    assert program.said[-3:] == ["websocket.disconnect 1012", "websocket ended", "shutdown"]


async def test_what_does_not_end_is_cancelled_after_graceful_timeout(trigi):
    program = await trigi("--graceful-timeout", 0.1)
    async with connected(await program.url()) as client:
        await client.request(target="/endless")
        await program.line("endless began")
        program.signal(signal.SIGTERM)
        assert await client.rest() == b""
    assert await program.status() == 0
    assert program.said[-2:] == ["endless cancelled", "shutdown"]
    assert (
        program.logged[-1] == "INFO stopped: waited 0.1 s for 1 application calls, of which 1 were cancelled"
    )


# More than one signal


@both_signals
async def test_a_second_signal_cancels_at_once(trigi, number):
    program = await trigi("--graceful-timeout", "inf")
    async with connected(await program.url()) as client:
        await client.request(target="/endless")
        await program.line("endless began")
        program.signal(signal.SIGTERM)
        await program.line("SIGTERM: shutting down")
        program.signal(number)
        assert await client.rest() == b""
    assert await program.status() == 0
    assert program.said[-2:] == ["endless cancelled", "shutdown"]
    assert program.logged[-1] == f"INFO {number.name}: stopping at once"


STUCK = "WARNING application still running 0.2 s after it was cancelled, "
GONE = "ERROR exiting with application calls still running"


@pytest.mark.parametrize("path", ["ignores", "thread"])
@pytest.mark.parametrize("signals", [1, 2])
async def test_a_request_that_ignores_its_end_does_not_hold_the_process(trigi, path, signals):
    """Its log names it."""
    graceful = 0.1 if signals == 1 else "inf"
    program = await trigi("--graceful-timeout", graceful, "--cleanup-timeout", 0.2)
    async with connected(await program.url()) as client:
        await client.request(target=f"/{path}?a=b")
        await program.line(f"{path} began")
        program.signal(signal.SIGINT)
        if signals == 2:
            await program.line("shutting down")
            program.signal(signal.SIGINT)
        assert await client.rest() == b""
    assert await program.status() == 1
    assert program.logged[-2].startswith(f'{STUCK}on "GET /{path}?a=b HTTP/1.1" from 127.0.0.1:')
    assert program.logged[-1] == GONE
    assert "shutdown" not in program.said


# While it starts

STARTING = """
from app import *

async def lifespan(receive, send):
    await receive()
    say("starting")
    try:
        {body}
    except trio.Cancelled:
        say("cancelled")
        raise

import app as common
common.lifespan = lifespan
"""


def starts_with(tmp_path: Path, body: str) -> str:
    """The name of a module whose application has this for a startup."""
    (tmp_path / "starting.py").write_text(STARTING.format(body=body), encoding="utf-8")
    return "starting:app"


@both_signals
async def test_a_signal_during_the_startup_ends_it(trigi, tmp_path, number):
    program = await trigi(app=starts_with(tmp_path, "await trio.sleep_forever()"))
    await program.line("starting")
    program.signal(number)
    assert await program.status() == 0
    assert program.said == ["starting", "cancelled"]
    assert program.logged == [f"INFO {number.name}: stopping at once"]
    assert program.out == []


async def test_a_startup_in_a_thread_does_not_hold_the_process(trigi, tmp_path):
    app = starts_with(tmp_path, "await trio.to_thread.run_sync(time.sleep, 10_000)")
    program = await trigi("--cleanup-timeout", 0.2, app=app)
    await program.line("starting")
    program.signal(signal.SIGTERM)
    assert await program.status() == 1
    assert program.logged == ["INFO SIGTERM: stopping at once", f"{STUCK}in its lifespan", GONE]


async def test_a_startup_that_takes_too_long_in_a_thread_names_its_cause(trigi, tmp_path):
    app = starts_with(tmp_path, "await trio.to_thread.run_sync(time.sleep, 10_000)")
    program = await trigi("--startup-timeout", 0.1, "--cleanup-timeout", 0.2, app=app)
    assert await program.status() == 1
    assert program.logged == [
        f"{STUCK}in its lifespan: lifespan startup failed: took longer than startup_timeout (0.1 s)",
        GONE,
    ]


async def test_control_c_while_the_application_is_imported(trigi, tmp_path):
    slow = "import sys, time\nprint('app: importing', file=sys.stderr, flush=True)\ntime.sleep(10_000)\n"
    (tmp_path / "slow.py").write_text(slow, encoding="utf-8")
    program = await trigi(app="slow:app")
    await program.line("importing")
    program.signal(signal.SIGINT)
    assert await program.status() == 130
    assert program.logged == []


# What goes wrong is said in one line


async def failed(program: Program) -> tuple[int, list[str]]:
    status = await program.status()
    assert program.out == []
    return status, program.logged


async def test_no_such_module(trigi, tmp_path):
    status, lines = await failed(await trigi(app="nowhere:app"))
    assert status == 1
    (line,) = lines
    assert line.startswith("trigi: error: there is no module 'nowhere'")
    assert str(tmp_path) in line


async def test_no_such_attribute(trigi):
    status, lines = await failed(await trigi(app="app:apq"))
    assert status == 1
    assert len(lines) == 1
    assert lines[0].startswith("trigi: error: ")
    assert "'apq'" in lines[0]


async def test_a_module_that_raises_is_shown_with_its_traceback(trigi, tmp_path):
    """Once, and then the one line."""
    (tmp_path / "broken.py").write_text("1 / 0\n", encoding="utf-8")
    status, lines = await failed(await trigi(app="broken:app"))
    assert status == 1
    assert lines[0] == "Traceback (most recent call last):"
    assert lines.count("Traceback (most recent call last):") == 1
    assert lines[-2] == "ZeroDivisionError: division by zero"
    assert lines[-1].startswith("trigi: error: ")


async def test_a_port_in_use(trigi):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        status, lines = await failed(await trigi(bind=address))
    assert status == 1
    (line,) = lines
    assert line.startswith(f"trigi: error: cannot listen on {address}: address already in use")


async def test_a_bad_option(trigi):
    status, lines = await failed(await trigi("--graceful-timeout", "soon"))
    assert status == 2
    (line,) = lines
    assert line.startswith("trigi: error: --graceful-timeout: 'soon' is not a number of seconds")


async def test_a_bad_address(trigi):
    status, lines = await failed(await trigi(bind="nonsense"))
    assert status == 2
    (line,) = lines
    assert line.startswith("trigi: error: bind: 'nonsense'")


@pytest.mark.parametrize(
    ("body", "options", "expected"),
    [
        (
            "await send({'type': 'lifespan.startup.failed', 'message': 'no database'})",
            [],
            ["trigi: error: lifespan startup failed: no database"],
        ),
        (
            "await send({'type': 'lifespan.startup.failed'})",
            [],
            ["trigi: error: lifespan startup failed"],
        ),
        (
            "await send({'type': 'lifespan.startup.failed'}); raise OSError('no database')",
            [],
            ["trigi: error: lifespan startup failed: it raised OSError('no database')"],
        ),
        (
            "await trio.sleep_forever()",
            ["--startup-timeout", "0.1"],
            ["trigi: error: lifespan startup failed: took longer than startup_timeout (0.1 s)"],
        ),
        (
            "pass",
            ["--lifespan", "on"],
            ["trigi: error: lifespan startup failed: the application returned before startup was complete"],
        ),
    ],
)
async def test_a_startup_that_fails(trigi, tmp_path, body, options, expected):
    assert await failed(await trigi(*options, app=starts_with(tmp_path, body))) == (1, expected)


async def test_a_startup_that_raises_where_a_lifespan_is_wanted(trigi, tmp_path):
    app = starts_with(tmp_path, "raise OSError('no database')")
    status, lines = await failed(await trigi("--lifespan", "on", app=app))
    assert status == 1
    assert lines[0] == "ERROR application failed in its lifespan, starting"
    assert lines[-2] == "  OSError: no database"
    assert lines[-1] == (
        "trigi: error: lifespan startup failed: it raised OSError('no database') before startup was complete"
    )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("await send({'type': 'lifespan.shutdown.failed', 'message': 'disk full'})", "disk full"),
        ("raise OSError('disk full')", "it raised OSError('disk full')"),
        ("await trio.sleep_forever()", "took longer than shutdown_timeout (0.1 s)"),
    ],
)
async def test_a_shutdown_that_fails(trigi, tmp_path, body, expected):
    body = f"await send({{'type': 'lifespan.startup.complete'}}); await receive(); {body}"
    program = await trigi("--shutdown-timeout", 0.1, app=starts_with(tmp_path, body))
    await program.url()
    assert await program.stop() == 1
    assert program.logged[-1] == f"trigi: error: lifespan shutdown failed: {expected}"


# Where it listens


async def test_each_port_is_printed(trigi):
    program = await trigi("--bind", "127.0.0.1:0", "--bind", "unix:app.sock")
    await program.line("listening on unix:app.sock")
    urls = [re.search(LISTENING, line)[1] for line in program.err if "listening" in line]
    assert len(set(urls)) == 3
    for url in urls[:2]:
        assert await fetch(url) == b"hello"
    assert await program.stop() == 0


async def test_the_same_port_again_at_once(trigi):
    """Though a connection that the server closed itself is remembered by the system (TIME_WAIT)."""
    program = await trigi()
    url = await program.url()
    async with connected(url) as client:
        assert (await client.fetch()).body == b"hello"
        assert await program.stop() == 0
        assert await client.rest() == b""
    again = await trigi(bind=url.removeprefix("http://"))
    assert await again.url() == url
    assert await fetch(url) == b"hello"
    assert await again.stop() == 0


async def test_a_unix_socket(trigi, tmp_path):
    path = tmp_path / "app.sock"
    program = await trigi("--uds-mode", "600", bind="unix:app.sock")
    assert await program.url() == "unix:app.sock"
    curl = ["curl", "-q", "-sS", "--max-time", str(SECONDS), "--unix-socket", str(path), "http://x/"]
    done = await trio.run_process(curl, capture_stdout=True)
    assert done.stdout == b"hello"
    assert await program.stop() == 0
    assert not path.exists()
    (line,) = program.out
    assert '"GET / HTTP/1.1" 200 5' in line


async def test_the_socket_of_a_server_that_was_killed_is_replaced(trigi, tmp_path):
    path = tmp_path / "app.sock"
    program = await trigi(bind="unix:app.sock")
    await program.url()
    refused = await trigi(bind="unix:app.sock")
    assert await refused.status() == 1
    assert "address already in use" in refused.logged[0]
    program.process.kill()
    await program.status()
    assert path.is_socket()
    again = await trigi(bind="unix:app.sock")
    assert await again.url() == "unix:app.sock"
    async with await trio.open_unix_socket(path) as stream:
        assert (await HTTPClient(stream).fetch()).body == b"hello"
    assert await again.stop() == 0
    assert not path.exists()


async def test_an_inherited_socket(trigi):
    """As from systemd. It stays open with whoever has passed it on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        host, port = listening.getsockname()
        for _ in range(2):
            program = await trigi(bind=f"fd://{listening.fileno()}", pass_fds=[listening.fileno()])
            assert await program.url() == f"http://{host}:{port}"
            assert await fetch(await program.url()) == b"hello"
            assert await program.stop() == 0


# What it says


async def test_no_access_log(trigi):
    program = await trigi("--no-access-log")
    assert await fetch(await program.url()) == b"hello"
    assert await program.stop() == 0
    assert program.out == []


async def test_log_level(trigi):
    program = await trigi("--log-level", "error", bind="unix:app.sock")
    await program.line("startup")
    assert await program.stop() == 0
    assert program.logged == []
    assert program.out == []


async def test_log_json(trigi):
    """Every line of both is an object; the one for people, when it fails, too."""
    program = await trigi("--log-json", "--no-access-log", "--access-log")
    message = (await program.line(r'"message": "listening on ([^"]+)"'))[1]
    assert await fetch(message, "/?a=b") == b"hello"
    assert await program.stop() == 0
    (access,) = map(json.loads, program.out)
    assert (access["logger"], access["target"], access["status"]) == ("trigi.access", "/?a=b", 200)
    entries = [json.loads(line) for line in program.logged]
    assert [entry["logger"] for entry in entries] == ["trigi.error"] * 3
    assert entries[0]["message"] == f"listening on {message}"
    assert entries[1]["message"] == "SIGTERM: shutting down; again to stop at once"


async def test_a_request_that_fails_is_logged_with_its_traceback(trigi):
    program = await trigi()
    async with connected(await program.url()) as client:
        assert (await client.fetch("/fails")).status == 500
        assert (await client.fetch("/")).body == b"hello"
    assert await program.stop() == 0
    begin = next(number for number, line in enumerate(program.logged) if line.startswith("ERROR"))
    assert 'application failed on "GET /fails HTTP/1.1" from 127.0.0.1:' in program.logged[begin]
    assert program.logged[begin + 1] == "  Traceback (most recent call last):"
    assert "  ValueError: on purpose" in program.logged


# The application


async def test_a_factory_is_called_once(trigi, tmp_path):
    factory = "from app import app, say\ndef make():\n    say('made')\n    return app\n"
    (tmp_path / "factory.py").write_text(factory, encoding="utf-8")
    program = await trigi("--factory", app="factory:make")
    assert await fetch(await program.url()) == b"hello"
    assert await program.stop() == 0
    assert program.said == ["made", "startup", "hello began", "hello ended", "shutdown"]


async def test_thread_limit(trigi):
    program = await trigi("--thread-limit", 7)
    assert await fetch(await program.url(), "/threads") == b"7"
    assert await program.stop() == 0


# trigi.run() in a program


RUN = """
import sys
import trigi
from app import app, say

try:
    trigi.run({target}, trigi.Config(bind="127.0.0.1:0", startup_timeout=0.1))
except BaseException as error:
    say(type(error).__name__, error)
else:
    say("returned")
"""


@pytest.mark.parametrize("target", ["app", "'app:app'"])
@both_signals
async def test_run_returns(trigi, target, number):
    program = await trigi(command=("-c", RUN.format(target=target)))
    assert await fetch(await program.url()) == b"hello"
    program.signal(number)
    assert await program.status() == 0
    assert program.said[-2:] == ["shutdown", "returned"]
    assert len(program.out) == 1


async def test_run_raises_bare(trigi, tmp_path):
    target = repr(starts_with(tmp_path, "await trio.sleep_forever()"))
    program = await trigi(command=("-c", RUN.format(target=target)))
    assert await program.status() == 0
    assert (
        program.said[-1] == "LifespanFailed lifespan startup failed: took longer than startup_timeout (0.1 s)"
    )
    assert program.logged == []


BREAKS = """
import errno, socket, trigi
from app import app, say

def accept(self):
    raise OSError(errno.EINVAL, "not listening any more")

socket.socket.accept = accept
try:
    trigi.run(app, trigi.Config(bind="127.0.0.1:0"))
except Exception as error:
    say(type(error).__name__, error)
"""


async def test_run_raises_bare_what_breaks_a_listener(trigi):
    program = await trigi(command=("-c", BREAKS))
    assert await program.status() == 0
    assert program.said == ["startup", "shutdown", f"OSError [Errno {errno.EINVAL}] not listening any more"]
