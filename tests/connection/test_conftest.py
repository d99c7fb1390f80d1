"""The stream that stands for a socket in these tests is a stream as trio defines them."""

from __future__ import annotations

import pytest
import trio
from trio.testing import check_half_closeable_stream

from tests.connection.conftest import socket_like_pair

pytestmark = pytest.mark.usefixtures("virtual_time")


async def test_the_socket_like_stream_is_a_stream():
    async def make_pair():
        return socket_like_pair()

    async def make_clogged_pair():
        client, server = socket_like_pair(1)
        await client.send_all(b"x")
        await server.send_all(b"x")
        return client, server

    await check_half_closeable_stream(make_pair, make_clogged_pair)


async def test_what_is_not_read_before_a_reset_is_lost():
    client, server = socket_like_pair()
    await client.send_all(b"upload")
    await server.send_all(b"response")
    await server.aclose()  # with the upload unread
    with pytest.raises(trio.BrokenResourceError):
        await client.receive_some()
