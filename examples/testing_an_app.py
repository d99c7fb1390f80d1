"""Test an application without a network: a server and a client in memory, and a clock that does not wait.

    python -m pytest examples/testing_an_app.py        (pip install pytest pytest-trio)

What is tested is all of it but the socket: the bytes, the limits, the timeouts, the cancellation.
"""

import pytest
import trio

import trigi
from trigi.testing import HTTPClient, open_connection

pytestmark = pytest.mark.trio


async def app(scope, receive, send):
    """The application under test: an answer, and another that takes an hour."""
    if scope["path"] == "/slow":
        try:
            await trio.sleep(3600)
        finally:
            scope["state"]["ended"].set()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"Hello " + scope["query_string"]})


async def test_it_greets():
    async with open_connection(app) as stream:
        response = await HTTPClient(stream).fetch("/?Ada")
    assert response.status == 200
    assert response.header(b"content-type") == b"text/plain"
    assert response.body == b"Hello Ada"


async def test_two_requests_share_a_connection():
    async with open_connection(app) as stream:
        client = HTTPClient(stream)
        assert (await client.fetch("/?Ada")).body == b"Hello Ada"
        assert (await client.fetch("/?Bob")).body == b"Hello Bob"


async def test_a_slow_answer_ends_when_the_client_leaves(autojump_clock):
    """With the fixture `autojump_clock` trio's clock jumps to the next thing that happens: this takes no time."""
    ended = trio.Event()
    config = trigi.Config(disconnect_grace=5)
    async with open_connection(app, config, state={"ended": ended}) as stream:
        await HTTPClient(stream).request(target="/slow")
        await trio.sleep(10)
        left = trio.current_time()
    assert ended.is_set()
    assert trio.current_time() - left == pytest.approx(5)


async def test_a_request_has_a_time_limit(autojump_clock):
    config = trigi.Config(request_timeout=60)
    async with open_connection(app, config, state={"ended": trio.Event()}) as stream:
        response = await HTTPClient(stream).fetch("/slow")
    assert response.status == 504
