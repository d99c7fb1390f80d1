"""Logs: the access line, what a client can't do to it, the records of failures, JSON, and who configures what."""

from __future__ import annotations

import io
import json
import logging
import math
import os
import pickle
import re
import sys
import time
from logging.handlers import QueueHandler
from types import SimpleNamespace

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import memory_stream_pair

from trigi import _access_format
from trigi._connection.context import ServerContext
from trigi._connection.observer import Observer
from trigi._connection.serve import serve_stream
from trigi._protocol.events import Request
from trigi._protocol.scope import ConnectionInfo, Endpoint
from trigi.config import Config
from trigi.exceptions import ApplicationError, BadConnection, BadRequest, ConfigError
from trigi.logs import (
    ATOMS,
    COMBINED_FORMAT,
    JSONFormatter,
    LogObserver,
    TextFormatter,
    compile_format,
    configure_logging,
    escape,
)

CLIENT = Endpoint("127.0.0.1", 50412)
SERVER = Endpoint("127.0.0.1", 8000)
BROWSER = "Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101"


def make_exchange(
    *, headers=None, method="GET", target=b"/a%20b?x=1", client=CLIENT, server=SERVER, **values
):
    """A stand-in for an exchange at its end."""
    raw_path, _, query = target.partition(b"?")
    headers = [(b"host", b"example.org"), (b"user-agent", BROWSER.encode())] if headers is None else headers
    ended = {
        "status": 200,
        "response_headers": [(b"content-type", b"text/plain"), (b"x-id", b"7")],
        "bytes_sent": 12,
        "duration": 1.2345678,
        "complete": True,
        "is_websocket": False,
    }
    return SimpleNamespace(
        request=Request(method, target, raw_path, query, "1.1", headers),
        connection=ConnectionInfo(client, server),
        **(ended | values),
    )


class Records(logging.Handler):
    """Keeps what is logged."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)

    def only(self):
        (record,) = self.records
        return record


@pytest.fixture(autouse=True)
def _loggers():
    """Every test leaves the loggers as it found them, and begins with ones that nobody has configured."""
    names = ["", "trigi", "trigi.access", "trigi.error"]
    loggers = [logging.getLogger(name) for name in names]
    before = [(each.handlers[:], each.level, each.propagate, each.disabled) for each in loggers]
    for logger in loggers[1:]:
        logger.handlers[:] = []
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
    yield
    for logger, (handlers, level, propagate, disabled) in zip(loggers, before, strict=True):
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate
        logger.disabled = disabled


@pytest.fixture
def access():
    return listen("trigi.access")


@pytest.fixture
def errors():
    return listen("trigi.error")


def listen(name, level=logging.INFO):
    handler = Records()
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    logger.setLevel(level)
    return handler


def line(template, **values):
    return compile_format(template)(make_exchange(**values))


# Escaping


@pytest.mark.parametrize(
    ("raw", "escaped"),
    [
        (b"/plain?a=b&c=%20~", "/plain?a=b&c=%20~"),
        (b'"', r"\x22"),
        (b"\\", r"\x5c"),
        (b"\\x41", r"\x5cx41"),
        (b"\r\n", r"\x0d\x0a"),
        (b"\t\0\x7f", r"\x09\x00\x7f"),
        (b"\x1b[2J", r"\x1b[2J"),
        (b"\x9b2J", r"\x9b2J"),
        ("é".encode(), r"\xc3\xa9"),
        ("é", r"\xc3\xa9"),
        ("\u2028", r"\xe2\x80\xa8"),
        ("\udcff", r"\x5cudcff"),
        ("", ""),
    ],
)
def test_escape(raw, escaped):
    assert escape(raw) == escaped


@given(st.binary())
def test_what_is_escaped_is_one_printable_field_and_can_be_read_back(raw):
    escaped = escape(raw)
    assert escaped.isascii()
    assert escaped == "" or escaped.isprintable()
    assert '"' not in escaped
    back = re.sub(rb"\\x([0-9a-f]{2})", lambda match: bytes.fromhex(match[1].decode()), escaped.encode())
    assert back == raw


@given(st.text(st.characters(exclude_categories=[])))
def test_text_is_escaped_too(raw):
    assert escape(raw).isascii()
    assert '"' not in escape(raw)
    assert len(escape(raw).splitlines()) <= 1


COMBINED_LINE = re.compile(
    r'\S+ - - \[\d\d/[A-Z][a-z][a-z]/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "[^"]*" (?:\d{3}|-) (?:\d+|-) "[^"]*" "[^"]*"'
)
hostile = st.binary() | st.text().map(lambda text: text.encode())
hostile |= st.sampled_from(
    [b'" 200 0 "-" "-"\n127.0.0.1 - - ', b"\x1b]0;title\x07", b"\r\n", b"%(h)s %s %", b"\\"]
)


@given(hostile, hostile, hostile, hostile, hostile)
def test_no_client_can_forge_a_line(target, agent, referer, host, custom):
    """Whatever a parser lets through, the line is one line of the combined format, and the fields are printable."""
    headers = [(b"user-agent", agent), (b"referer", referer), (b"host", host), (b"x-custom", custom)]
    exchange = make_exchange(target=target, headers=headers, method=agent.decode("latin-1"))
    assert COMBINED_LINE.fullmatch(compile_format(COMBINED_FORMAT)(exchange))

    everything = " ".join(f"%({name})s" for name in [*ATOMS, "{x-custom}i"])
    written = compile_format(everything)(exchange)
    assert written.isascii()
    assert written.isprintable()

    handler = listen("trigi.access")
    LogObserver(Config(access_log_format=everything)).exchange_ended(exchange)
    logging.getLogger("trigi.access").removeHandler(handler)
    record = handler.only()
    assert record.getMessage().isprintable()
    for formatter in (TextFormatter("%(message)s"), JSONFormatter()):
        assert len(formatter.format(record).splitlines()) == 1
    for value in record.trigi.values():
        assert not isinstance(value, str) or value.isprintable()


# The format


def test_the_combined_format():
    headers = [(b"referer", b"http://example.org/"), (b"user-agent", BROWSER.encode())]
    written = line(COMBINED_FORMAT, headers=headers)
    assert COMBINED_LINE.fullmatch(written)
    head, _, tail = written.partition(" [")
    assert head == "127.0.0.1 - -"
    assert tail.partition("] ")[2] == f'"GET /a%20b?x=1 HTTP/1.1" 200 12 "http://example.org/" "{BROWSER}"'


@pytest.mark.parametrize(
    ("atom", "values", "written"),
    [
        ("h", {}, "127.0.0.1"),
        ("h", {"client": Endpoint("::1", 5)}, "::1"),
        ("h", {"client": None}, "-"),
        ("h", {"client": None, "server": None}, "-"),
        ("h", {"client": None, "server": Endpoint("/run/socket", None)}, "unix"),
        ("h", {"client": Endpoint("/run/client", None), "server": Endpoint("/run/socket", None)}, "unix"),
        ("l", {}, "-"),
        ("u", {}, "-"),
        ("r", {}, "GET /a%20b?x=1 HTTP/1.1"),
        ("m", {"method": "PURGE"}, "PURGE"),
        ("U", {}, "/a%20b"),
        ("q", {}, "x=1"),
        ("q", {"target": b"/"}, ""),
        ("H", {}, "HTTP/1.1"),
        ("s", {}, "200"),
        ("s", {"status": None}, "-"),
        ("B", {}, "12"),
        ("B", {"bytes_sent": 0}, "0"),
        ("b", {}, "12"),
        ("b", {"bytes_sent": 0}, "-"),
        ("f", {"headers": [(b"referer", b"x")]}, "x"),
        ("f", {"headers": []}, "-"),
        ("f", {"headers": [(b"referer", b"")]}, "-"),
        ("a", {}, BROWSER),
        ("a", {"headers": []}, "-"),
        ("T", {}, "1"),
        ("M", {}, "1234"),
        ("D", {}, "1234567"),
        ("L", {}, "1.234568"),
        ("p", {}, f"<{os.getpid()}>"),
        ("X", {}, "+"),
        ("X", {"complete": False}, "X"),
        ("{Host}i", {}, "example.org"),
        ("{x-forwarded-for}i", {}, "-"),
        ("{x-list}i", {"headers": [(b"x-list", b"a"), (b"x-list", b"b")]}, "a, b"),
        ("{X-Id}o", {}, "7"),
        ("{x-none}o", {}, "-"),
    ],
)
def test_atoms(atom, values, written):
    assert line(f"%({atom})s", **values) == written
    assert line(f"<%({atom})s|%(m)s>", **values) == f"<{written}|{values.get('method', 'GET')}>"


def test_the_table_of_atoms_is_tested_whole():
    tested = {
        mark.args[1][index][0]
        for mark in test_atoms.pytestmark
        for index in range(len(mark.args[1]))
        if len(mark.args[1][index][0]) == 1
    }
    assert tested | {"t"} == set(ATOMS)
    assert all(atom.meaning for atom in ATOMS.values())


def test_an_environment_variable(monkeypatch):
    monkeypatch.setenv("DEPLOYMENT", "blue\n")
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    assert line("%({DEPLOYMENT}e)s %({NO_SUCH_VARIABLE}e)s") == r"blue\x0a -"


@pytest.mark.parametrize(
    ("template", "written"),
    [
        ("", ""),
        ("100%% %(m)s", "100% GET"),
        ("%%(m)s", "%(m)s"),
        ("{} {0} \u2192 %(m)s", "{} {0} \u2192 GET"),
    ],
)
def test_other_text_stands_as_it_is(template, written):
    assert line(template) == written


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ("%(h)s %(z)s", "'z' is not an atom"),
        ("%()s", "'' is not an atom"),
        ("%({x}z)s", "'{x}z' is not an atom"),
        ("%({}i)s", "'{}i' is not an atom"),
        ("%(h)d", "the % at position 0"),
        ("%(h)s 100%", "the % at position 9"),
        ("%h %r", "the % at position 0"),
    ],
)
def test_a_wrong_format_is_refused_at_the_start(template, named):
    with pytest.raises(ConfigError, match="access_log_format: ") as caught:
        LogObserver(Config(access_log_format=template))
    assert named in str(caught.value)
    if "not an atom" in named:
        assert ", ".join(ATOMS) in str(caught.value)


def test_only_the_atoms_used_are_computed():
    """A stand-in that has nothing else will do."""
    assert compile_format("%(s)s")(SimpleNamespace(status=204)) == "204"


def test_the_date_is_in_english_and_made_once_a_second(monkeypatch):
    made = []
    localtime = time.localtime

    def count(second):
        made.append(second)
        return localtime(second)

    monkeypatch.setattr(_access_format.time, "localtime", count)
    monkeypatch.setattr(_access_format.time, "time", lambda: 1_000_000_000.25)
    first = line("%(t)s")
    assert re.fullmatch(r"\[(08|09)/Sep/2001:\d\d:\d\d:\d\d [+-]\d{4}\]", first)
    assert [line("%(t)s") for _ in range(3)] == [first] * 3
    assert made == [1_000_000_000]
    monkeypatch.setattr(_access_format.time, "time", lambda: 1_000_000_001.0)
    assert line("%(t)s") != first


# Access records


def test_an_access_record(access):
    LogObserver(Config()).exchange_ended(make_exchange())
    record = access.only()
    assert (record.name, record.levelno) == ("trigi.access", logging.INFO)
    assert COMBINED_LINE.fullmatch(record.getMessage())
    assert record.trigi == {
        "client": "127.0.0.1:50412",
        "method": "GET",
        "target": "/a%20b?x=1",
        "http_version": "1.1",
        "host": "example.org",
        "websocket": False,
        "status": 200,
        "bytes": 12,
        "duration": 1.2345678,
        "complete": True,
        "referer": None,
        "user_agent": BROWSER,
    }


@pytest.mark.parametrize(
    ("client", "server", "name"),
    [
        (Endpoint("::1", 5), SERVER, "[::1]:5"),
        (None, None, None),
        (None, SERVER, None),
        (None, Endpoint("/run/socket", None), "unix"),
    ],
)
def test_who_the_client_is(access, client, server, name):
    LogObserver(Config()).exchange_ended(make_exchange(client=client, server=server))
    assert access.only().trigi["client"] == name


def test_the_format_of_the_config(access):
    LogObserver(Config(access_log_format="%(m)s %(X)s")).exchange_ended(make_exchange(complete=False))
    assert access.only().getMessage() == "GET X"


def test_no_access_log(access):
    LogObserver(Config(access_log=False)).exchange_ended(make_exchange())
    assert access.records == []


@pytest.mark.parametrize(
    "disable", [lambda it: it.setLevel("WARNING"), lambda it: setattr(it, "disabled", True)]
)
def test_nothing_is_computed_for_a_logger_that_is_off(access, disable, capsys):
    disable(logging.getLogger("trigi.access"))
    LogObserver(Config()).exchange_ended(object())  # has no attribute to compute anything from
    assert access.records == []
    assert capsys.readouterr().err == ""


def test_without_any_configuration_there_is_no_access_log(capsys):
    LogObserver(Config()).exchange_ended(object())
    assert capsys.readouterr() == ("", "")


def test_records_can_go_to_another_process(access):
    """As a QueueHandler of multiprocessing sends them."""
    LogObserver(Config()).exchange_ended(make_exchange())
    LogObserver(Config()).application_failed(make_exchange(), ValueError("x"))
    prepared = QueueHandler(None).prepare(access.only())
    assert pickle.loads(pickle.dumps(prepared)).trigi["status"] == 200


# Failures


def raised(function):
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError


def text_of(record):
    return TextFormatter("%(levelname)s %(message)s").format(record)


def test_a_failed_application(errors):
    def application():
        raise ValueError("its own")

    LogObserver(Config()).application_failed(make_exchange(), raised(application))
    record = errors.only()
    assert (record.name, record.levelno) == ("trigi.error", logging.ERROR)
    assert record.getMessage() == 'application failed on "GET /a%20b?x=1 HTTP/1.1" from 127.0.0.1:50412'
    assert record.trigi == {
        "client": "127.0.0.1:50412",
        "method": "GET",
        "target": "/a%20b?x=1",
        "http_version": "1.1",
        "host": "example.org",
        "websocket": False,
    }
    assert "in application" in text_of(record)
    assert text_of(record).splitlines()[-1] == "  ValueError: its own"


def test_an_error_that_was_never_raised(errors):
    LogObserver(Config()).application_failed(make_exchange(), ApplicationError("returned in state START"))
    assert text_of(errors.only()).splitlines()[1:] == [
        "  trigi.exceptions.ApplicationError: returned in state START"
    ]


def test_a_group_of_errors_is_one_record_and_one_tree(errors):
    group = ExceptionGroup("from a nursery", [ValueError("one"), ExceptionGroup("inner", [KeyError("two")])])
    LogObserver(Config()).application_failed(make_exchange(), group)
    text = text_of(errors.only())
    assert "ExceptionGroup: from a nursery (2 sub-exceptions)" in text
    assert text.count("ValueError: one") == text.count("KeyError: 'two'") == 1


def test_a_stuck_application(errors):
    LogObserver(Config()).application_stuck(make_exchange(), 5)
    record = errors.only()
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        'application still running 5.0 s after it was cancelled, on "GET /a%20b?x=1 HTTP/1.1" from 127.0.0.1:50412'
    )
    assert record.trigi["target"] == "/a%20b?x=1"


@pytest.mark.parametrize("lifespan", ["auto", "on"])
@pytest.mark.parametrize("stage", ["starting", "serving", "stopping"])
def test_a_failed_lifespan(errors, stage, lifespan):
    """Only where it may be that there is none, it is no error."""
    LogObserver(Config(lifespan=lifespan)).lifespan_failed(stage, raised(lambda: {}["no\nlifespan"]))
    record = errors.only()
    if (stage, lifespan) == ("starting", "auto"):
        assert record.levelno == logging.INFO
        assert record.exc_info is None
        assert (
            "the application has no lifespan: it raised KeyError: 'no\\x5cnlifespan' (" in record.getMessage()
        )
    else:
        assert record.levelno == logging.ERROR
        assert record.getMessage() == f"application failed in its lifespan, {stage}"
        assert "KeyError" in text_of(record)


def test_a_lifespan_that_may_not_exist_has_its_traceback_at_debug():
    errors = listen("trigi.error", logging.DEBUG)
    LogObserver(Config()).lifespan_failed("starting", raised(lambda: {}["none"]))
    assert "Traceback" in text_of(errors.only())


def test_a_refused_request(errors):
    error = BadRequest("too long: \x1b[2J\n", status_hint=431, limit="head_size_limit")
    LogObserver(Config()).request_refused(ConnectionInfo(CLIENT, SERVER), error)
    record = errors.only()
    reason = r"too long: \x1b[2J\x0a (limit: head_size_limit)"
    assert record.levelno == logging.INFO
    assert record.getMessage() == f"request refused with 431 from 127.0.0.1:50412: {reason}"
    assert record.trigi == {
        "client": "127.0.0.1:50412",
        "status": 431,
        "reason": reason,
        "limit": "head_size_limit",
    }


def test_a_refused_connection_is_one_line(errors):
    error = BadConnection("too many\n", error_code="ENHANCE_YOUR_CALM", limit="h2_reset_limit")
    LogObserver(Config()).connection_refused(ConnectionInfo(CLIENT), error)
    record = errors.only()
    reason = r"ENHANCE_YOUR_CALM: too many\x0a (limit: h2_reset_limit)"
    assert record.levelno == logging.INFO
    assert record.getMessage() == f"connection ended, from 127.0.0.1:50412: {reason}"
    assert record.trigi == {"client": "127.0.0.1:50412", "reason": reason, "limit": "h2_reset_limit"}


def test_a_failed_connection(errors):
    LogObserver(Config()).connection_failed(CLIENT, raised(lambda: 1 / 0))
    record = errors.only()
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "connection from 127.0.0.1:50412 ended by a bug in trigi: please report it"
    assert "ZeroDivisionError" in text_of(record)


def test_a_failed_handshake_is_one_line(errors):
    error = trio.BrokenResourceError()
    error.__cause__ = OSError("wrong version\nnumber")
    observer = LogObserver(Config())
    observer.handshake_failed(CLIENT, error)
    observer.handshake_failed(None, TimeoutError("too long"))
    assert [(record.levelno, record.getMessage(), record.exc_info) for record in errors.records] == [
        (logging.INFO, r"TLS handshake with 127.0.0.1:50412 failed: OSError: wrong version\x0anumber", None),
        (logging.INFO, "TLS handshake with - failed: TimeoutError: too long", None),
    ]


def test_a_failed_background_task_has_its_traceback_from_its_first_frame_on(errors):
    def task():
        raise ValueError("x")

    LogObserver(Config()).background_failed("app.\ntask", raised(task))
    LogObserver(Config()).background_stuck("app.task", 5)
    failed, stuck = errors.records
    assert failed.levelno == logging.ERROR
    assert failed.getMessage() == r"application failed in its background task app.\x0atask"
    assert str(failed.exc_info[1]) == "x"
    assert failed.trigi == {"task": "app.\ntask"}
    assert stuck.levelno == logging.WARNING
    assert stuck.getMessage() == (
        "application still running 5.0 s after it was cancelled, in its background task app.task"
    )


HOOKS = {
    "exchange_ended": (make_exchange(),),
    "application_failed": (make_exchange(), ValueError("x")),
    "application_stuck": (make_exchange(), 5.0),
    "background_failed": ("app.clean_up", ValueError("x")),
    "background_stuck": ("app.clean_up", 5.0),
    "lifespan_failed": ("serving", ValueError("x")),
    "request_refused": (ConnectionInfo(), BadRequest("x")),
    "connection_refused": (ConnectionInfo(), BadConnection("x", error_code="NO_ERROR")),
    "connection_failed": (None, ValueError("x")),
    "handshake_failed": (None, ValueError("x")),
}


def test_every_hook_is_overridden_and_tested():
    hooks = {name for name in vars(Observer) if not name.startswith("_")}
    assert hooks == set(HOOKS)
    assert hooks <= set(vars(LogObserver))


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("quiet", [False, True])
def test_a_handler_that_raises_ends_nothing(hook, quiet, capsys, monkeypatch):
    def explode(_):
        raise OSError("the disk is full")

    monkeypatch.setattr(logging, "raiseExceptions", not quiet)
    listen("trigi.access").emit = listen("trigi.error").emit = explode
    getattr(LogObserver(Config()), hook)(*HOOKS[hook])
    assert ("the disk is full" in capsys.readouterr().err) is not quiet


def test_not_even_without_a_stderr(access, monkeypatch):
    access.emit = None
    for stderr in (None, closed_file()):
        monkeypatch.setattr(sys, "stderr", stderr)
        LogObserver(Config()).exchange_ended(make_exchange())


def closed_file():
    file = io.StringIO()
    file.close()
    return file


# With a server


async def serve_one(application, request=b"GET /x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"):
    """The records of one connection."""
    access, errors = listen("trigi.access"), listen("trigi.error")
    client, server = memory_stream_pair()
    context = ServerContext(application, Config(), observer=LogObserver(Config()))
    async with client, trio.open_nursery() as nursery:
        nursery.start_soon(serve_stream, server, context)
        await client.send_all(request)
        async for _ in client:
            pass
    return access, errors


async def test_a_response_is_one_access_record():
    async def application(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 201, "headers": [(b"x-id", b"7")]})
        await send({"type": "http.response.body", "body": b"abc"})

    access, errors = await serve_one(application)
    record = access.only()
    assert re.fullmatch(r'- - - \[.*\] "GET /x HTTP/1.1" 201 3 "-" "-"', record.getMessage())
    assert record.trigi["complete"] is True
    assert 0 <= record.trigi["duration"] < 60
    assert errors.records == []


async def test_the_traceback_begins_in_the_application():
    async def application(_scope, _receive, send):
        await send({"type": "http.response.body"})

    access, errors = await serve_one(application)
    assert access.only().trigi["status"] == 500
    lines = text_of(errors.only()).splitlines()
    assert lines[0] == 'ERROR application failed on "GET /x HTTP/1.1" from -'
    assert lines[1] == "  Traceback (most recent call last):"
    assert "test_logs.py" in lines[2]
    assert lines[2].endswith("in application")
    assert lines[-1].startswith(
        "  trigi.exceptions.UnexpectedMessage: http.response.body is not allowed in state"
    )


async def test_a_cut_off_response_is_seen():
    async def application(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"abc", "more_body": True})
        raise ValueError

    access, errors = await serve_one(application)
    assert access.only().trigi["complete"] is False
    assert errors.only().levelno == logging.ERROR


async def test_a_refusal_says_which_limit():
    _, errors = await serve_one(None, b"GET /x HTTP/1.1\r\nhost: x\r\na: " + b"b" * 100_000 + b"\r\n\r\n")
    assert errors.only().trigi["limit"] == "head_size_limit"


# Text


def record_of(message="hello", *args, **values):
    record = logging.LogRecord("trigi.error", logging.ERROR, __file__, 1, message, args, None)
    vars(record).update(values)
    return record


def test_a_text_line():
    formatted = TextFormatter("%(asctime)s %(levelname)s %(message)s").format(
        record_of(created=1_000_000_000.25)
    )
    assert re.fullmatch(r"2001-09-0[89] \d\d:\d\d:\d\d\.250[+-]\d\d:\d\d ERROR hello", formatted)
    with_format = TextFormatter("%(asctime)s", datefmt="%Y").format(record_of(created=1_000_000_000.25))
    assert with_format == "2001"


@given(st.text(st.characters(exclude_categories=[])))
def test_no_exception_can_forge_a_line(text):
    """Only a record's first line begins at the margin, however lines are split; nothing commands a terminal."""
    record = record_of("%s", text, exc_info=(ValueError, ValueError(text), None))
    first, *rest = TextFormatter("%(levelname)s %(message)s").format(record).splitlines()
    assert first.startswith("ERROR ")
    assert all(each.startswith("  ") for each in rest)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "".join([first, *rest]))


# JSON


def parse(record):
    formatted = JSONFormatter().format(record)
    assert formatted.isascii()
    assert "\n" not in formatted

    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(formatted, parse_constant=refuse)


def test_an_access_record_in_json(access):
    LogObserver(Config(log_json=True)).exchange_ended(make_exchange(status=None, complete=False))
    entry = parse(access.only())
    assert list(entry)[:4] == ["time", "level", "logger", "message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", entry.pop("time"))
    assert entry == {
        "level": "INFO",
        "logger": "trigi.access",
        "message": "GET /a%20b?x=1 HTTP/1.1 -",
        "client": "127.0.0.1:50412",
        "method": "GET",
        "target": "/a%20b?x=1",
        "http_version": "1.1",
        "host": "example.org",
        "websocket": False,
        "status": None,
        "bytes": 12,
        "duration": 1.2345678,
        "complete": False,
        "referer": None,
        "user_agent": BROWSER,
    }


def test_the_time_is_utc_with_milliseconds():
    assert parse(record_of(created=1_000_000_000.0))["time"] == "2001-09-09T01:46:40.000+00:00"


def test_an_error_in_json(errors):
    group = ExceptionGroup("all of it", [ValueError("a\nb"), KeyError("c")])
    LogObserver(Config(log_json=True)).application_failed(make_exchange(), group)
    entry = parse(errors.only())
    assert entry["target"] == "/a%20b?x=1"
    assert "ExceptionGroup: all of it (2 sub-exceptions)" in entry["exception"]
    assert "ValueError: a\n" in entry["exception"]


def test_a_stack_in_json():
    assert parse(record_of(stack_info="Stack:\n  here"))["stack"] == "Stack:\n  here"


class Awkward:
    def __repr__(self):
        raise RuntimeError

    __str__ = __repr__


AWKWARD = {
    "awkward": Awkward(),
    "inside": [Awkward()],
    "huge": 10**5000,
    "set": {"a": {1, 2}},
    "function": len,
}
anything = st.none() | st.booleans() | st.integers() | st.floats() | st.binary() | st.sampled_from([*AWKWARD])
anything |= st.text(st.characters(exclude_categories=[]))


def meant(value):
    """What a key of AWKWARD stands for: Hypothesis must be able to print its examples."""
    return AWKWARD.get(value, value) if isinstance(value, str) else value


@given(anything, st.dictionaries(anything, anything) | anything)
def test_json_takes_any_record(value, fields):
    if isinstance(fields, dict):
        fields = {key: meant(field) for key, field in fields.items()}
    entry = parse(record_of(meant(value), trigi=meant(fields)))
    assert entry["level"] == "ERROR"
    assert isinstance(entry["message"], str)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (2**63 - 1, 2**63 - 1),
        (-(2**63) + 1, -(2**63) + 1),
        (2**64, str(2**64)),
        (10**5000, "<int without a repr>"),
        (Awkward(), "<Awkward without a repr>"),
        (1.5, 1.5),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (True, True),
        (None, None),
        (b"x", "b'x'"),
        ([1], "[1]"),
        ("\ud800é", "\\ud800é"),
    ],
    ids=lambda _: "",
)
def test_values_in_json(value, written):
    assert parse(record_of(trigi={"value": value}))["value"] == written


def test_fields_do_not_replace_what_every_record_has():
    entry = parse(record_of(trigi={"level": "DEBUG", "other": 1, 2: 3}))
    assert (entry["level"], entry["other"]) == ("ERROR", 1)
    assert "2" not in entry


@pytest.mark.parametrize(
    ("message", "args"), [("%d", ("x",)), ("%s %s", (1,)), ("%s", (Awkward(),)), (Awkward(), ())]
)
def test_arguments_that_do_not_fit(message, args):
    assert parse(record_of(message, *args))["message"]


# Configuration


def state_of(name):
    logger = logging.getLogger(name)
    return logger.handlers[:], logger.level, logger.propagate


@pytest.mark.parametrize("log_json", [False, True])
def test_access_goes_to_stdout_and_the_rest_to_stderr(capsys, log_json):
    root = state_of("")
    configure_logging(Config())
    configure_logging(Config(log_json=log_json))  # again: no line comes twice
    assert state_of("") == root
    observer = LogObserver(Config(log_json=log_json))
    observer.exchange_ended(make_exchange())
    observer.application_failed(make_exchange(), ValueError("bad"))
    logging.getLogger("trigi").info("starting")
    out, err = capsys.readouterr()
    (access_line,) = out.splitlines()
    if log_json:
        assert json.loads(access_line)["status"] == 200
        failed, starting = map(json.loads, err.splitlines())
        assert failed["exception"] == "ValueError: bad"
        assert starting["message"] == "starting"
    else:
        assert COMBINED_LINE.fullmatch(access_line)
        failed, exception, starting = err.splitlines()
        time_stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d"
        assert re.fullmatch(
            time_stamp + r' ERROR application failed on "GET .*" from 127.0.0.1:50412', failed
        )
        assert exception == "  ValueError: bad"
        assert re.fullmatch(time_stamp + " INFO starting", starting)


@pytest.mark.parametrize("level", ["critical", "error", "warning", "info", "debug"])
def test_the_level(capsys, level):
    configure_logging(Config(log_level=level))
    LogObserver(Config()).exchange_ended(make_exchange())
    for each in ("critical", "error", "warning", "info", "debug"):
        getattr(logging.getLogger("trigi.error"), each)(each)
    out, err = capsys.readouterr()
    levels = ["critical", "error", "warning", "info", "debug"]
    assert [each.split()[-1] for each in err.splitlines()] == levels[: levels.index(level) + 1]
    assert bool(out) is (level in ("info", "debug"))


def test_an_observer_alone_configures_nothing():
    names = ("", "trigi", "trigi.access", "trigi.error")
    before = [state_of(name) for name in names]
    LogObserver(Config(log_json=True, log_level="debug"))
    assert [state_of(name) for name in names] == before


def test_failures_reach_whatever_an_embedding_program_has(caplog):
    LogObserver(Config()).application_failed(make_exchange(), ValueError("bad"))
    assert [record.name for record in caplog.records] == ["trigi.error"]
