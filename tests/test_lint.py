"""lint: what the specification allows passes untouched, and what it does not is refused by name."""

from __future__ import annotations

import enum
import http
import math
from contextlib import suppress
from itertools import product
from pathlib import PurePath

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import memory_stream_pair

from trigi._connection.context import ServerContext
from trigi._connection.observer import Observer
from trigi._connection.serve import serve_stream
from trigi._protocol.asgi import EXTENSIONS, FLAGS, HTTP_SEND, LIFESPAN_SEND, WEBSOCKET_SEND
from trigi._protocol.events import Request
from trigi._protocol.scope import ConnectionInfo, Endpoint, http_scope, lifespan_scope, websocket_scope
from trigi.config import Config
from trigi.exceptions import ClientDisconnected, InvalidMessage, TrigiError, UnexpectedMessage
from trigi.lint import RECEIVE_ORDER, RECEIVED, SCOPES, SENT, lint

TLS = {
    "server_cert": "-----BEGIN CERTIFICATE-----",
    "client_cert_chain": [],
    "client_cert_name": None,
    "client_cert_error": None,
    "tls_version": 0x0304,
    "cipher_suite": 0x1301,
}
REQUEST = Request(
    "GET", b"/a%20b?q", b"/a%20b", b"q", "1.1", [(b"host", b"example.org"), (b"cookie", b"a=b")]
)
CONNECTION = ConnectionInfo(Endpoint("127.0.0.1", 50000), Endpoint("127.0.0.1", 8000), TLS)

# What a server of ours calls an application with, and a second opinion: as little as the specification asks for.
FULL_SCOPES = {
    "http": lambda: http_scope(
        REQUEST, CONNECTION, "/mnt", {"pool": object()}, {"scope": object()}, extensions=EXTENSIONS.values()
    ),
    "websocket": lambda: websocket_scope(REQUEST, CONNECTION, "", {}, {}, subprotocols=["chat"]),
    "lifespan": lambda: lifespan_scope({}),
}
LEAST_SCOPES = {
    "http": lambda: {
        "type": "http",
        "asgi": {"version": "2.0"},
        "http_version": "1.0",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": (),
    },
    "websocket": lambda: {"type": "websocket", "asgi": {"version": "3.0"}, "path": "/", "headers": []},
    "lifespan": lambda: {"type": "lifespan", "asgi": {"version": "3.0"}},
}

# Of each message an example with every key, all of them right.
FULL_MESSAGES = {
    "http.request": {"body": b"x", "more_body": True},
    "http.disconnect": {},
    "http.response.start": {"status": 200, "headers": [(b"a", b"1"), [b"a", b"\xff"]], "trailers": True},
    "http.response.body": {"body": b"x", "more_body": True},
    "http.response.early_hint": {"links": [b"</a.css>; rel=preload"]},
    "http.response.pathsend": {"path": "/srv/a"},
    "http.response.zerocopysend": {"file": 0, "offset": 0, "count": 2**63 - 1, "more_body": False},
    "http.response.trailers": {"headers": ((b"digest", b"x"),), "more_trailers": False},
    "websocket.connect": {},
    "websocket.receive": {"bytes": None, "text": ""},
    "websocket.disconnect": {"code": 1006, "reason": None},
    "websocket.accept": {"subprotocol": "chat", "headers": [(b"set-cookie", b"a=b")]},
    "websocket.send": {"bytes": b"", "text": None},
    "websocket.close": {"code": 4001, "reason": "é" * 61},
    "websocket.http.response.start": {"status": 401, "headers": []},
    "websocket.http.response.body": {"body": b"x", "more_body": False},
    "lifespan.startup": {},
    "lifespan.shutdown": {},
    "lifespan.startup.complete": {},
    "lifespan.startup.failed": {"message": "no"},
    "lifespan.shutdown.complete": {},
    "lifespan.shutdown.failed": {"message": ""},
}

REQUIRED = {
    "http.response.start": {"status"},
    "http.response.early_hint": {"links"},
    "http.response.pathsend": {"path"},
    "http.response.zerocopysend": {"file"},
    "http.response.trailers": {"headers"},
    "websocket.disconnect": {"code"},
    "websocket.http.response.start": {"status"},
}

BOOL = [None, 0, 1, "true", b""]
BYTES = [None, "text", 5, bytearray(b"x"), memoryview(b"x"), [b"x"]]
TEXT = [b"bytes", 5, True, ["a"], "\ud800"]
STATUS = [None, "200", b"200", 200.0, True, 199, 101, 0, -1, 1000, 2**63, 10**5000]
HEADERS = [
    None,
    {},
    "text",
    b"bytes",
    iter([]),
    {(b"a", b"b")},
    [(b"a",)],
    [(b"a", b"b", b"c")],
    [b"ab"],
    [None],
    [("a", b"b")],
    [(b"a", "b")],
    [(b"a", None)],
    [(b"A", b"b")],
    [(b":status", b"200")],
    [(b"", b"b")],
    [(b"a b", b"c")],
    [(b"a:", b"c")],
    [(b"a\n", b"c")],
    [(b"a", b"x\r\ny: z")],
    [(b"a", b"\0")],
]
WRONG_VALUES = {
    ("http.request", "body"): BYTES,
    ("http.request", "more_body"): BOOL,
    ("http.response.start", "status"): STATUS,
    ("http.response.start", "headers"): [*HEADERS, [(b"transfer-encoding", b"chunked")]],
    ("http.response.start", "trailers"): BOOL,
    ("http.response.body", "body"): BYTES,
    ("http.response.body", "more_body"): BOOL,
    ("http.response.early_hint", "links"): [None, "a", b"a", iter([b"a"]), ["a"], [b"a\n"], [(b"a", b"b")]],
    ("http.response.pathsend", "path"): [None, *TEXT, "", "a", "./a", "~/a", PurePath("/srv/a")],
    ("http.response.zerocopysend", "file"): [None, "a", b"a", True, [0], object()],
    ("http.response.zerocopysend", "offset"): [None, "0", 0.0, True, -1, 2**63],
    ("http.response.zerocopysend", "count"): [None, "0", 0.0, True, -1, 2**63],
    ("http.response.zerocopysend", "more_body"): BOOL,
    ("http.response.trailers", "headers"): [*HEADERS, [(b"content-length", b"1")]],
    ("http.response.trailers", "more_trailers"): BOOL,
    ("websocket.receive", "bytes"): [*BYTES[1:]],
    ("websocket.receive", "text"): TEXT,
    ("websocket.disconnect", "code"): [None, "1000", 1000.0, True, 2**63],
    ("websocket.disconnect", "reason"): TEXT,
    ("websocket.accept", "subprotocol"): [b"chat", "", 1],
    ("websocket.accept", "headers"): [*HEADERS, [(b"sec-websocket-protocol", b"chat")]],
    ("websocket.send", "bytes"): [*BYTES[1:]],
    ("websocket.send", "text"): TEXT,
    ("websocket.close", "code"): [None, "1000", 1000.0, True, 403, 999, 1004, 1005, 1006, 1015, 2999, 5000],
    ("websocket.close", "reason"): [*TEXT, "x" * 124, "é" * 62],
    ("websocket.http.response.start", "status"): STATUS,
    ("websocket.http.response.start", "headers"): [*HEADERS, [(b"transfer-encoding", b"chunked")]],
    ("websocket.http.response.body", "body"): BYTES,
    ("websocket.http.response.body", "more_body"): BOOL,
    ("lifespan.startup.failed", "message"): [None, *TEXT],
    ("lifespan.shutdown.failed", "message"): [None, *TEXT],
}


# What has to come first.
BEFORE = {
    "http.response.early_hint": ["http.response.start"],
    "websocket.receive": ["websocket.connect"],
    "websocket.disconnect": ["websocket.connect"],
    "lifespan.shutdown": ["lifespan.startup"],
}


def kind_of(type_):
    return type_.partition(".")[0]


async def no_receive():
    raise AssertionError


async def no_send(_):
    raise AssertionError


async def say(*messages, scope=None):
    """Have an application send messages; gives what its server got."""
    got = []

    async def application(_scope, _receive, send):
        for message in messages:
            await send(message)

    async def send(message):
        got.append(message)

    await lint(application)(scope or FULL_SCOPES[kind_of(messages[0]["type"])](), no_receive, send)
    return got


async def hear(messages, kind=None):
    """Have an application receive messages; gives what it got."""
    got = []

    async def application(_scope, receive, _send):
        got.extend([await receive() for _ in messages])

    server = iter(messages)

    async def receive():
        return next(server)

    await lint(application)(FULL_SCOPES[kind or kind_of(messages[0]["type"])](), receive, no_send)
    return got


async def pass_on(type_, message):
    """Take a message through, whichever way it goes, from a state in which it is expected."""
    before = [{"type": each} | FULL_MESSAGES[each] for each in BEFORE.get(type_, [])]
    if type_ in SENT[kind_of(type_)]:
        passed = await say(*before, message)
    else:
        passed = await hear([*before, message])
    return passed[len(before) :]


# The tables


def test_lint_knows_exactly_the_messages_that_the_server_takes():
    events = {
        "http": {event for row in HTTP_SEND.values() for event in row},
        "websocket": {event for row in WEBSOCKET_SEND.values() for event in row},
        "lifespan": {event for row in LIFESPAN_SEND.values() for event in row},
    }
    for kind, names in events.items():
        assert set(SENT[kind]) == {name.partition("+")[0] for name in names}
    for type_, key in FLAGS.items():
        assert key in SENT[kind_of(type_)][type_]


def test_the_examples_above_are_complete():
    tables = [*SENT.values(), *RECEIVED.values()]
    assert set(FULL_MESSAGES) == {type_ for table in tables for type_ in table}
    for table in tables:
        for type_, keys in table.items():
            assert set(FULL_MESSAGES[type_]) == set(keys)
            assert {key for key in keys if keys[key].required} == REQUIRED.get(type_, set())
    assert set(WRONG_VALUES) == {(type_, key) for type_, keys in FULL_MESSAGES.items() for key in keys}


# Messages, by themselves


@pytest.mark.parametrize("type_", FULL_MESSAGES)
async def test_a_right_message_passes_as_the_same_object(type_):
    message = {"type": type_} | FULL_MESSAGES[type_]
    assert (await pass_on(type_, message))[0] is message


@pytest.mark.parametrize("type_", FULL_MESSAGES)
async def test_what_has_a_default_may_be_missing(type_):
    required = REQUIRED.get(type_, set())
    message = {"type": type_} | {
        key: value for key, value in FULL_MESSAGES[type_].items() if key in required or value is not None
    }
    for key in FULL_MESSAGES[type_]:
        if key in required or type_ in ("websocket.send", "websocket.receive"):
            continue
        message.pop(key, None)
    assert await pass_on(type_, message) == [message]


@pytest.mark.parametrize(("type_", "key"), [(type_, key) for type_ in REQUIRED for key in REQUIRED[type_]])
async def test_what_has_none_may_not(type_, key):
    message = {"type": type_} | FULL_MESSAGES[type_]
    del message[key]
    with pytest.raises(TrigiError, match=rf"{type_}: {key} is missing$"):
        await pass_on(type_, message)


@pytest.mark.parametrize(
    ("type_", "key", "value"),
    [pytest.param(*where, value) for where, values in WRONG_VALUES.items() for value in values],
    ids=lambda value: None if isinstance(value, str) else f"{value!r:.30}" if value != 10**5000 else "huge",
)
async def test_a_wrong_value_is_refused_by_its_path(type_, key, value):
    message = {"type": type_} | FULL_MESSAGES[type_] | {key: value}
    with pytest.raises(TrigiError) as caught:
        await pass_on(type_, message)
    assert f"{type_}: {key}" in str(caught.value)
    if type_ in SENT[kind_of(type_)]:
        assert type(caught.value) is InvalidMessage
    else:
        assert str(caught.value).startswith("a bug in the server, not in the application: ")


async def test_the_path_leads_into_the_value():
    with pytest.raises(InvalidMessage) as caught:
        await say(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"a", b"b"), (b"a", b"b"), (b"a", "b")],
            }
        )
    assert str(caught.value) == "http.response.start: headers[2][1] must be bytes, got str"


@pytest.mark.parametrize("type_", ["websocket.send", "websocket.receive"])
@pytest.mark.parametrize(
    "values",
    [{}, {"text": None}, {"bytes": None}, {"text": None, "bytes": None}, {"text": "", "bytes": b""}],
)
async def test_exactly_one_of_text_and_bytes(type_, values):
    with pytest.raises(TrigiError, match=f"{type_}: exactly one of bytes and text"):
        await pass_on(type_, {"type": type_} | values)


@pytest.mark.parametrize("status", [200, 999, http.HTTPStatus.IM_A_TEAPOT])
async def test_a_status_may_be_an_enum_of_ints(status):
    assert await say({"type": "http.response.start", "status": status})


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1014, 3000, 4999])
async def test_close_codes_that_can_be_sent(code):
    assert await say({"type": "websocket.close", "code": code})


@pytest.mark.parametrize("message", [None, [], [("type", "http.response.body")], "http.response.body", b""])
async def test_a_message_is_a_dict(message):
    async def application(_scope, _receive, send):
        await send(message)

    with pytest.raises(InvalidMessage, match="a message must be a dict"):
        await lint(application)(FULL_SCOPES["http"](), no_receive, no_send)


@pytest.mark.parametrize(
    ("message", "what"),
    [
        ({}, "type is missing"),
        ({"type": None}, "type must be str"),
        ({"type": b"http.response.body"}, "type must be str, got bytes"),
        ({"type": ["http.response.body"]}, "type must be str, got list"),
        (
            {"type": "http.response.boby"},
            "type must be one of .*'http.response.body'.*, got 'http.response.boby'",
        ),
    ],
)
async def test_a_message_has_a_type(message, what):
    with pytest.raises(InvalidMessage, match=what):
        await say(message, scope=FULL_SCOPES["http"]())


@pytest.mark.parametrize(("kind", "type_"), [*product(SCOPES, FULL_MESSAGES)])
async def test_a_type_belongs_to_a_scope_and_a_direction(kind, type_):
    message = {"type": type_} | FULL_MESSAGES[type_]
    if type_ not in SENT[kind]:
        with pytest.raises(InvalidMessage, match="type must be one of"):
            await say(message, scope=FULL_SCOPES[kind]())
    if type_ not in RECEIVED[kind]:
        with pytest.raises(TrigiError, match="a bug in the server"):
            await hear([message], kind)


# Plain data

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.binary() | st.text()
scalars |= st.floats(allow_nan=False, allow_infinity=False)
containers = lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner)
plain_values = st.recursive(scalars, containers, max_leaves=20)
odd = st.sampled_from(
    [math.nan, math.inf, -math.inf, 2**63, -(2**63) - 1, 1j, object(), {1}, bytearray(), {1: 2}, {b"": 0}]
)
odd_values = st.recursive(
    odd,
    lambda inner: (
        st.tuples(plain_values, inner)
        | st.tuples(inner, plain_values).map(list)
        | st.fixed_dictionaries({"good": plain_values, "odd": inner})
    ),
)


def send_extra(value):
    """Send a message with a key that the specification does not know; gives the error."""
    call = say({"type": "http.response.body", "extra": value})
    try:
        call.send(None)
    except StopIteration:
        return None
    except InvalidMessage as error:
        return str(error)
    raise AssertionError("lint waits for something")


@given(plain_values)
def test_unknown_keys_may_have_any_plain_value(value):
    assert send_extra(value) is None


@given(odd_values)
def test_unknown_keys_may_have_no_other(value):
    error = send_extra(value)
    assert error is not None
    assert error.startswith("http.response.body: extra")


async def test_subclasses_are_plain():
    class Colour(enum.IntEnum):
        RED = 1

    class Text(str):
        __slots__ = ()

    assert await say({"type": "http.response.body", "extra": [Colour.RED, Text("x"), Endpoint("x", None)]})


async def test_keys_are_str():
    with pytest.raises(InvalidMessage, match=r"http.response.body: b'body', a key, must be str, got bytes"):
        await say({"type": "http.response.body", b"body": b""})


# Extensions


@pytest.mark.parametrize("type_", EXTENSIONS)
async def test_an_extension_that_is_not_in_the_scope_is_not_there(type_):
    scope = FULL_SCOPES[kind_of(type_)]()
    del scope["extensions"][EXTENSIONS[type_]]
    with pytest.raises(InvalidMessage, match=f"the extension {EXTENSIONS[type_]} is not in this scope"):
        await say({"type": type_} | FULL_MESSAGES[type_], scope=scope)


# Order


async def run_http_application(application, server_send=None):
    async def send(_):
        pass

    await lint(application)(FULL_SCOPES["http"](), no_receive, server_send or send)


START = {"type": "http.response.start", "status": 200}
BODY = {"type": "http.response.body", "body": b"x"}
HINT = {"type": "http.response.early_hint", "links": [b"</a>"]}
TRAILERS = {"type": "http.response.trailers", "headers": []}


@pytest.mark.parametrize(
    "messages",
    [
        [START, BODY],
        [START, HINT, BODY | {"more_body": True}, HINT, BODY],
        [START | {"trailers": True}, HINT, BODY, TRAILERS | {"more_trailers": True}, TRAILERS],
    ],
)
async def test_nothing_may_follow_a_complete_response(messages):
    async def application(_scope, _receive, send):
        for message in messages:
            await send(message)
        for late in (BODY, BODY | {"more_body": True}, TRAILERS, HINT):
            with pytest.raises(UnexpectedMessage, match="in state COMPLETE: expected nothing more"):
                await send(late)

    await run_http_application(application)


async def test_an_early_hint_comes_after_the_start():
    async def application(_scope, _receive, send):
        with pytest.raises(UnexpectedMessage, match=r"state START: expected http.response.start or"):
            await send(HINT)
        await send(START)
        await send(HINT)

    await run_http_application(application)


async def test_other_disorder_is_left_to_the_server():
    got = []

    async def send(message):
        got.append(message)

    async def application(_scope, _receive, send):
        await send(BODY)
        await send(START)
        await send(START)

    await run_http_application(application, send)
    assert got == [BODY, START, START]


async def test_what_the_server_did_not_take_was_not_sent():
    """The client leaves during the last message: what a framework tries then meets that error again, no other."""

    async def server_send(message):
        if message["type"] == "http.response.body":
            raise ClientDisconnected

    async def application(_scope, _receive, send):
        await send(START)
        for _ in range(2):
            with pytest.raises(ClientDisconnected):
                await send(BODY)

    await run_http_application(application, server_send)


def example_of(event):
    type_, _, flag = event.partition("+")
    message = {"type": type_} | FULL_MESSAGES[type_]
    return (message | {"more_body": bool(flag)}) if type_ == "http.request" else message


FIRST = {
    # what a server sends before it is in the state
    "http.request+more_body": ["http.request+more_body"],
    "http.request": ["http.request+more_body", "http.request"],
    "http.disconnect": ["http.disconnect"],
    "websocket.connect": ["websocket.connect"],
    "websocket.receive": ["websocket.connect", "websocket.receive"],
    "websocket.disconnect": ["websocket.connect", "websocket.disconnect"],
    "lifespan.startup": ["lifespan.startup"],
    "lifespan.shutdown": ["lifespan.startup", "lifespan.shutdown"],
}
RECEIVE_EVENTS = {kind: [event for event in FIRST if kind_of(event) == kind] for kind in RECEIVED}


@pytest.mark.parametrize(
    ("state", "event"),
    [(state, event) for state in RECEIVE_ORDER for event in RECEIVE_EVENTS[kind_of(state)]],
)
async def test_the_order_of_what_a_server_sends(state, event):
    messages = [example_of(each) for each in [*FIRST.get(state, []), event]]
    if event in RECEIVE_ORDER[state]:
        assert await hear(messages, kind_of(state)) == messages
    else:
        with pytest.raises(TrigiError) as caught:
            await hear(messages, kind_of(state))
        assert f"a bug in the server, not in the application: {event} must not come after {state}" == str(
            caught.value
        )


# Scopes


async def call_with(scope):
    called = []

    async def application(scope, _receive, _send):
        called.append(scope)
        return "its result"

    result = await lint(application)(scope, no_receive, no_send)
    assert called[0] is scope
    return result


@pytest.mark.parametrize("scopes", [FULL_SCOPES, LEAST_SCOPES], ids=["full", "least"])
@pytest.mark.parametrize("kind", SCOPES)
async def test_a_right_scope_passes(kind, scopes):
    assert await call_with(scopes[kind]()) == "its result"
    assert await call_with(scopes[kind]() | {"server.own": object()}) == "its result"


async def refusal(scope):
    with pytest.raises(TrigiError) as caught:
        await call_with(scope)
    assert type(caught.value) is TrigiError
    start, _, what = str(caught.value).partition("not in the application: ")
    assert start == "a bug in the server, "
    return what


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind in SCOPES for key in LEAST_SCOPES[kind]()])
async def test_a_scope_without_a_required_key(kind, key):
    scope = LEAST_SCOPES[kind]()
    del scope[key]
    expected = "scope: type must be str" if key == "type" else f"{kind} scope: {key} is missing"
    assert expected in await refusal(scope)


HTTP_AND_WEBSOCKET = {
    "http_version": ["3.0", b"1.1", 1.1],
    "scheme": ["", b"http", None],
    "path": [b"/", None, "\udcff"],
    "raw_path": ["/"],
    "query_string": ["", None],
    "root_path": [None, b"", "/elsewhere"],
    "headers": HEADERS,
    "client": ["127.0.0.1", ("127.0.0.1",), ("127.0.0.1", "80"), ("/run/socket", None), (b"127.0.0.1", 80)],
    "server": ["unix", (b"/run/socket", None), ("127.0.0.1", "80")],
    "state": [None, [], {1: 2}],
    "extensions": [None, [], ["tls"], {"tls": None}, {"x": True}, {b"x": {}}, {"tls": {}}],
}
WRONG_IN_SCOPES = {
    "http": HTTP_AND_WEBSOCKET | {"method": [None, "", "get", b"GET"]},
    "websocket": HTTP_AND_WEBSOCKET
    | {"method": ["GET"], "subprotocols": [None, "chat", [b"chat"]], "http_version": ["1.0"]},
    "lifespan": {"state": [None, {1: 2}]},
}
WRONG_ASGI = [
    None,
    {},
    "3.0",
    {"version": "4.0"},
    {"version": 3.0},
    {"version": "3.0", "spec_version": "9.9"},
]


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        pytest.param(kind, key, value)
        for kind in SCOPES
        for key, values in (WRONG_IN_SCOPES[kind] | {"asgi": WRONG_ASGI}).items()
        for value in values
    ],
    ids=lambda value: value if isinstance(value, str) and value.isalpha() else f"{value!r:.30}",
)
async def test_a_scope_with_a_wrong_value(kind, key, value):
    refused = await refusal(FULL_SCOPES[kind]() | {key: value})
    if key == "root_path" and value == "/elsewhere":
        key = "path"
    assert refused.startswith(f"{kind} scope: {key}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server_cert", b""),
        ("client_cert_chain", None),
        ("client_cert_chain", [b""]),
        ("client_cert_name", b""),
        ("client_cert_error", ""),
        ("tls_version", "1.3"),
        ("cipher_suite", 0x10000),
    ],
)
async def test_the_tls_extension(key, value):
    scope = FULL_SCOPES["http"]()
    scope["extensions"]["tls"][key] = value
    assert (await refusal(scope)).startswith(f"http scope: extensions[tls][{key}]")


async def test_an_extension_of_the_servers_own_may_hold_objects():
    scope = FULL_SCOPES["http"]()
    scope["extensions"]["trigi"] = {"cancel_scope": object()}
    assert await call_with(scope)


async def test_the_asterisk_of_options_is_below_no_root_path():
    assert await call_with(FULL_SCOPES["http"]() | {"method": "OPTIONS", "path": "*"})


@pytest.mark.parametrize("scope", [None, [], {"type": "ftp"}, {"type": b"http"}, {}])
async def test_no_scope_at_all(scope):
    assert (await refusal(scope)).startswith("scope")


# With a server


class Failures(Observer):
    def __init__(self):
        self.errors = []

    def application_failed(self, _exchange, error):
        self.errors.append(error)


POST = b"POST /x?y HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc"
UPGRADE = (
    b"GET /x HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
MASKED_FRAMES = b"\x81\x82\0\0\0\0hi" + b"\x82\x82\0\0\0\0hi" + b"\x88\x82\0\0\0\0\x0f\xa1"  # ending in 4001


async def get(application, request=POST):
    failures = Failures()
    response = b""
    client, server = memory_stream_pair()
    async with client, trio.open_nursery() as nursery:
        nursery.start_soon(
            serve_stream, server, ServerContext(lint(application), Config(), observer=failures)
        )
        await client.send_all(request)
        async for data in client:
            response += data
    return response, failures.errors


async def test_an_application_and_the_server_agree():
    async def application(scope, receive, send):
        body = (await receive())["body"]
        await send(START | {"headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": scope["path"].encode() + body})
        assert (await receive())["type"] == "http.disconnect"
        assert (await receive())["type"] == "http.disconnect"

    response, failures = await get(application)
    assert failures == []
    assert response.startswith(b"HTTP/1.1 200 ")
    assert b"/xabc" in response


async def test_what_is_refused_has_not_reached_the_server():
    async def application(_scope, _receive, send):
        with pytest.raises(InvalidMessage):
            await send(START | {"headers": [(b"X-Upper", b"case")]})
        await send(START | {"status": 203})
        await send(BODY)

    response, failures = await get(application)
    assert failures == []
    assert response.startswith(b"HTTP/1.1 203 ")


async def test_what_is_let_through_is_a_failure_of_the_application():
    async def application(_scope, _receive, send):
        await send(START | {"headers": [(b"X-Upper", b"case")]})

    response, failures = await get(application)
    assert response.startswith(b"HTTP/1.1 500 ")
    assert [type(failure) for failure in failures] == [InvalidMessage]


async def test_a_websocket_and_the_server_agree():
    got = []

    async def application(_scope, receive, send):
        got.append(await receive())
        await send({"type": "websocket.accept", "headers": [(b"x-id", b"7")]})
        with suppress(ClientDisconnected):  # its close frame came together with the handshake
            await send({"type": "websocket.send", "text": "a"})
        got.extend([await receive() for _ in range(4)])

    response, failures = await get(application, UPGRADE + MASKED_FRAMES)
    assert failures == []
    assert response.startswith(b"HTTP/1.1 101 ")
    assert [message["type"].partition(".")[2] for message in got] == [
        "connect",
        *["receive"] * 2,
        *["disconnect"] * 2,
    ]
    assert got[-1]["code"] == 4001
