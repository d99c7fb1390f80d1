"""ASGI2Adapter: the double callable as a single one, whatever asks."""

from __future__ import annotations

import asyncio
import inspect

import httpx
import pytest
import trio

from trigi.adapters import ASGI2Adapter


class Echo:
    """The class form: an instance for each scope."""

    instances = 0

    def __init__(self, scope) -> None:
        type(self).instances += 1
        self.scope = scope

    async def __call__(self, receive, send):
        message = await receive()
        await send({"type": "echo", "body": message["body"], "path": self.scope["path"]})
        return "result"


def function_form(scope):
    async def instance(receive, send):
        return await Echo(scope)(receive, send)

    return instance


class ObjectForm:
    def __call__(self, scope):
        return Echo(scope)


async def call(application, scope, *messages):
    """What one call gives, and what it sent."""
    received, sent = list(messages), []

    async def receive():
        return received.pop(0)

    async def send(message) -> None:
        sent.append(message)

    return await application(scope, receive, send), sent


@pytest.mark.parametrize(
    "application", [Echo, function_form, ObjectForm()], ids=["class", "function", "object"]
)
async def test_the_forms_of_asgi_2(application):
    result, sent = await call(ASGI2Adapter(application), {"path": "/a"}, {"body": b"hello"})
    assert sent == [{"type": "echo", "body": b"hello", "path": "/a"}]
    assert result == "result"


async def test_each_call_has_an_instance_of_its_own():
    adapted = ASGI2Adapter(Echo)
    before = Echo.instances
    await call(adapted, {"path": "/a"}, {"body": b""})
    _, sent = await call(adapted, {"path": "/b"}, {"body": b""})
    assert Echo.instances == before + 2
    assert sent[0]["path"] == "/b"


async def test_the_scope_is_passed_on_as_it_is():
    scope = {"type": "http", "asgi": {"version": "3.0"}}
    seen = []

    class Application:
        def __init__(self, scope) -> None:
            seen.append(scope)

        async def __call__(self, receive, send): ...

    await call(ASGI2Adapter(Application), scope)
    assert seen[0] is scope


async def test_an_exception_of_the_first_call_is_one_of_the_whole():
    def no_lifespan(scope):
        raise ValueError(scope["type"])

    with pytest.raises(ValueError, match="lifespan"):
        await call(ASGI2Adapter(no_lifespan), {"type": "lifespan"})


async def test_an_exception_of_the_instance_passes():
    class Failing(Echo):
        async def __call__(self, receive, send):
            raise LookupError(self.scope["path"])

    with pytest.raises(LookupError, match="/a"):
        await call(ASGI2Adapter(Failing), {"path": "/a"})


async def test_the_instance_is_cancelled_in_its_own_call(autojump_clock):
    class Endless(Echo):
        async def __call__(self, receive, send):
            try:
                await trio.sleep_forever()
            finally:
                cleaned_up.append(True)

    cleaned_up = []
    with trio.move_on_after(1) as scope:
        await call(ASGI2Adapter(Endless), {"path": "/a"})
    assert scope.cancelled_caught
    assert cleaned_up == [True]


def test_it_is_seen_as_asgi_3():
    adapted = ASGI2Adapter(Echo)
    assert adapted._asgi_single_callable
    assert inspect.iscoroutinefunction(adapted.__call__)
    assert not inspect.isclass(adapted)
    inspect.signature(adapted).bind("scope", "receive", "send")


class Hello:
    """A whole application, which knows no lifespan."""

    def __init__(self, scope) -> None:
        assert scope["type"] == "http"

    async def __call__(self, receive, send):
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"got " + body})


@pytest.mark.parametrize("run", [trio.run, lambda main: asyncio.run(main())], ids=["trio", "asyncio"])
def test_it_runs_under_any_asgi_3_server(run):
    async def main() -> bytes:
        transport = httpx.ASGITransport(ASGI2Adapter(Hello))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.post("/", content=b"this")).content

    assert run(main) == b"got this"
