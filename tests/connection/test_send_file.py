"""Files as bodies: by their path, on any stream; by their descriptor, copied by the system, where there is a socket.

Files are read in threads, for which no virtual clock waits: time stands still here, unless a test says otherwise.
"""

from __future__ import annotations

import hashlib
import io
import os
import socket
import threading
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.connection.conftest import Recorder, read_body, respond, send_body, socket_like_pair, start
from trigi._connection import files, transport
from trigi._connection.context import ServerContext
from trigi._connection.readiness import Readiness
from trigi._connection.serve import serve_stream
from trigi._connection.socket_stream import SocketStream
from trigi.config import Config
from trigi.exceptions import ApplicationError, ClientDisconnected, InvalidMessage, UnexpectedMessage
from trigi.testing import HTTPClient, IncompleteResponse

PIECE = files.PIECE
SECONDS = 20
"""What hangs is given up after this, by the real clock."""


@pytest.fixture
def virtual_time(request, mock_clock):
    """Time stands still, but where a test moves it."""

    def run(test, *, clock, instruments):
        return trio.run(test, clock=mock_clock, instruments=instruments)

    request.node.add_marker(pytest.mark.trio(run=run), append=False)


def socket_pair():
    """Two ends of one connection of the system's."""
    client, server = socket.socketpair()
    return tuple(SocketStream(end) for end in (client, server))


PAIRS = {
    "memory": trio.testing.memory_stream_pair,
    "narrow": partial(socket_like_pair, 1000),
    "socket": socket_pair,
}
each_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)

CONTENT = os.urandom(5 * PIECE + 123)
SIZES = [0, 1, PIECE - 1, PIECE, PIECE + 1, len(CONTENT)]


@pytest.fixture
def file(tmp_path):
    """Makes a file, and gives its path."""

    def make(content=CONTENT, name="file"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return make


async def send_path(send, path, **more):
    await send({"type": "http.response.pathsend", "path": str(path)} | more)


async def send_descriptor(send, file, **more):
    await send({"type": "http.response.zerocopysend", "file": file} | more)


def sends(path, **starting):
    """An application whose answer is a file."""

    async def app(scope, receive, send):
        await start(send, **starting)
        await send_path(send, path)

    return app


def length_of(content):
    return [(b"content-length", b"%d" % len(content))]


async def end(client, requests=0):
    """Wait until so many requests have ended by themselves, and end the connection."""
    while len(client.observer.ended) < requests:
        await trio.testing.wait_all_tasks_blocked(0.001)
    await client.leave()
    await client.done.wait()


def open_descriptors(path=None):
    """Of this file, or of any."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if path in (None, descriptor.readlink()):
                found.append(descriptor.name)
    return found


# A path


@each_pair
@pytest.mark.parametrize("size", SIZES)
async def test_a_path_is_the_body(serve, file, pair, size):
    """Twice on one connection; with the length, although the application gives none."""
    path = file(CONTENT[:size])
    client = serve(sends(path), pair=pair)
    for _ in range(2):
        response = await client.fetch()
        assert (response.status, response.body) == (200, CONTENT[:size])
        assert response.header(b"content-length") == b"%d" % size
        assert response.header(b"transfer-encoding") is None
    await end(client, 2)
    assert [(each.complete, each.bytes_sent) for each in client.observer.ended] == [(True, size)] * 2
    assert client.observer.failures == []
    assert open_descriptors(path) == []


async def test_over_tls(serve, file, tls_pair):
    """The system can't copy what has to be encrypted; the path is taken all the same."""
    scopes = []
    path = file()

    async def app(scope, receive, send):
        scopes.append(scope)
        await sends(path)(scope, receive, send)

    client = serve(app, pair=partial(tls_pair, socket_pair))
    assert (await client.fetch()).body == CONTENT
    (scope,) = scopes
    assert "http.response.pathsend" in scope["extensions"]
    assert "http.response.zerocopysend" not in scope["extensions"]
    await client.stream.aclose()


@each_pair
async def test_the_extensions_of_a_scope(serve, pair):
    """The system copies where there is a socket."""
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await respond(send)

    await serve(app, pair=pair).fetch()
    assert scopes[0]["extensions"]["http.response.pathsend"] == {}
    assert scopes[0]["extensions"].get("http.response.zerocopysend") == ({} if pair is socket_pair else None)


@each_pair
async def test_the_headers_are_the_applications(serve, file, pair):
    headers = [*length_of(CONTENT), (b"content-type", b"x/y"), (b"etag", b'"1"')]
    response = await serve(sends(file(), status=203, headers=headers), pair=pair).fetch()
    assert (response.status, response.body) == (203, CONTENT)
    assert [field for field in response.headers if field in headers] == headers
    assert len([name for name, _ in response.headers if name == b"content-length"]) == 1


@each_pair
@pytest.mark.parametrize("offset", [-1, 1])
async def test_a_file_of_another_length_than_was_said_cuts_the_connection(serve, file, pair, offset):
    refused = []
    path = file()
    headers = [(b"content-length", b"%d" % (len(CONTENT) + offset))]

    async def app(scope, receive, send):
        await start(send, headers=headers)
        with pytest.raises(InvalidMessage) as caught:
            await send_path(send, path)
        refused.append(str(caught.value))

    client = serve(app, pair=pair)
    with pytest.raises(IncompleteResponse):
        await client.fetch()
    await end(client)
    how_much = "1 bytes less" if offset > 0 else "1 bytes more"
    assert refused == [f"http.response.pathsend: {how_much} than the content-length said"]
    assert open_descriptors(path) == []


@each_pair
async def test_head_has_the_length_and_no_body(serve, file, pair):
    path = file()
    client = serve(sends(path), pair=pair)
    head = await client.fetch(method="HEAD")
    assert (head.header(b"content-length"), head.body) == (b"%d" % len(CONTENT), b"")
    assert (await client.fetch()).body == CONTENT
    await end(client, 2)
    assert [each.bytes_sent for each in client.observer.ended] == [0, len(CONTENT)]


@each_pair
@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body(serve, file, pair, status):
    client = serve(sends(file(), status=status), pair=pair)
    for _ in range(2):
        response = await client.fetch()
        assert (response.status, response.body) == (status, b"")
        assert response.header(b"content-length") is response.header(b"transfer-encoding") is None


@each_pair
@pytest.mark.parametrize("taken", [True, False])
async def test_trailers_follow(serve, file, pair, taken):
    """In chunks then, as always with trailers."""
    path = file()

    async def app(scope, receive, send):
        await start(send, trailers=True)
        await send_path(send, path)
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]})

    client = serve(app, pair=pair)
    for _ in range(2):
        response = await client.fetch(headers=[(b"te", b"trailers")] if taken else [])
        assert (response.body, response.trailers) == (CONTENT, [(b"x-sum", b"1")] if taken else [])
        assert (response.header(b"content-length") is None) == taken


@each_pair
async def test_http_1_0(serve, file, pair):
    client = serve(sends(file()), pair=pair)
    await client.send(b"GET / HTTP/1.0\r\n\r\n")
    response = await client.response()
    assert (response.header(b"content-length"), response.body) == (b"%d" % len(CONTENT), CONTENT)


async def test_a_path_need_not_be_absolute(serve, file, monkeypatch):
    """ASGI wants it to be; but frameworks pass on what they were given, and `open()` would take it."""
    monkeypatch.chdir(file().parent)
    assert (await serve(sends("file")).fetch()).body == CONTENT


WRONG_PATHS = {
    "missing": lambda folder: folder / "missing",
    "a folder": lambda folder: folder,
    "a pipe": lambda folder: os.mkfifo(folder / "pipe") or folder / "pipe",
    "a device": lambda folder: "/dev/null",
    "a loop": lambda folder: (folder / "loop").symlink_to("loop") or folder / "loop",
    "below a file": lambda folder: folder / "file" / "more",
    "too long": lambda folder: "/" + "x" * 5000,
    "with a NUL": lambda folder: "/tmp\0",
    "with a lone surrogate": lambda folder: "/\ud800",
    "empty": lambda folder: "",
}


@pytest.mark.parametrize("pair", [trio.testing.memory_stream_pair, socket_pair], ids=["memory", "socket"])
@pytest.mark.parametrize("wrong", WRONG_PATHS.values(), ids=WRONG_PATHS)
async def test_a_wrong_path_can_be_answered(serve, file, pair, wrong):
    """It is named in the exception, nothing has been sent, and the state is as it was."""
    path = str(wrong(file().parent))
    refused = []
    Readiness.current()  # it has a descriptor for as long as trio runs
    before = open_descriptors()

    async def app(scope, receive, send):
        await start(send)
        try:
            await send_path(send, path)
        except InvalidMessage as error:
            refused.append(str(error))
            await send_body(send, b"sorry")

    client = serve(app, pair=pair)
    for _ in range(2):
        assert (await client.fetch()).body == b"sorry"
    await end(client, 2)
    assert repr(path) in refused[0]
    assert refused[0].startswith("http.response.pathsend: ")
    assert client.observer.failures == []
    assert open_descriptors() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_a_file_that_may_not_be_read(serve, file):
    path = file()
    path.chmod(0)
    client = serve(sends(path))
    assert (await client.fetch()).status == 500
    await end(client)
    assert "Permission denied" in str(client.observer.failures[0])


async def test_nobody_catches_it(serve, file):
    client = serve(sends("/nowhere"))
    assert (await client.fetch()).status == 500
    await end(client)
    assert [str(each) for each in client.observer.failures] == [
        "http.response.pathsend: can't open '/nowhere': No such file or directory"
    ]


async def test_a_path_is_not_mixed_with_pieces(serve, file):
    """Neither after one nor before one, nor after another path."""
    path = file()
    refused = []

    async def app(scope, receive, send):
        await start(send)
        if scope["path"] == "/pieces":
            await send_body(send, b"piece", more=True)
            with pytest.raises(UnexpectedMessage) as caught:
                await send_path(send, path)
            refused.append(str(caught.value))
            await send_body(send)
        else:
            await send_path(send, path)
            await send_body(send, b"ignored")
            await send_path(send, "/ignored as well")

    client = serve(app)
    assert (await client.fetch("/pieces")).body == b"piece"
    assert (await client.fetch()).body == CONTENT
    assert refused[0].startswith("http.response.pathsend is not allowed in state MORE_BODY: expected ")


async def test_a_second_message_while_the_file_is_being_opened(serve, file, monkeypatch):
    """The first of two to be ready is the response; the other one comes after its end, and is ignored."""
    path = file()
    opening, go_on = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()
    really_open = files._open

    def slowly(path):
        token.run_sync_soon(opening.set)
        go_on.wait(SECONDS)
        return really_open(path)

    monkeypatch.setattr(files, "_open", slowly)

    async def app(scope, receive, send):
        await start(send)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_path, send, path)
            await opening.wait()
            await send_body(send, b"first")
            go_on.set()

    client = serve(app)
    assert (await client.fetch()).body == b"first"
    await end(client)
    assert client.observer.failures == []
    assert open_descriptors(path) == []


async def test_the_client_leaves_while_the_file_is_being_opened(serve, file, monkeypatch):
    opening, go_on = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()
    really_open = files._open
    raised = trio.Event()
    path = file()

    def slowly(path):
        token.run_sync_soon(opening.set)
        go_on.wait(SECONDS)
        return really_open(path)

    monkeypatch.setattr(files, "_open", slowly)

    async def app(scope, receive, send):
        await start(send)
        with pytest.raises(ClientDisconnected):
            await send_path(send, path)
        raised.set()

    client = serve(app)
    await client.request()
    await opening.wait()
    await client.leave()
    await client.settle()
    go_on.set()
    await raised.wait()
    assert open_descriptors(path) == []


# A descriptor


@pytest.mark.parametrize("length", [True, False], ids=["with a length", "in chunks"])
async def test_files_and_pieces_can_be_mixed(serve, file, length):
    path = file()
    expected = b"<" + CONTENT[100:200] + b"|" + CONTENT + b"|" + CONTENT[PIECE : 3 * PIECE] + b">"

    async def app(scope, receive, send):
        with path.open("rb") as opened:
            await start(send, headers=length_of(expected) if length else ())
            await send_body(send, b"<", more=True)
            await send_descriptor(send, opened, offset=100, count=100, more_body=True)
            await send_body(send, b"|", more=True)
            await send_descriptor(send, opened, more_body=True)
            await send_body(send, b"|", more=True)
            await send_descriptor(send, opened.fileno(), offset=PIECE, count=2 * PIECE, more_body=True)
            await send_body(send, b">")

    client = serve(app, pair=socket_pair)
    for _ in range(2):
        response = await client.fetch()
        assert response.body == expected
        assert (response.header(b"transfer-encoding") is None) == length
    await end(client, 2)
    assert [each.bytes_sent for each in client.observer.ended] == [len(expected)] * 2


RANGES = {
    "all": ({}, slice(None)),
    "from somewhere": ({"offset": 2 * PIECE + 1}, slice(2 * PIECE + 1, None)),
    "some": ({"count": PIECE + 1}, slice(None, PIECE + 1)),
    "none": ({"count": 0}, slice(0)),
    "some in the middle": ({"offset": 7, "count": 3 * PIECE}, slice(7, 7 + 3 * PIECE)),
    "more than there is": ({"offset": 7, "count": 2**63 - 1}, slice(7, None)),
    "behind the end": ({"offset": 2**63 - 1, "count": 1}, slice(0)),
}


@pytest.mark.parametrize(("given", "expected"), RANGES.values(), ids=RANGES)
async def test_a_range(serve, file, given, expected):
    path = file()

    async def app(scope, receive, send):
        with path.open("rb") as opened:
            await start(send)
            await send_descriptor(send, opened, **given)
            opened.fileno()  # it is still open: that it is closed is the application's business

    client = serve(app, pair=socket_pair)
    for _ in range(2):
        assert (await client.fetch()).body == CONTENT[expected]


async def test_without_an_offset_each_goes_on_where_the_last_has_ended(serve, file):
    path = file()
    positions = []

    async def app(scope, receive, send):
        with path.open("rb", buffering=0) as opened:
            await start(send)
            opened.read(100)
            await send_descriptor(send, opened, count=PIECE, more_body=True)
            positions.append(opened.tell())
            await send_descriptor(send, opened, offset=0, count=3, more_body=True)
            positions.append(opened.tell())
            await send_descriptor(send, opened)

    response = await serve(app, pair=socket_pair).fetch()
    assert response.body == CONTENT[100 : 100 + PIECE] + CONTENT[:3] + CONTENT[100 + PIECE :]
    assert positions == [100 + PIECE, 100 + PIECE]


async def test_a_last_file_may_be_followed_by_trailers(serve, file):
    path = file()

    async def app(scope, receive, send):
        with path.open("rb") as opened:
            await start(send, trailers=True)
            await send_descriptor(send, opened)
            await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]})

    response = await serve(app, pair=socket_pair).fetch(headers=[(b"te", b"trailers")])
    assert (response.body, response.trailers) == (CONTENT, [(b"x-sum", b"1")])


@pytest.mark.parametrize("offset", [-1, 1])
async def test_files_of_another_length_than_was_said_cut_the_connection(serve, file, offset):
    path = file()
    headers = [(b"content-length", b"%d" % (len(CONTENT) + offset))]

    async def app(scope, receive, send):
        with path.open("rb") as opened:
            await start(send, headers=headers)
            await send_descriptor(send, opened)

    client = serve(app, pair=socket_pair)
    with pytest.raises(IncompleteResponse):
        await client.fetch()
    await end(client)
    assert "than the content-length said" in str(client.observer.failures[0])


async def test_descriptors_are_not_taken_where_the_system_can_not_copy(serve, file):
    path = file()
    refused = []

    async def app(scope, receive, send):
        with path.open("rb") as opened:
            await start(send)
            try:
                await send_descriptor(send, opened)
            except InvalidMessage as error:
                refused.append(str(error))
                await send_body(send, opened.read())

    assert (await serve(app).fetch()).body == CONTENT
    assert refused == [
        "http.response.zerocopysend: the extension http.response.zerocopysend is not in this scope"
    ]


def pipe(folder):
    reading, writing = os.pipe()
    os.close(writing)
    return reading


WRONG_FILES = {
    "bytes": lambda folder: b"content",
    "in memory": lambda folder: io.BytesIO(b"content"),
    "no descriptor": lambda folder: 2**31 - 1,
    "a folder": lambda folder: os.open(folder, os.O_RDONLY),
    "a pipe": pipe,
    "only for writing": lambda folder: os.open(folder / "new", os.O_WRONLY | os.O_CREAT),
}


@pytest.mark.parametrize("wrong", WRONG_FILES.values(), ids=WRONG_FILES)
async def test_a_wrong_file_can_be_answered(serve, file, wrong):
    folder = file().parent
    refused = []

    async def app(scope, receive, send):
        opened = wrong(folder)
        await start(send)
        try:
            await send_descriptor(send, opened)
        except InvalidMessage as error:
            refused.append(str(error))
            await send_body(send, b"sorry")
        else:
            await send_body(send)
        finally:
            if isinstance(opened, int) and opened != 2**31 - 1:
                os.close(opened)

    client = serve(app, pair=socket_pair)
    response = await client.fetch()
    if refused:
        assert response.body == b"sorry"
        assert refused[0].startswith("http.response.zerocopysend: ")
    else:
        assert response.body == b""  # empty, so that nobody has tried to read it
    assert client.observer.failures == []


# While it is sent


def shrinking(path, *, by):
    """An application whose file becomes shorter when half of it is on its way."""

    async def app(scope, receive, send):
        await start(send)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_path, send, path)
            await trio.testing.wait_all_tasks_blocked(0.05)
            os.truncate(path, path.stat().st_size - by)

    return app


LARGE = 8 * 1024 * 1024


@pytest.mark.parametrize("pair", [partial(socket_like_pair, 1000), socket_pair], ids=["narrow", "socket"])
async def test_a_file_that_becomes_shorter_cuts_the_connection(serve, file, pair):
    path = file(b"x" * LARGE)
    client = serve(shrinking(path, by=1), pair=pair)
    await client.request()
    await trio.testing.wait_all_tasks_blocked(0.1)
    with pytest.raises(IncompleteResponse) as caught:
        await client.response()
    assert caught.value.response.body == b"x" * (LARGE - 1)
    await client.done.wait()
    (failure,) = client.observer.failures
    assert "became shorter while it was sent" in repr(failure.exceptions[0])
    assert [each.complete for each in client.observer.ended] == [False]
    assert open_descriptors(path) == []


@pytest.mark.parametrize("pair", [partial(socket_like_pair, 1000), socket_pair], ids=["narrow", "socket"])
async def test_a_file_that_grows_is_sent_as_long_as_it_was(serve, file, pair):
    path = file(b"x" * LARGE)
    client = serve(shrinking(path, by=-1000), pair=pair)
    await client.request()
    await trio.testing.wait_all_tasks_blocked(0.1)
    assert (await client.response()).body == b"x" * LARGE


@pytest.mark.parametrize("pair", [partial(socket_like_pair, 1000), socket_pair], ids=["narrow", "socket"])
async def test_the_client_leaves_in_the_middle(serve, file, pair):
    path = file(b"x" * LARGE)
    raised = []

    async def app(scope, receive, send):
        await start(send)
        try:
            await send_path(send, path)
        except ClientDisconnected as error:
            raised.append(error)
            raise

    client = serve(app, pair=pair)
    await client.request()
    await client.stream.receive_some(100)
    await trio.testing.wait_all_tasks_blocked(0.05)
    await client.leave()
    await client.done.wait()
    assert len(raised) == 1
    assert client.observer.failures == []
    (ended,) = client.observer.ended
    assert not ended.complete
    assert 0 < ended.bytes_sent < LARGE
    assert open_descriptors(path) == []


@pytest.mark.parametrize("pair", [partial(socket_like_pair, 1000), socket_pair], ids=["narrow", "socket"])
async def test_cancelled_in_the_middle_the_connection_is_cut(serve, file, pair):
    path = file(b"x" * LARGE)

    async def app(scope, receive, send):
        await start(send)
        with trio.CancelScope() as own:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send_path, send, path)
                await trio.testing.wait_all_tasks_blocked(0.05)
                own.cancel()
        assert own.cancelled_caught
        with pytest.raises(ClientDisconnected):
            await send_body(send, b"more")

    client = serve(app, pair=pair)
    await client.request()
    await client.done.wait()
    with pytest.raises(IncompleteResponse):
        await client.response()
    assert client.observer.failures == []
    assert open_descriptors(path) == []


@pytest.mark.parametrize("pair", [partial(socket_like_pair, 1000), socket_pair], ids=["narrow", "socket"])
async def test_a_client_that_takes_nothing_is_given_up(serve, file, pair, mock_clock):
    """After `write_timeout`, whatever part of the file is on its way."""
    raised = []

    async def app(scope, receive, send):
        await start(send)
        try:
            await send_path(send, file(b"x" * LARGE))
        except ClientDisconnected as error:
            raised.append(error)

    client = serve(app, pair=pair, write_timeout=30)
    await client.request()
    await client.stream.receive_some(100)
    await trio.testing.wait_all_tasks_blocked(0.05)
    mock_clock.jump(29)
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert not client.done.is_set()
    mock_clock.jump(2)
    await client.done.wait()
    assert "write_timeout" in str(raised[0])


async def test_a_client_that_takes_slowly_has_time_for_each_piece(serve, file, mock_clock):
    """64 KiB in each `write_timeout`, not all of it."""
    path = file(b"x" * LARGE)
    client = serve(sends(path), pair=socket_pair, write_timeout=30)
    await client.request()
    received = b""
    while len(received) < LARGE:
        received += await client.stream.receive_some(1024 * 1024)
        await trio.testing.wait_all_tasks_blocked(0.005)
        mock_clock.jump(20)
    await end(client, 1)
    assert client.observer.ended[0].complete


async def test_where_the_system_can_not_copy_it_is_read(serve, file, monkeypatch):
    """As on some file systems."""
    calls = []

    def refuse(*args):
        calls.append(args)
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sendfile", refuse)
    client = serve(sends(file()), pair=socket_pair)
    for _ in range(2):
        assert (await client.fetch()).body == CONTENT
    assert calls


async def test_the_system_copies_what_is_more_than_a_piece(serve, file, monkeypatch):
    """Nothing of it is read here; what is not more leaves in one write with the head."""
    read = []
    really_read = files._read

    def note(descriptor, offset, count):
        read.append(count)
        return really_read(descriptor, offset, count)

    monkeypatch.setattr(files, "_read", note)
    for size in (PIECE, PIECE + 1, len(CONTENT)):
        assert (await serve(sends(file(CONTENT[:size])), pair=socket_pair).fetch()).body == CONTENT[:size]
    assert read == [PIECE]


def not_in_memory(monkeypatch, act=lambda: None):
    """Have everything be read from the disk, which takes until after `act`; gives what was loaded."""
    loaded = []

    def load(descriptor, offset, count):
        loaded.append((offset, count))
        act()

    monkeypatch.setattr(files, "_is_loaded", lambda descriptor, offset: False)
    monkeypatch.setattr(files, "_load", load)
    return loaded


async def test_what_is_not_in_memory_is_loaded_in_a_thread(serve, file, monkeypatch):
    """So that nothing waits for a disk while it is copied."""
    here = threading.get_ident()
    threads = set()
    loaded = not_in_memory(monkeypatch, lambda: threads.add(threading.get_ident()))
    assert (await serve(sends(file()), pair=socket_pair).fetch()).body == CONTENT
    assert loaded[0] == (0, transport.COPY_SIZE)
    assert loaded[-1][0] + loaded[-1][1] == len(CONTENT)
    assert here not in threads


def test_what_was_written_just_now_is_in_memory(file):
    """Or the system does not tell, which must not be an error."""
    with file().open("rb") as opened:
        told = [files._is_loaded(opened.fileno(), offset) for offset in (0, len(CONTENT) - 1, len(CONTENT))]
    assert told in ([True] * 3, [False] * 3)
    assert not files._is_loaded(-1, 0)


async def test_a_connection_that_is_closed_meanwhile(serve, file, monkeypatch):
    """What is loaded when the connection is closed goes to nobody: its number may be another connection's."""
    path = file(b"secret" * 100_000)
    loading, go_on = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()
    not_in_memory(monkeypatch, lambda: (token.run_sync_soon(loading.set), go_on.wait(SECONDS)))
    client = serve(sends(path), pair=socket_pair)
    number = client.server.direct.socket.fileno()
    await client.request()
    await loading.wait()
    await client.leave()
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert client.server.direct.socket.fileno() == -1  # closed, and its number free for another
    mine, other = socket.socketpair()
    with mine, other:
        assert number in (mine.fileno(), other.fileno())
        go_on.set()
        await client.done.wait()
        for stranger in mine, other:
            stranger.setblocking(False)
            with pytest.raises(BlockingIOError):
                stranger.recv(1)


async def test_a_client_that_leaves_at_once_has_its_response(serve, file):
    """It has read all of it, so that is how the response is reported."""
    for size in (PIECE + 1, len(CONTENT)):
        client = serve(sends(file(CONTENT[:size])), pair=socket_pair)
        assert (await client.fetch()).body == CONTENT[:size]
        await end(client)
        assert [each.complete for each in client.observer.ended] == [True]


# At every moment


class Disturbance(trio.abc.Instrument):
    """Does something at the end of the n-th step of any task."""

    def __init__(self, turn):
        self.turn = turn
        self.steps = 0
        self.act = None
        self.acted = False

    def after_task_step(self, task):
        if self.act is not None:
            self.steps += 1
            if self.steps >= self.turn and not self.acted:
                self.acted = True
                self.act()


async def a_path(path, send):
    await start(send)
    await send_path(send, path)


async def a_path_and_trailers(path, send):
    await start(send, trailers=True)
    await send_path(send, path)
    await send({"type": "http.response.trailers", "headers": []})


async def descriptors(path, send):
    with path.open("rb") as opened:
        await start(send)
        await send_descriptor(send, opened, count=PIECE + 1, more_body=True)
        await send_body(send, b"", more=True)
        await send_descriptor(send, opened)


WHOM = ["connection", "client", "exchange", "application", "application that answers"]
SCENARIOS = {
    "path": (a_path, PAIRS["memory"]),
    "path on a narrow stream": (a_path, partial(socket_like_pair, 60_000)),
    "path on a socket": (a_path, socket_pair),
    "path and trailers": (a_path_and_trailers, PAIRS["memory"]),
    "path and trailers on a socket": (a_path_and_trailers, socket_pair),
    "descriptors": (descriptors, socket_pair),
}


@pytest.mark.parametrize("whom", WHOM)
@pytest.mark.parametrize("name", SCENARIOS, ids=lambda name: name.replace(" ", "-"))
def test_at_every_step(name, whom, tmp_path):
    script, make_pair = SCENARIOS[name]
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    for turn in count(1):
        disturbance = Disturbance(turn)
        trio.run(
            disturbed,
            script,
            make_pair,
            path,
            whom,
            disturbance,
            clock=trio.testing.MockClock(rate=100),
            instruments=[disturbance],
        )
        assert open_descriptors(path) == []
        if not disturbance.acted:
            break
        assert turn < 300
    assert turn > 5


async def disturbed(script, make_pair, path, whom, disturbance):
    responses = []
    calls = []
    client_stream, server_stream = make_pair()
    connection = trio.CancelScope()

    async def app(scope, receive, send):
        calls.append(scope)
        if whom == "exchange":
            disturbance.act = scope["extensions"]["trigi"]["cancel_scope"].cancel
        with trio.CancelScope() as own:
            if whom.startswith("application"):
                disturbance.act = own.cancel
            await read_body(receive)
            await script(path, send)
        if own.cancelled_caught and whom == "application that answers":
            with suppress(ApplicationError, ClientDisconnected):
                await respond(send, b"sorry")

    def leave():
        if isinstance(client_stream, SocketStream):
            client_stream.direct.socket.shutdown(socket.SHUT_RDWR)
        elif isinstance(client_stream, trio.StapledStream):
            client_stream.send_stream.close()
            client_stream.receive_stream.close()
        else:
            client_stream.reset()

    async def use():
        client = HTTPClient(client_stream)
        with suppress(IncompleteResponse, trio.BrokenResourceError, trio.ClosedResourceError):
            for _ in range(2):
                responses.append(await client.fetch(headers=[(b"te", b"trailers")]))  # noqa: PERF401

    observer = Recorder()
    context = ServerContext(app, Config(), observer=observer)

    async def serve():
        with connection:
            await serve_stream(server_stream, context)

    with trio.fail_after(SECONDS * 100):
        async with trio.open_nursery() as nursery:
            if whom == "connection":
                disturbance.act = connection.cancel
            elif whom == "client":
                disturbance.act = leave
            nursery.start_soon(serve)
            await use()
            await trio.aclose_forcefully(client_stream)
    assert observer.bugs == []
    assert context.running == set()
    assert context.connections == set()
    assert len(observer.ended) == len(calls)
    for response in responses:
        digest = hashlib.sha256(response.body).hexdigest()
        if response.status == 200:
            assert response.body == b"sorry" or digest == hashlib.sha256(CONTENT).hexdigest()
        else:
            assert response.body == b"%d %b\n" % (response.status, response.reason)
