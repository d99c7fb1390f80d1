"""A field section becomes a request, or is malformed, or is refused."""

from math import inf

import pytest

from trigi._protocol.http2_fields import FIELD_OVERHEAD, Malformed, check_trailers, read_request
from trigi._protocol.http2_priority import Priority
from trigi.config import Config
from trigi.exceptions import BadRequest

GET = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"example.com"), (b":path", b"/a?b=c")]
WEBSOCKET = [
    (b":method", b"CONNECT"),
    (b":protocol", b"websocket"),
    (b":scheme", b"https"),
    (b":path", b"/chat"),
    (b":authority", b"example.com"),
]


def request(*fields, pseudo=GET, has_body=False, **settings):
    made, _ = read_request([*pseudo, *fields], stream_id=7, has_body=has_body, config=Config(**settings))
    return made


def without(name, pseudo=GET):
    return [field for field in pseudo if field[0] != name]


def replaced(name, value, pseudo=GET):
    return [(name, value) if field[0] == name else field for field in pseudo]


def test_a_request():
    made = request((b"accept", b"*/*"), (b"x", b""))
    assert made.method == "GET"
    assert made.target == b"/a?b=c"
    assert (made.raw_path, made.query_string) == (b"/a", b"b=c")
    assert made.http_version == "2"
    assert made.headers == [(b"host", b"example.com"), (b"accept", b"*/*"), (b"x", b"")]
    assert all(type(field) is tuple for field in made.headers)
    assert made.stream_id == 7
    assert [made.has_body, made.is_upgrade, made.expects_continue, made.accepts_trailers] == [False] * 4


def test_the_order_of_pseudo_fields_is_free():
    assert request(pseudo=GET[::-1]).target == b"/a?b=c"


@pytest.mark.parametrize("name", [b":method", b":scheme", b":path"])
def test_a_pseudo_field_is_missing(name):
    with pytest.raises(Malformed):
        request(pseudo=without(name))


@pytest.mark.parametrize("name", [name for name, _ in WEBSOCKET])
def test_a_pseudo_field_twice(name):
    pseudo = WEBSOCKET
    with pytest.raises(Malformed, match="twice"):
        request(pseudo=[*pseudo, (name, dict(pseudo)[name])], has_body=True)


@pytest.mark.parametrize("name", [b":status", b":foo", b":", b":Method"])
def test_an_unknown_pseudo_field(name):
    with pytest.raises(Malformed):
        request(pseudo=[*GET, (name, b"x")])


def test_pseudo_fields_come_first():
    with pytest.raises(Malformed):
        request((b"accept", b"*/*"), GET[3], pseudo=GET[:3])


@pytest.mark.parametrize("method", [b"", b"G T", b"G(T", b"GET\xff"])
def test_an_invalid_method(method):
    with pytest.raises(Malformed):
        request(pseudo=replaced(b":method", method))


@pytest.mark.parametrize("scheme", [b"", b"1http", b"ht tp", b"http:"])
def test_an_invalid_scheme(scheme):
    with pytest.raises(Malformed):
        request(pseudo=replaced(b":scheme", scheme))


@pytest.mark.parametrize(
    "path", [b"", b"a", b"*", b"http://example.com/", b"/a b", b"/a#b", b"/\x80", b"/\x7f"]
)
def test_an_invalid_path(path):
    with pytest.raises(Malformed):
        request(pseudo=replaced(b":path", path))


def test_the_asterisk_is_for_options():
    assert request(pseudo=replaced(b":path", b"*", replaced(b":method", b"OPTIONS"))).raw_path == b"*"


@pytest.mark.parametrize(
    "name", [b"Accept", b"a b", b"a:b", b"", b"a\0", b"a\x7f", b"a\xff", b"a\n", b"a\r", b"(a)"]
)
def test_an_invalid_name(name):
    with pytest.raises(Malformed):
        request((name, b"x"))


@pytest.mark.parametrize("value", [b"a\0b", b"a\r", b"\nb", b" a", b"a ", b"\ta", b"a\t", b"\x7f", b" "])
def test_an_invalid_value(value):
    with pytest.raises(Malformed):
        request((b"x", value))
    with pytest.raises(Malformed):
        request(pseudo=replaced(b":authority", value))


@pytest.mark.parametrize(
    "field",
    [
        (b"connection", b"close"),
        (b"keep-alive", b"1"),
        (b"proxy-connection", b"close"),
        (b"transfer-encoding", b"chunked"),
        (b"upgrade", b"h2c"),
        (b"te", b"gzip"),
        (b"te", b"trailers, gzip"),
        (b"te", b""),
    ],
)
def test_what_belongs_to_connections_of_http_1(field):
    with pytest.raises(Malformed, match="no place in HTTP/2"):
        request(field)


def test_te_trailers():
    assert request((b"te", b"trailers")).accepts_trailers


# host


def test_the_authority_replaces_the_host():
    made = request((b"a", b"1"), (b"host", b"other.example"))
    assert made.headers == [(b"host", b"example.com"), (b"a", b"1")]


def test_a_host_alone():
    made = request((b"a", b"1"), (b"host", b"example.com:80"), pseudo=without(b":authority"))
    assert made.headers == [(b"a", b"1"), (b"host", b"example.com:80")]


def test_neither_authority_nor_host():
    with pytest.raises(Malformed):
        request(pseudo=without(b":authority"))


@pytest.mark.parametrize("host", [b"a b", b"user@example.com", b"a/b", b"[::1", b"a:b:c"])
def test_an_invalid_host(host):
    for made in (
        lambda: request((b"host", host)),
        lambda: request((b"host", host), pseudo=without(b":authority")),
        lambda: request(pseudo=replaced(b":authority", host)),
    ):
        with pytest.raises(Malformed):
            made()


def test_two_hosts_and_an_empty_authority():
    with pytest.raises(Malformed):
        request((b"host", b"a"), (b"host", b"a"))
    with pytest.raises(Malformed):
        request(pseudo=replaced(b":authority", b""))


# Other fields


def test_crumbs_of_cookies_are_joined_where_the_first_is():
    made = request((b"a", b"1"), (b"cookie", b"x=1"), (b"b", b"2"), (b"cookie", b"y=2"), (b"cookie", b"z=3"))
    assert made.headers[1:] == [(b"a", b"1"), (b"cookie", b"x=1; y=2; z=3"), (b"b", b"2")]
    assert request((b"cookie", b"x=1")).headers[1:] == [(b"cookie", b"x=1")]


@pytest.mark.parametrize(
    "lengths", [[b""], [b"-1"], [b"+1"], [b"1, 1"], [b"0x1"], [b"9" * 20], [b"1", b"1"], [b"1", b"2"]]
)
def test_an_invalid_content_length(lengths):
    with pytest.raises(Malformed, match="content-length"):
        request(*[(b"content-length", length) for length in lengths], has_body=True)


def test_a_length_without_a_body():
    with pytest.raises(Malformed):
        request((b"content-length", b"1"))
    assert request((b"content-length", b"0")).headers[-1] == (b"content-length", b"0")


def test_the_announced_length():
    fields = [*GET, (b"content-length", b"12")]
    assert read_request(fields, stream_id=1, has_body=True, config=Config())[1] == 12
    assert read_request(GET, stream_id=1, has_body=True, config=Config())[1] is None


def test_too_long_a_body():
    with pytest.raises(BadRequest) as caught:
        request((b"content-length", b"11"), has_body=True, body_size_limit=10)
    assert (caught.value.status_hint, caught.value.limit) == (413, "body_size_limit")


def test_expectations():
    assert request((b"expect", b"100-Continue"), has_body=True).expects_continue
    assert not request((b"expect", b"100-continue")).expects_continue
    with pytest.raises(BadRequest) as caught:
        request((b"expect", b"miracles"), has_body=True)
    assert caught.value.status_hint == 417


def test_priority():
    assert request().priority == Priority()
    assert request((b"priority", b"u=1, i")).priority == Priority(1, incremental=True)
    assert request((b"priority", b"u=5")).priority == Priority(5, incremental=False)


# Limits


def test_the_count_of_fields():
    many = [(b"a", b"1")] * 6
    assert len(request(*many, header_count_limit=10).headers) == 7
    with pytest.raises(BadRequest) as caught:
        request(*many, header_count_limit=9)
    assert (caught.value.status_hint, caught.value.limit) == (431, "header_count_limit")


def test_the_size_of_the_head():
    size = sum(len(name) + len(value) + FIELD_OVERHEAD for name, value in GET)
    request(head_size_limit=size)
    with pytest.raises(BadRequest) as caught:
        request(head_size_limit=size - 1)
    assert (caught.value.status_hint, caught.value.limit) == (431, "head_size_limit")
    request(*[(b"a", b"1")] * 1000, head_size_limit=inf, header_count_limit=inf)


# CONNECT


def test_connect_is_not_supported():
    with pytest.raises(BadRequest) as caught:
        request(pseudo=[(b":method", b"CONNECT"), (b":authority", b"example.com:443")], has_body=True)
    assert caught.value.status_hint == 501


@pytest.mark.parametrize("extra", [(b":scheme", b"https"), (b":path", b"/")])
def test_connect_has_no_scheme_and_no_path(extra):
    with pytest.raises(Malformed):
        request(pseudo=[(b":method", b"CONNECT"), (b":authority", b"example.com:443"), extra])


def test_connect_without_authority():
    with pytest.raises(Malformed):
        request(pseudo=[(b":method", b"CONNECT")])


def test_a_websocket():
    made = request((b"sec-websocket-version", b"13"), pseudo=WEBSOCKET, has_body=True)
    assert (made.is_upgrade, made.has_body, made.method, made.raw_path) == (True, False, "CONNECT", b"/chat")


def test_a_websocket_that_has_ended():
    with pytest.raises(Malformed):
        request(pseudo=WEBSOCKET)


def test_another_protocol():
    with pytest.raises(BadRequest) as caught:
        request(pseudo=replaced(b":protocol", b"connect-udp", WEBSOCKET), has_body=True)
    assert caught.value.status_hint == 501


def test_a_protocol_is_for_connect():
    with pytest.raises(Malformed):
        request(pseudo=replaced(b":method", b"GET", WEBSOCKET), has_body=True)


# Trailers


def test_trailers():
    check_trailers([(b"x-checksum", b"1")], ends=True, missing=0)
    check_trailers([], ends=True, missing=None)


@pytest.mark.parametrize(
    ("fields", "ends", "missing"),
    [
        ([(b":status", b"200")], True, None),
        ([(b":path", b"/")], True, None),
        ([(b"X", b"1")], True, None),
        ([(b"x", b"1\n")], True, None),
        ([(b"connection", b"close")], True, None),
        ([(b"x", b"1")], False, None),
        ([(b"x", b"1")], True, 3),
    ],
)
def test_what_is_not_trailers(fields, ends, missing):
    with pytest.raises(Malformed):
        check_trailers(fields, ends=ends, missing=missing)
