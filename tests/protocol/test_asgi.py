"""The tables of ASGI: every state with every event; and what is in a message, with every wrong type."""

from __future__ import annotations

import http
import io
import itertools
from collections import UserDict
from enum import Enum, IntEnum
from itertools import product
from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trigi._protocol.asgi import (
    FLAGS,
    HTTP,
    HTTP_SEND,
    LIFESPAN_SEND,
    WEBSOCKET_SEND,
    Lifespan,
    WebSocket,
    advance,
    check_body,
    check_close,
    check_descriptor,
    check_links,
    check_path,
    check_range,
    check_start,
    check_text,
    check_trailers,
    check_websocket_data,
    event_of,
)
from trigi.exceptions import ApplicationError, InvalidMessage, UnexpectedMessage

TABLES = {"http": HTTP_SEND, "websocket": WEBSOCKET_SEND, "lifespan": LIFESPAN_SEND}

# The rules once more, as one line for each step, so that a slip in a table does not pass for a rule.
LEGAL = {
    "http": """
        START                   http.response.start                     BODY
        START                   http.response.start+trailers            BODY_THEN_TRAILERS
        START                   http.response.early_hint                START
        BODY                    http.response.early_hint                BODY
        BODY                    http.response.body+more_body            MORE_BODY
        BODY                    http.response.body                      COMPLETE
        BODY                    http.response.zerocopysend+more_body    MORE_BODY
        BODY                    http.response.zerocopysend              COMPLETE
        BODY                    http.response.pathsend                  COMPLETE
        MORE_BODY               http.response.early_hint                MORE_BODY
        MORE_BODY               http.response.body+more_body            MORE_BODY
        MORE_BODY               http.response.body                      COMPLETE
        MORE_BODY               http.response.zerocopysend+more_body    MORE_BODY
        MORE_BODY               http.response.zerocopysend              COMPLETE
        BODY_THEN_TRAILERS      http.response.early_hint                BODY_THEN_TRAILERS
        BODY_THEN_TRAILERS      http.response.body+more_body            MORE_BODY_THEN_TRAILERS
        BODY_THEN_TRAILERS      http.response.body                      TRAILERS
        BODY_THEN_TRAILERS      http.response.zerocopysend+more_body    MORE_BODY_THEN_TRAILERS
        BODY_THEN_TRAILERS      http.response.zerocopysend              TRAILERS
        BODY_THEN_TRAILERS      http.response.pathsend                  TRAILERS
        MORE_BODY_THEN_TRAILERS http.response.early_hint                MORE_BODY_THEN_TRAILERS
        MORE_BODY_THEN_TRAILERS http.response.body+more_body            MORE_BODY_THEN_TRAILERS
        MORE_BODY_THEN_TRAILERS http.response.body                      TRAILERS
        MORE_BODY_THEN_TRAILERS http.response.zerocopysend+more_body    MORE_BODY_THEN_TRAILERS
        MORE_BODY_THEN_TRAILERS http.response.zerocopysend              TRAILERS
        TRAILERS                http.response.trailers+more_trailers    TRAILERS
        TRAILERS                http.response.trailers                  COMPLETE
        COMPLETE                http.response.body                      COMPLETE
        COMPLETE                http.response.body+more_body            COMPLETE
        COMPLETE                http.response.zerocopysend              COMPLETE
        COMPLETE                http.response.zerocopysend+more_body    COMPLETE
        COMPLETE                http.response.pathsend                  COMPLETE
        COMPLETE                http.response.trailers                  COMPLETE
        COMPLETE                http.response.trailers+more_trailers    COMPLETE
        COMPLETE                http.response.early_hint                COMPLETE
    """,
    "websocket": """
        CONNECTING  websocket.accept                        OPEN
        CONNECTING  websocket.close                         CLOSED
        CONNECTING  websocket.http.response.start           DENIAL_BODY
        DENIAL_BODY websocket.http.response.body+more_body  DENIAL_BODY
        DENIAL_BODY websocket.http.response.body            CLOSED
        OPEN        websocket.send                          OPEN
        OPEN        websocket.close                         CLOSED
    """,
    "lifespan": """
        STARTING lifespan.startup.complete  RUNNING
        STARTING lifespan.startup.failed    FAILED
        STOPPING lifespan.shutdown.complete STOPPED
        STOPPING lifespan.shutdown.failed   FAILED
    """,
}
LEGAL = {
    protocol: {
        (state, event): after
        for state, event, after in (line.split() for line in text.split("\n") if line.strip())
    }
    for protocol, text in LEGAL.items()
}

SENT = {event for steps in LEGAL.values() for _, event in steps}
RECEIVED = {
    "http.request",
    "http.disconnect",
    "websocket.connect",
    "websocket.receive",
    "websocket.disconnect",
    "lifespan.startup",
    "lifespan.shutdown",
}
NOT_OFFERED = {
    "http.response.push",
    "http.response.pathsend+more_body",
    "http.response.debug",
    "websocket.http.response.start+trailers",
    "websocket.send+more",
    "HTTP.RESPONSE.START",
    "http.response.start ",
    "",
}
EVENTS = sorted(SENT | RECEIVED | NOT_OFFERED)

EVERY_PAIR = [
    pytest.param(protocol, state, event, id=f"{protocol}-{state}-{event}")
    for protocol, table in TABLES.items()
    for state, event in product(table, EVENTS)
]


@pytest.mark.parametrize(("protocol", "state", "event"), EVERY_PAIR)
def test_every_event_in_every_state_is_legal_or_says_what_would_have_been(protocol, state, event):
    legal = LEGAL[protocol]
    if (state, event) in legal:
        after = advance(TABLES[protocol], state, event)
        assert after == legal[state, event]
        assert type(after) is type(state)
        return
    with pytest.raises(UnexpectedMessage) as caught:
        advance(TABLES[protocol], state, event)
    error = caught.value
    allowed = {legal_event for legal_state, legal_event in legal if legal_state == state}
    assert isinstance(error, ApplicationError)
    assert (error.state, error.event, set(error.allowed)) == (state, event, allowed)
    assert len(error.allowed) == len(allowed)
    assert str(error).startswith(f"{event} is not allowed in state {state}: expected ")
    assert all(name in str(error) for name in allowed)
    assert allowed or str(error).endswith("expected nothing more")
    assert error.__cause__ is None
    assert error.__context__ is None


@pytest.mark.parametrize(
    ("protocol", "states"), [("http", HTTP), ("websocket", WebSocket), ("lifespan", Lifespan)]
)
def test_each_state_is_in_its_table_and_can_be_reached(protocol, states):
    table = TABLES[protocol]
    assert list(table) == list(states)
    reached = {next(iter(states))}
    if protocol == "lifespan":
        reached.add(Lifespan.STOPPING)  # where the server puts it
    while (more := reached | {after for state in reached for after in table[state].values()}) != reached:
        reached = more
    assert reached == set(states)


def test_the_flags_are_those_of_the_events():
    flagged = {tuple(event.split("+")) for event in SENT if "+" in event}
    assert set(FLAGS.items()) == flagged


PATHS = {
    "empty": "http.response.start http.response.body",
    "streamed": "http.response.start http.response.body+more_body http.response.body+more_body http.response.body",
    "hints before and after the start": (
        "http.response.early_hint http.response.start http.response.early_hint http.response.early_hint "
        "http.response.body+more_body http.response.early_hint http.response.body"
    ),
    "a path": "http.response.start http.response.pathsend",
    "a path and trailers": "http.response.start+trailers http.response.pathsend http.response.trailers",
    "files between pieces": (
        "http.response.start http.response.body+more_body http.response.zerocopysend+more_body "
        "http.response.early_hint http.response.body+more_body http.response.zerocopysend"
    ),
    "a file and trailers": (
        "http.response.start+trailers http.response.zerocopysend+more_body http.response.zerocopysend "
        "http.response.trailers"
    ),
    "trailers": "http.response.start+trailers http.response.body http.response.trailers",
    "trailers in pieces": (
        "http.response.start+trailers http.response.body+more_body http.response.early_hint http.response.body "
        "http.response.trailers+more_trailers http.response.trailers"
    ),
    "more after the end, which is ignored": (
        "http.response.start http.response.body http.response.body+more_body http.response.trailers "
        "http.response.trailers+more_trailers http.response.early_hint http.response.body"
    ),
    "accepted": "websocket.accept websocket.send websocket.send websocket.close",
    "closed at once": "websocket.close",
    "denied": "websocket.http.response.start websocket.http.response.body+more_body websocket.http.response.body",
    "started": "lifespan.startup.complete",
    "not started": "lifespan.startup.failed",
}


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_each_legal_path_ends_where_it_should(path):
    events = path.split()
    table = TABLES[events[0].split(".")[0]]
    state = next(iter(table))
    for event in events:
        state = advance(table, state, event)
    assert state in (HTTP.COMPLETE, WebSocket.CLOSED, Lifespan.RUNNING, Lifespan.FAILED)


# A naive model: what the specifications say, as flags and questions rather than as states


class NaiveResponse:
    started = trailers_promised = body_begun = body_ended = trailers_ended = False

    @property
    def complete(self):
        return self.body_ended and (self.trailers_ended or not self.trailers_promised)

    def takes(self, kind, flag):
        if self.complete:
            return kind in (
                "http.response.body",
                "http.response.zerocopysend",
                "http.response.pathsend",
                "http.response.trailers",
                "http.response.early_hint",
            )
        match kind:
            case "http.response.start":
                allowed = not self.started
                if allowed:
                    self.started, self.trailers_promised = True, flag
            case "http.response.body" | "http.response.zerocopysend":
                allowed = self.started and not self.body_ended
                self.body_begun |= allowed
                self.body_ended |= allowed and not flag
            case "http.response.pathsend":
                allowed = self.started and not self.body_begun and not self.body_ended
                self.body_ended |= allowed
            case "http.response.trailers":
                allowed = self.body_ended
                self.trailers_ended |= allowed and not flag
            case "http.response.early_hint":
                allowed = not self.body_ended
            case _:
                allowed = False
        return allowed


class NaiveWebSocket:
    accepted = denying = complete = False

    def takes(self, kind, flag):
        match kind:
            case "websocket.accept":
                allowed = not (self.accepted or self.denying or self.complete)
                self.accepted |= allowed
            case "websocket.send":
                allowed = self.accepted and not self.complete
            case "websocket.close":
                allowed = not (self.denying or self.complete)
                self.complete |= allowed
            case "websocket.http.response.start":
                allowed = not (self.accepted or self.denying or self.complete)
                self.denying |= allowed
            case "websocket.http.response.body":
                allowed = self.denying and not self.complete
                self.complete |= allowed and not flag
            case _:
                allowed = False
        return allowed


class NaiveLifespan:
    answered = complete = False

    def takes(self, kind, flag):
        allowed = not self.answered and kind in ("lifespan.startup.complete", "lifespan.startup.failed")
        self.answered |= allowed
        return allowed


def messages(protocol):
    """Messages of a protocol, most of them meant for it, some with their flag."""
    own = sorted({event.partition("+")[0] for _, event in LEGAL[protocol]})
    kinds = st.sampled_from(own * 4 + sorted({event.partition("+")[0] for event in EVENTS}))
    flags = st.sampled_from([None, False, True])
    return st.builds(
        lambda kind, flag: (kind, {} if flag is None else {FLAGS.get(kind, "no"): flag}), kinds, flags
    )


@pytest.mark.parametrize(
    ("protocol", "naive"),
    [("http", NaiveResponse), ("websocket", NaiveWebSocket), ("lifespan", NaiveLifespan)],
)
@given(st.data())
def test_any_sequence_goes_as_in_a_naive_model(protocol, naive, data):
    table, model = TABLES[protocol], naive()
    state = next(iter(table))
    for kind, flags in data.draw(st.lists(messages(protocol), max_size=20)):
        expected = model.takes(kind, any(flags.values()))
        event = event_of({"type": kind, **flags})
        if expected:
            state = advance(table, state, event)
        else:
            with pytest.raises(UnexpectedMessage):
                advance(table, state, event)
        assert (state in (HTTP.COMPLETE, WebSocket.CLOSED)) is model.complete


# What event a message is


def test_a_message_without_a_flag_is_its_type():
    assert event_of({"type": "websocket.send", "text": "x", "more_body": 1}) == "websocket.send"
    assert event_of({"type": "no.such.type"}) == "no.such.type"


@pytest.mark.parametrize(("type_", "flag"), FLAGS.items(), ids=FLAGS)
def test_a_flag_makes_another_event_only_if_it_is_true(type_, flag):
    assert event_of({"type": type_}) == type_
    assert event_of({"type": type_, flag: False}) == type_
    assert event_of({"type": type_, flag: True}) == f"{type_}+{flag}"


@pytest.mark.parametrize("value", [None, 0, 1, "", "True", b"", [], 1.0], ids=repr)
@pytest.mark.parametrize(("type_", "flag"), FLAGS.items(), ids=FLAGS)
def test_a_flag_that_is_no_bool_is_refused(type_, flag, value):
    with pytest.raises(InvalidMessage) as caught:
        event_of({"type": type_, flag: value})
    assert str(caught.value) == f"{type_}: {flag} must be bool, got {type(value).__name__}"


@pytest.mark.parametrize(
    "message", [None, 1, "http.response.start", b"type", ["type"], ("type",), object()], ids=repr
)
def test_a_message_that_is_no_dict_is_refused(message):
    with pytest.raises(InvalidMessage) as caught:
        event_of(message)
    assert str(caught.value) == f"a message must be a dict, got {type(message).__name__}"


@pytest.mark.parametrize(
    "message", [{}, {"Type": "http.response.start"}, {b"type": "http.response.start"}], ids=repr
)
def test_a_message_without_a_type_is_refused(message):
    with pytest.raises(InvalidMessage, match=r"^a message needs a 'type'$"):
        event_of(message)


@pytest.mark.parametrize("type_", [None, 1, b"http.response.start", ["http.response.start"], {}], ids=repr)
def test_a_type_that_is_no_str_is_refused(type_):
    with pytest.raises(InvalidMessage) as caught:
        event_of({"type": type_})
    assert str(caught.value) == f"type must be str, got {type(type_).__name__}"


def test_any_mapping_and_any_str_will_do():
    class Type(str, Enum):  # noqa: UP042 - unlike StrEnum, its members are formatted as their names
        BODY = "http.response.body"

    event = event_of(UserDict(type=Type.BODY, more_body=True))
    assert event == "http.response.body+more_body"
    assert advance(HTTP_SEND, HTTP.BODY, event) is HTTP.MORE_BODY
    assert advance(HTTP_SEND, HTTP.BODY, event_of({"type": Type.BODY})) is HTTP.COMPLETE


# What is in a message


def refusal(check, *arguments):
    with pytest.raises(InvalidMessage) as caught:
        check(*arguments)
    return str(caught.value)


def wrong(*right):
    """One value of each plain type that is not one of these."""
    values = [None, True, 1, 1.5, "text", b"bytes", ["list"], ("tuple",), {"key": "value"}, object()]
    return pytest.mark.parametrize(
        "value",
        [value for value in values if type(value) not in right],
        ids=lambda value: type(value).__name__,
    )


STARTS = pytest.mark.parametrize("type_", ["http.response.start", "websocket.http.response.start"])


class Status(IntEnum):
    TEAPOT = 418


@STARTS
@pytest.mark.parametrize("status", [200, 204, 299, 404, 599, 600, 999, http.HTTPStatus.OK, Status.TEAPOT])
def test_start_takes_any_final_status_as_a_plain_int(type_, status):
    head = check_start({"type": type_, "status": status})
    assert head.status == status
    assert type(head.status) is int
    assert head.headers == []


@STARTS
def test_start_gives_its_headers_checked(type_):
    headers = iter([[b"Content-Type", b" text/plain "], (b"x-a", b"")])
    head = check_start({"type": type_, "status": 200, "headers": headers})
    assert head.status == 200
    assert head.headers == [(b"content-type", b"text/plain"), (b"x-a", b"")]


@STARTS
def test_start_without_a_status_is_refused(type_):
    assert refusal(check_start, {"type": type_}) == f"{type_}: status is missing"


@STARTS
@wrong(int)
def test_start_with_a_status_of_another_type_is_refused(type_, value):
    text = refusal(check_start, {"type": type_, "status": value})
    assert text == f"{type_}: status must be int, got {type(value).__name__}"


@STARTS
@pytest.mark.parametrize("status", [-200, 0, 1, 99, 100, 101, 103, 199, 1000, 2**64])
def test_start_with_a_status_that_is_not_final_is_refused(type_, status):
    text = refusal(check_start, {"type": type_, "status": status})
    assert text == f"{type_}: status must be from 200 to 999, got {status}"


WITH_HEADERS = pytest.mark.parametrize(
    ("check", "message"),
    [
        (check_start, {"type": "http.response.start", "status": 200}),
        (check_start, {"type": "websocket.http.response.start", "status": 200}),
        (check_trailers, {"type": "http.response.trailers"}),
    ],
    ids=["start", "denial", "trailers"],
)


@WITH_HEADERS
@wrong(list, tuple, dict, str, bytes)
def test_what_is_not_iterable_is_refused(check, message, value):
    text = refusal(check, {**message, "headers": value})
    assert text == f"{message['type']}: headers must be iterable, got {type(value).__name__}"


@WITH_HEADERS
@pytest.mark.parametrize(
    "value",
    [
        "text",
        b"bytes",
        {b"key": b"value"},
        {b"ke": b"value"},
        [b"x-a"],
        [b"xa"],
        ["xa"],
        [None],
        [(b"x-a",)],
        [(b"x-a", b"1", b"2")],
        [("x-a", b"1")],
        [(b"x-a", "1")],
        [(b"x-a", None)],
        [(1, b"1")],
        [(bytearray(b"x-a"), b"1")],
        [(b"x-a", bytearray(b"1"))],
    ],
    ids=repr,
)
def test_what_is_no_list_of_pairs_of_bytes_is_refused(check, message, value):
    text = refusal(check, {**message, "headers": value})
    assert text.startswith(f"{message['type']}: ")
    assert "header" in text
    assert "must be" in text
    assert " bytes, got " in text


def test_trailers_may_be_missing():
    assert check_trailers({"type": "http.response.trailers"}) == []
    assert check_trailers({"type": "http.response.trailers", "headers": [(b"X-Sum", b"1")]}) == [
        (b"x-sum", b"1")
    ]


BODIES = pytest.mark.parametrize("type_", ["http.response.body", "websocket.http.response.body"])


@BODIES
@pytest.mark.parametrize("body", [b"", b"x", bytearray(b"x"), memoryview(b"abc")[::2]], ids=repr)
def test_a_body_is_bytes_whatever_buffer_it_was(type_, body):
    found = check_body({"type": type_, "body": body})
    assert found == bytes(body)
    assert type(found) is bytes


class LyingBytes(bytes):
    def __len__(self):
        return 3

    def __getitem__(self, key):
        return b"abc"


@BODIES
def test_a_body_has_the_length_that_it_has(type_):
    """Whatever a subclass says: it would be its chunk's."""
    found = check_body({"type": type_, "body": LyingBytes(b"hello")})
    assert type(found) is bytes
    assert (found, len(found)) == (b"hello", 5)


@BODIES
def test_a_body_may_be_missing(type_):
    assert check_body({"type": type_}) == b""


@BODIES
@wrong(bytes)
def test_a_body_of_another_type_is_refused(type_, value):
    text = refusal(check_body, {"type": type_, "body": value})
    assert text == f"{type_}: body must be bytes, got {type(value).__name__}"


HINT = {"type": "http.response.early_hint"}


@pytest.mark.parametrize("made", [list, tuple, iter])
def test_links_become_fields(made):
    links = made([b"</a>", b"</b> "])
    assert check_links({**HINT, "links": links}) == [(b"link", b"</a>"), (b"link", b"</b>")]


def test_links_are_checked_one_after_the_other():
    """So that one that is wrong is refused, however many there would be."""
    assert refusal(check_links, {**HINT, "links": itertools.repeat(1)}).endswith("got int 1")


def test_links_may_be_missing():
    assert check_links(HINT) == []


@wrong(list, tuple, dict)
def test_links_of_another_type_are_refused(value):
    text = refusal(check_links, {**HINT, "links": value})
    assert text == f"http.response.early_hint: links must be a list of bytes, got {type(value).__name__}"


@wrong(bytes)
def test_a_link_of_another_type_is_refused(value):
    text = refusal(check_links, {**HINT, "links": [b"</a>", value]})
    assert text.startswith(
        f"http.response.early_hint: value of header b'link' must be bytes, got {type(value).__name__} "
    )


def test_a_link_can_not_split_the_response():
    text = refusal(check_links, {**HINT, "links": [b"</a>\r\nset-cookie: a=b"]})
    assert text.startswith("http.response.early_hint: value of header b'link' has a control character")


SEND = {"type": "websocket.send"}


@pytest.mark.parametrize(
    ("message", "data"),
    [
        ({"text": "x"}, "x"),
        ({"text": ""}, ""),
        ({"text": "x", "bytes": None}, "x"),
        ({"bytes": b"x"}, b"x"),
        ({"bytes": b""}, b""),
        ({"bytes": b"x", "text": None}, b"x"),
        ({"bytes": bytearray(b"x")}, b"x"),
        ({"bytes": memoryview(b"x")}, b"x"),
    ],
    ids=repr,
)
def test_a_websocket_message_is_its_text_or_its_bytes(message, data):
    found = check_websocket_data({**SEND, **message})
    assert found == data
    assert type(found) is type(data)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"text": None},
        {"bytes": None},
        {"text": None, "bytes": None},
        {"text": "", "bytes": b""},
        {"text": 1, "bytes": 2},
    ],
    ids=repr,
)
def test_a_websocket_message_with_both_or_none_is_refused(message):
    text = refusal(check_websocket_data, {**SEND, **message})
    assert text == "websocket.send: exactly one of text and bytes must be given"


@wrong(str, type(None))
def test_a_text_of_another_type_is_refused(value):
    text = refusal(check_websocket_data, {**SEND, "text": value})
    assert text == f"websocket.send: text must be str, got {type(value).__name__}"


@wrong(bytes, type(None))
def test_bytes_of_another_type_are_refused(value):
    text = refusal(check_websocket_data, {**SEND, "bytes": value})
    assert text == f"websocket.send: bytes must be bytes, got {type(value).__name__}"


CLOSE = {"type": "websocket.close"}


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        ({}, 1000, ""),
        ({"code": 4001}, 4001, ""),
        ({"code": http.HTTPStatus.OK}, 200, ""),
        ({"reason": None}, 1000, ""),
        ({"code": 1001, "reason": "gone"}, 1001, "gone"),
    ],
    ids=repr,
)
def test_a_close_has_a_code_and_a_reason(message, code, reason):
    found = check_close({**CLOSE, **message})
    assert found == (code, reason)
    assert type(found[0]) is int


@wrong(int)
def test_a_close_code_of_another_type_is_refused(value):
    text = refusal(check_close, {**CLOSE, "code": value})
    assert text == f"websocket.close: code must be int, got {type(value).__name__}"


@wrong(str, type(None))
def test_a_close_reason_of_another_type_is_refused(value):
    text = refusal(check_close, {**CLOSE, "reason": value})
    assert text == f"websocket.close: reason must be str, got {type(value).__name__}"


ACCEPT = {"type": "websocket.accept"}


def test_an_optional_text_is_itself_or_none():
    assert check_text(ACCEPT, "subprotocol") is None
    assert check_text({**ACCEPT, "subprotocol": None}, "subprotocol") is None
    assert check_text({**ACCEPT, "subprotocol": ""}, "subprotocol") == ""
    assert check_text({**ACCEPT, "subprotocol": "chat"}, "subprotocol") == "chat"


@wrong(str, type(None))
def test_an_optional_text_of_another_type_is_refused(value):
    text = refusal(check_text, {**ACCEPT, "subprotocol": value}, "subprotocol")
    assert text == f"websocket.accept: subprotocol must be str, got {type(value).__name__}"


# Files


PATHSEND = "http.response.pathsend"
ZEROCOPYSEND = "http.response.zerocopysend"


@pytest.mark.parametrize("path", ["/srv/a", "a", "/ü", ""])
def test_a_path_is_any_text(path):
    """What it leads to is not known here."""
    assert check_path({"type": PATHSEND, "path": path}) == path


@wrong(str)
def test_a_path_of_another_type_is_refused(value):
    assert refusal(check_path, {"type": PATHSEND, "path": value}).startswith(
        f"{PATHSEND}: path must be str, got "
    )


def test_a_path_must_be_there_as_text():
    refusal(check_path, {"type": PATHSEND, "path": PurePath("/srv/a")})
    assert refusal(check_path, {"type": PATHSEND}) == f"{PATHSEND}: path must be str, got NoneType"


def test_a_file_is_a_descriptor_or_has_one(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        assert check_descriptor({"type": ZEROCOPYSEND, "file": file}) == file.fileno()
        assert check_descriptor({"type": ZEROCOPYSEND, "file": file.fileno()}) == file.fileno()
    closed = refusal(check_descriptor, {"type": ZEROCOPYSEND, "file": file})
    assert closed.startswith(f"{ZEROCOPYSEND}: file must be open and have a descriptor, got BufferedWriter: ")


class Odd:
    """Has a `fileno` that gives whatever."""

    def __init__(self, value):
        self.value = value

    def fileno(self):
        return self.value


@wrong(int)
def test_a_file_of_another_type_is_refused(value):
    refusal(check_descriptor, {"type": ZEROCOPYSEND, "file": value})


@pytest.mark.parametrize("value", [-1, 2**31, io.BytesIO(b"x"), Odd(None), Odd(True), Odd(-1)])
def test_a_file_without_a_descriptor_is_refused(value):
    assert refusal(check_descriptor, {"type": ZEROCOPYSEND, "file": value}).startswith(
        f"{ZEROCOPYSEND}: file must "
    )


def test_a_file_must_be_there():
    assert refusal(check_descriptor, {"type": ZEROCOPYSEND}).startswith(f"{ZEROCOPYSEND}: file must ")


@pytest.mark.parametrize(
    ("message", "offset", "count"),
    [
        ({}, None, None),
        ({"offset": None, "count": None}, None, None),
        ({"offset": 0, "count": 0}, 0, 0),
        ({"offset": 2**63 - 1}, 2**63 - 1, None),
        ({"count": 7}, None, 7),
    ],
)
def test_a_range_is_an_offset_and_a_count(message, offset, count):
    assert check_range({"type": ZEROCOPYSEND} | message) == (offset, count)


@pytest.mark.parametrize("key", ["offset", "count"])
@wrong(int, type(None))
def test_a_range_of_another_type_is_refused(key, value):
    text = refusal(check_range, {"type": ZEROCOPYSEND, key: value})
    assert text == f"{ZEROCOPYSEND}: {key} must be int, got {type(value).__name__}"


@pytest.mark.parametrize("key", ["offset", "count"])
@pytest.mark.parametrize("value", [-1, 2**63, 10**5000], ids=["negative", "too large", "huge"])
def test_a_range_of_another_size_is_refused(key, value):
    message = {"type": ZEROCOPYSEND, key: value}
    assert refusal(check_range, message).startswith(f"{ZEROCOPYSEND}: {key} must be ")
