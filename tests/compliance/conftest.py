"""What the tests with real frameworks and real clients share: servers on loopback sockets, and processes that serve.

Nothing here is virtual: the clients are programs and libraries that others have written, the clock is the clock.
What holds for every test is checked when it ends, by `serve`: nothing was logged as an error but what the test has
expected, and each server shuts down gracefully.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import trio
import trustme

import trigi

TEST_SECONDS = 60.0
"""What hangs is given up after this."""

CLIENT_SECONDS = 20.0
"""What a client waits for one answer."""

SHUTDOWN_SECONDS = 15.0
"""What a graceful shutdown may take when nothing but clients that listen is connected."""


class Log(logging.Handler):
    """Remembers what is logged, wherever.

    Attributes:
        records: all of them, formatted with their tracebacks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records: list[tuple[logging.LogRecord, str]] = []
        self._expected: list[tuple[str, ...]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append((record, self.format(record)))

    @property
    def text(self) -> str:
        return "\n".join(text for _, text in self.records)

    @property
    def access(self) -> list[str]:
        """The lines of the access log."""
        return [record.getMessage() for record, _ in self.records if record.name == "trigi.access"]

    @property
    def errors(self) -> list[str]:
        """What was logged at ERROR and was not expected."""
        return [
            text
            for record, text in self.records
            if record.levelno >= logging.ERROR
            and not any(all(part in text for part in parts) for parts in self._expected)
        ]

    def tolerate(self, *parts: str) -> None:
        """Take errors with all of these in their text or traceback for no failures, should there be any."""
        self._expected.append(parts)

    async def expect(self, part: str) -> str:
        """Wait for an error with this in its text or traceback, and take it for no failure."""
        self.tolerate(part)
        return await self.wait_for(part)

    async def wait_for(self, part: str) -> str:
        """Wait until a record has this in its text or traceback."""
        while True:
            for _, text in self.records:
                if part in text:
                    return text
            await trio.sleep(0.005)


class Raw:
    """A client with no opinions of its own.

    Attributes:
        received: all that has come.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.received = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def read_until(self, end: bytes) -> bytes:
        """Read until this is among what was received; give all up to its end, and forget that."""
        while end not in self.received:
            data = await self.stream.receive_some()
            assert data, f"the connection ended after {self.received!r}"
            self.received += data
        found, _, self.received = self.received.partition(end)
        return found + end

    async def read_all(self) -> bytes:
        """Read until the server closes the connection."""
        async for data in self.stream:
            self.received += data
        return self.received

    async def leave(self) -> None:
        await trio.aclose_forcefully(self.stream)


@dataclass
class Served:
    """A server that runs in the test's own event loop.

    Attributes:
        urls: where each bind is listened on: `http://127.0.0.1:50123`, `unix:/…`.
        log: what has been logged.
        done: it has ended.
    """

    urls: list[str]
    log: Log
    done: trio.Event
    _shutdown: trio.Event
    _verify: ssl.SSLContext | None = None

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def websocket_url(self) -> str:
        return "ws" + self.url.removeprefix("http")

    def client(self, **more: Any) -> httpx.AsyncClient:
        """A client for it."""
        verify = True if self._verify is None else self._verify
        return httpx.AsyncClient(
            base_url=self.url, **{"trust_env": False, "timeout": CLIENT_SECONDS, "verify": verify} | more
        )

    async def connect(self, request: str = "GET / HTTP/1.1", body: bytes = b"", **headers: str) -> Raw:
        """A connection by which a request was sent: its line, headers, what is given of its body."""
        raw = Raw(await trio.open_tcp_stream("127.0.0.1", self.port))
        fields = {"host": "x"} | {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{line}\r\n" for line in (request, *(f"{name}: {fields[name]}" for name in fields)))
        await raw.send(head.encode() + b"\r\n" + body)
        return raw

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something is so that nobody tells of."""
        while not condition():  # noqa: ASYNC110 - see above
            await trio.sleep(0.005)

    def begin_shutdown(self) -> None:
        self._shutdown.set()

    async def stop(self) -> None:
        """Shut down gracefully, which takes no longer than it should."""
        self.begin_shutdown()
        with trio.fail_after(SHUTDOWN_SECONDS):
            await self.done.wait()


@pytest.fixture
def log():
    """What is logged from here on. Errors that the test does not expect are its failure."""
    handler = Log()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("trigi", "trigi.access", "trigi.error")]
    before = [(logger, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.propagate = True
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)
    for logger, level, propagate in before:
        logger.setLevel(level)
        logger.propagate = propagate
    assert handler.errors == []


@pytest.fixture
async def serve(log):
    """Begins to serve an application, in the test's own event loop, and gives a `Served`.

    Takes the application, `ssl_context`, `authority` (for clients to trust), and settings.
    """
    running: list[Served] = []

    async def give_up() -> None:
        await trio.sleep(TEST_SECONDS)
        raise AssertionError(f"the test has not ended after {TEST_SECONDS} s")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up)

        async def begin(application, *, ssl_context=None, authority=None, **settings) -> Served:
            shutdown, done = trio.Event(), trio.Event()
            config = trigi.Config(**{"bind": ["127.0.0.1:0"]} | settings)

            async def run(task_status):
                try:
                    await trigi.serve(
                        application,
                        config,
                        ssl_context=ssl_context,
                        shutdown_trigger=shutdown.wait,
                        task_status=task_status,
                    )
                finally:
                    done.set()

            urls = await nursery.start(run)
            verify = None if authority is None else trusting(authority)
            running.append(Served(urls, log, done, shutdown, verify))
            return running[-1]

        yield begin
        for server in running:
            await server.stop()
        nursery.cancel_scope.cancel()


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def in_thread():
    """Runs a blocking client in a thread, with the server in this one: `await in_thread(function, …)`."""

    async def run(function, *args, **keywords):
        return await trio.to_thread.run_sync(partial(function, *args, **keywords), abandon_on_cancel=True)

    return run


def need(*programs: str) -> None:
    """Skip the test where a program isn't installed; in CI, where all are to be, fail it."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say(f"{', '.join(missing)} is not installed")


class Answer(NamedTuple):
    """What curl said."""

    status: int
    out: bytes
    err: str


@pytest.fixture
def curl():
    """Runs curl with these arguments, in the test's own event loop: `await curl(url, stdin=b"…")`."""
    need("curl")

    async def run(*args: str, stdin: Any = b"", seconds: float = CLIENT_SECONDS) -> Answer:
        command = ["curl", "-q", "-sS", "--noproxy", "*", "--max-time", str(seconds), *args]
        done = await trio.run_process(
            command, stdin=stdin, capture_stdout=True, capture_stderr=True, check=False
        )
        return Answer(done.returncode, done.stdout, done.stderr.decode())

    return run


# TLS


class Certificates(NamedTuple):
    """An authority and what it has signed, with the paths of the files."""

    authority: trustme.CA
    ca: str
    server: str  # certificate, chain and key
    server_chain: str  # the same, in two files
    server_key: str
    client: str  # the same, for a client's
    stranger: str  # a client's that another authority has signed

    def trust(self, certificate: str | None = None) -> ssl.SSLContext:
        """What a client needs that trusts the server, and shows this certificate."""
        context = trusting(self.authority)
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")

    def write(name: str, content: bytes) -> str:
        path = folder / f"{name}.pem"
        path.write_bytes(content)
        return str(path)

    authority = trustme.CA(organization_name="trigi's tests")
    server = authority.issue_cert("127.0.0.1", "localhost")
    client = authority.issue_cert("ada@example.org", common_name="Ada", organization_name="Engines")
    stranger = trustme.CA().issue_cert("eve@example.org")
    return Certificates(
        authority,
        write("ca", authority.cert_pem.bytes()),
        write("server", server.private_key_and_cert_chain_pem.bytes()),
        write("server_chain", b"".join(pem.bytes() for pem in server.cert_chain_pems)),
        write("server_key", server.private_key_pem.bytes()),
        write("client", client.private_key_and_cert_chain_pem.bytes()),
        write("stranger", stranger.private_key_and_cert_chain_pem.bytes()),
    )


# Processes


@dataclass
class Process:
    """A server in a process of its own, `python -m trigi`.

    Attributes:
        url: where it listens.
        stderr: the lines it has said so far.
    """

    popen: subprocess.Popen[str]
    url: str = ""
    stderr: list[str] = field(default_factory=list)
    _listening: threading.Event = field(default_factory=threading.Event)
    _reader: threading.Thread | None = None

    def start(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        in_time = self._listening.wait(CLIENT_SECONDS)
        assert in_time, "it did not begin to listen"
        assert self.url, f"it did not begin to listen: {''.join(self.stderr)}"

    def _read(self) -> None:
        assert self.popen.stderr is not None
        with self.popen.stderr as lines:
            for line in lines:
                self.stderr.append(line)
                if found := re.search(r"listening on (\S+)", line):
                    self.url = found[1]
                    self._listening.set()
        self._listening.set()

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def peak_memory(self) -> int:
        """The most memory it has ever had resident, in bytes."""
        return self._memory("VmHWM")

    @property
    def memory(self) -> int:
        """What it has resident now, in bytes."""
        return self._memory("VmRSS")

    def _memory(self, name: str) -> int:
        status = Path(f"/proc/{self.popen.pid}/status").read_text(encoding="ascii")
        found = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
        assert found, f"the kernel does not tell {name}"
        return int(found[1]) * 1024

    def stop(self) -> None:
        """Tell it to stop, and see that it does so as if nothing had happened."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
        try:
            status = self.popen.wait(SHUTDOWN_SECONDS)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            status = self.popen.wait()
        if self._reader is not None:
            self._reader.join()
        said = "".join(self.stderr)
        assert status == 0, f"it ended with {status}: {said}"
        assert "ERROR" not in said


@pytest.fixture
def serve_process(tmp_path):
    """Starts `python -m trigi` with these arguments on a port of its own, and gives a `Process`."""
    running: list[Process] = []
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TRIGI_")}

    def begin(*args: str) -> Process:
        command = [sys.executable, "-m", "trigi", "--bind", "127.0.0.1:0", *args]
        with (tmp_path / "access.log").open("w") as access:
            popen = subprocess.Popen(
                command,
                cwd=tmp_path,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=access,
                stderr=subprocess.PIPE,
                text=True,
            )
        process = Process(popen)
        running.append(process)
        process.start()
        return process

    yield begin
    for process in running:
        process.stop()
