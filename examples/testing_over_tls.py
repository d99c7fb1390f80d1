"""Test your own application over TLS: a real socket, certificates made for the test, a client that checks them.

    python -m pytest examples/testing_over_tls.py        (pip install pytest pytest-trio httpx trustme)

The server is a task in the test's own nursery: it listens before the first request, is gone after the last, and what
the application has in hand the test can see. For all but TLS and the socket, testing_an_app.py is quicker.
"""

import ssl
from functools import partial

import httpx
import pytest
import trio
import trustme

import trigi

pytestmark = pytest.mark.trio


async def app(scope, receive, send):
    """The application under test: it wants HTTPS, and greets who has shown a certificate."""
    name = scope["extensions"]["tls"]["client_cert_name"] if scope["scheme"] == "https" else None
    await send({"type": "http.response.start", "status": 200 if name else 403, "headers": []})
    await send({"type": "http.response.body", "body": f"Hello {name}".encode() if name else b"Who are you?"})


@pytest.fixture
def authority():
    """Signs the certificates, and is trusted by nobody else."""
    return trustme.CA()


@pytest.fixture
async def url(authority):
    """Where the application is served meanwhile."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    config = trigi.Config(bind="127.0.0.1:0", lifespan="off")  # port 0: one that is free
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(partial(trigi.serve, app, config, ssl_context=context))
        yield urls[0]
        nursery.cancel_scope.cancel()


@pytest.fixture
def client_context(authority):
    """What a client needs to know the server again."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_a_stranger_is_asked_for_a_name(url, client_context):
    async with httpx.AsyncClient(verify=client_context) as client:
        response = await client.get(url)
    assert (response.status_code, response.text) == (403, "Who are you?")


async def test_a_client_is_known_by_its_certificate(url, authority, client_context):
    authority.issue_cert("ada@example.org", common_name="Ada").configure_cert(client_context)
    async with httpx.AsyncClient(verify=client_context) as client:
        response = await client.get(url)
    assert response.status_code == 200
    assert response.text.startswith("Hello CN=Ada,")


async def test_who_does_not_trust_the_authority_does_not_connect(url):
    async with httpx.AsyncClient(verify=ssl.create_default_context()) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get(url)
