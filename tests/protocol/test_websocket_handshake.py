"""The opening handshake: RFC 6455, section 4 and 9.1; RFC 7692, 7.1; RFC 8441, 5."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trigi._protocol.events import Request
from trigi._protocol.websocket_handshake import UPGRADE_REQUIRED_HEADERS, DeflateParameters, Handshake
from trigi.exceptions import BadRequest, InvalidMessage

KEY = (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ==")  # RFC 6455, 1.3
VERSION = (b"sec-websocket-version", b"13")
UPGRADE = (b"upgrade", b"websocket")
CONNECTION = (b"connection", b"Upgrade")
FIELDS = [(b"host", b"example.com"), UPGRADE, CONNECTION, KEY, VERSION]


def make_request(*extra, fields=None, method="GET", http_version="1.1", **attributes):
    headers = [*(FIELDS if fields is None else fields), *extra]
    return Request(method, b"/chat", b"/chat", b"", http_version, headers, **attributes)


def without(*names):
    return [field for field in FIELDS if field[0] not in names]


def over_http2(*extra, method="CONNECT"):
    fields = [(b"host", b"example.com"), VERSION]
    return make_request(*extra, fields=fields, method=method, http_version="2", has_body=True)


def extensions(*values):
    return [(b"sec-websocket-extensions", value) for value in values]


def negotiate(*values):
    """The value of the response's Sec-WebSocket-Extensions, and the parameters."""
    headers, deflate = Handshake(make_request(*extensions(*values))).accept(None, [], deflate=True)
    found = [value for name, value in headers if name == b"sec-websocket-extensions"]
    assert len(found) == (deflate is not None)
    return (found[0] if found else None), deflate


def refusal(request):
    with pytest.raises(BadRequest) as caught:
        Handshake(request)
    return caught.value.status_hint


class TestRequest:
    def test_example_of_the_rfc(self):
        handshake = Handshake(make_request())
        assert handshake.status == 101
        assert handshake.accept(None, [], deflate=True) == (
            [
                (b"upgrade", b"websocket"),
                (b"connection", b"Upgrade"),
                (b"sec-websocket-accept", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
            ],
            None,
        )

    @pytest.mark.parametrize(
        "fields",
        [
            [(b"upgrade", b"WebSocket"), (b"connection", b"keep-alive, Upgrade"), KEY, VERSION],
            [(b"upgrade", b"h2c"), (b"upgrade", b"x, websocket"), CONNECTION, KEY, VERSION],
            [UPGRADE, (b"connection", b"keep-alive"), (b"connection", b"UPGRADE"), KEY, VERSION],
        ],
    )
    def test_tokens_in_any_case_and_place(self, fields):
        assert Handshake(make_request(fields=fields)).status == 101

    @pytest.mark.parametrize("method", ["POST", "get", "CONNECT"])
    def test_method(self, method):
        assert refusal(make_request(method=method)) == 400

    def test_http_1_0(self):
        assert refusal(make_request(http_version="1.0")) == 400

    @pytest.mark.parametrize(
        "fields",
        [
            without(b"upgrade"),
            without(b"connection"),
            [*without(b"upgrade"), (b"upgrade", b"websockets")],
            [*without(b"connection"), (b"connection", b"upgraded")],
        ],
    )
    def test_not_an_upgrade(self, fields):
        assert refusal(make_request(fields=fields)) == 400

    def test_body(self):
        assert refusal(make_request(has_body=True)) == 400

    @pytest.mark.parametrize(
        "values", [[], [b"8"], [b""], [b"013"], [b"13, 8"], [b"13", b"13"], [b"8", b"13"]]
    )
    def test_version(self, values):
        fields = [
            *without(b"sec-websocket-version"),
            *((b"sec-websocket-version", value) for value in values),
        ]
        assert refusal(make_request(fields=fields)) == 426

    def test_version_comes_before_the_key(self):
        assert refusal(make_request(fields=without(b"sec-websocket-version", b"sec-websocket-key"))) == 426

    def test_headers_of_a_426(self):
        assert (b"sec-websocket-version", b"13") in UPGRADE_REQUIRED_HEADERS
        assert (b"upgrade", b"websocket") in UPGRADE_REQUIRED_HEADERS

    @pytest.mark.parametrize(
        "values",
        [
            [],
            [KEY[1], KEY[1]],
            [b""],
            [b"dGhlIHNhbXBsZSBub25jZQ"],
            [b"dGhlIHNhbXBsZSBub25jZQ==="],
            [b"dGhlIHNhbXBsZSBub25j"],
            [b"dGhlIHNhbXBsZSBub25jZSE="],
            [b"dGhlIHNhbXBsZSBub25jZSEh"],
            [b"dGhlIHNhbXBsZS_ub25jZQ=="],
            [b"dGhlIHNhbXBsZSBub25jZQ==\n"],
        ],
    )
    def test_key(self, values):
        fields = [*without(b"sec-websocket-key"), *((b"sec-websocket-key", value) for value in values)]
        assert refusal(make_request(fields=fields)) == 400


class TestHTTP2:
    def test_accept(self):
        protocol = (b"sec-websocket-protocol", b"chat")
        handshake = Handshake(over_http2(protocol, *extensions(b"permessage-deflate")))
        assert handshake.status == 200
        headers, deflate = handshake.accept("chat", [(b"x-one", b"1")], deflate=True)
        assert headers == [
            (b"sec-websocket-protocol", b"chat"),
            (b"sec-websocket-extensions", b"permessage-deflate"),
            (b"x-one", b"1"),
        ]
        assert deflate == DeflateParameters()

    def test_a_key_means_nothing(self):
        headers, _ = Handshake(over_http2((b"sec-websocket-key", b"?"))).accept(None, [], deflate=True)
        assert headers == []

    def test_method(self):
        assert refusal(over_http2(method="GET")) == 400

    def test_version(self):
        assert refusal(make_request(fields=[], method="CONNECT", http_version="2")) == 426


class TestSubprotocols:
    @pytest.mark.parametrize(
        ("values", "subprotocols"),
        [
            ([], []),
            ([b"chat"], ["chat"]),
            ([b"chat, superchat"], ["chat", "superchat"]),
            ([b"b,a", b" v1.x ,\tC"], ["b", "a", "v1.x", "C"]),
            ([b", a, ,b,"], ["a", "b"]),
        ],
    )
    def test_in_order_from_all_lines(self, values, subprotocols):
        handshake = Handshake(make_request(*((b"sec-websocket-protocol", value) for value in values)))
        assert handshake.subprotocols == subprotocols

    @pytest.mark.parametrize("value", [b"", b" , ", b"a b", b"a, b/c", b"a;b", b'"a"', b"\xe4", b"a\x00"])
    def test_malformed(self, value):
        assert refusal(make_request((b"sec-websocket-protocol", value))) == 400

    def test_chosen(self):
        handshake = Handshake(make_request((b"sec-websocket-protocol", b"a, b")))
        headers, _ = handshake.accept("b", [], deflate=True)
        assert headers[3:] == [(b"sec-websocket-protocol", b"b")]

    @pytest.mark.parametrize("subprotocol", ["c", "", "A", "a, b"])
    def test_not_offered(self, subprotocol):
        handshake = Handshake(make_request((b"sec-websocket-protocol", b"a, b")))
        with pytest.raises(InvalidMessage, match="subprotocol"):
            handshake.accept(subprotocol, [], deflate=True)
        assert handshake.accept("a", [], deflate=True)  # the application may try again


class TestApplicationHeaders:
    def test_last_in_order_with_duplicates(self):
        mine = [(b"x-b", b"1"), (b"set-cookie", b"a=1"), (b"x-a", b"2"), (b"set-cookie", b"b=2")]
        request = make_request(*extensions(b"permessage-deflate"), (b"sec-websocket-protocol", b"a"))
        headers, _ = Handshake(request).accept("a", mine, deflate=True)
        assert [name for name, _ in headers[:5]] == [
            b"upgrade",
            b"connection",
            b"sec-websocket-accept",
            b"sec-websocket-protocol",
            b"sec-websocket-extensions",
        ]
        assert headers[5:] == mine

    @pytest.mark.parametrize(
        "name",
        [
            b"sec-websocket-protocol",
            b"sec-websocket-accept",
            b"Sec-WebSocket-Extensions",
            b"Upgrade",
            b"connection",
            b"content-length",
            b"transfer-encoding",
            b":status",
        ],
    )
    def test_forbidden(self, name):
        with pytest.raises(InvalidMessage, match="header"):
            Handshake(make_request()).accept(None, [(b"x-fine", b""), (name, b"x")], deflate=True)


class TestDeflate:
    def test_not_offered(self):
        assert negotiate() == (None, None)

    def test_not_wanted(self):
        handshake = Handshake(make_request(*extensions(b"permessage-deflate")))
        headers, deflate = handshake.accept(None, [], deflate=False)
        assert len(headers) == 3
        assert deflate is None

    @pytest.mark.parametrize(
        ("offer", "response", "deflate"),
        [
            (b"permessage-deflate", b"permessage-deflate", DeflateParameters()),
            (
                b"permessage-deflate; client_max_window_bits",
                b"permessage-deflate",
                DeflateParameters(),
            ),
            (
                b"permessage-deflate; client_max_window_bits=8",
                b"permessage-deflate; client_max_window_bits=8",
                DeflateParameters(),
            ),
            (
                b"permessage-deflate; server_max_window_bits=9",
                b"permessage-deflate; server_max_window_bits=9",
                DeflateParameters(server_max_window_bits=9),
            ),
            (
                b'permessage-deflate\t;server_max_window_bits = "1\\0" ; server_no_context_takeover',
                b"permessage-deflate; server_max_window_bits=10; server_no_context_takeover",
                DeflateParameters(server_max_window_bits=10, server_no_context_takeover=True),
            ),
            (
                b"permessage-deflate;client_no_context_takeover",
                b"permessage-deflate; client_no_context_takeover",
                DeflateParameters(client_no_context_takeover=True),
            ),
        ],
    )
    def test_accepted(self, offer, response, deflate):
        assert negotiate(offer) == (response, deflate)

    @pytest.mark.parametrize(
        "parameters",
        [
            "server_max_window_bits",
            "server_max_window_bits=7",
            "server_max_window_bits=8",  # valid, but zlib can't
            "server_max_window_bits=16",
            "server_max_window_bits=09",
            "server_max_window_bits=+9",
            'server_max_window_bits="x"',
            "client_max_window_bits=7",
            "client_max_window_bits=16",
            "client_max_window_bits=015",
            "client_max_window_bits=1000000000000000000000000",
            "server_no_context_takeover=1",
            "client_no_context_takeover=true",
            "server_no_context_takeover; server_no_context_takeover",
            "client_max_window_bits; client_max_window_bits=15",
            "x",
            "x=1",
            "Server_No_Context_Takeover",
        ],
    )
    def test_declined_and_the_next_one_tried(self, parameters):
        offer = f"permessage-deflate; {parameters}".encode()
        assert negotiate(offer) == (None, None)
        assert negotiate(offer + b" , permessage-deflate")[1] == DeflateParameters()
        assert negotiate(offer, b"permessage-deflate")[1] == DeflateParameters()

    def test_first_that_can_be_kept_wins(self):
        offers = [
            b"x-webkit-deflate-frame, permessage-bzip2; a=b",
            b"permessage-deflate; server_max_window_bits=8, permessage-deflate; server_max_window_bits=11",
            b"permessage-deflate",
        ]
        assert negotiate(*offers)[1] == DeflateParameters(server_max_window_bits=11)

    @pytest.mark.parametrize("value", [b"foo", b"permessage-deflat", b"foo; a=b; c, bar"])
    def test_unknown_extension(self, value):
        assert negotiate(value) == (None, None)

    def test_empty_elements(self):
        assert negotiate(b", ,permessage-deflate, ", b",")[1] == DeflateParameters()

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b" ,",
            b";",
            b"a;",
            b"a; ;b",
            b"a; b=",
            b"a; =b",
            b"a b",
            b"a; b c",
            b'a; b="c',
            b'a; b=""',
            b'a; b="c d"',
            b'a; b="c, d"',
            b'a; b="c\\"',
            b'a; b="c"d',
            b"a; b=c=d",
            b"a=b",
            b"\xe4",
            b"permessage-deflate; x=\x00",
            b"permessage-deflate, a/b",
        ],
    )
    def test_malformed(self, value):
        assert refusal(make_request(*extensions(value))) == 400

    def test_long_header_takes_no_long_time(self):
        assert refusal(make_request(*extensions(b"a; b" + b" " * 60_000 + b"c"))) == 400
        assert refusal(make_request(*extensions(b"a; b=" + b'"' + b"\\c" * 30_000))) == 400
        assert refusal(make_request(*extensions(b"a" + b"; b=c" * 12_000 + b"; /"))) == 400
        assert negotiate(b"," * 60_000 + b"permessage-deflate")[1] is not None


header_values = st.binary(max_size=40) | st.text(
    'permessage-deflate;,="\\ client_max_window_bits13', max_size=60
).map(lambda text: text.encode())


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from([name for name, _ in FIELDS]), header_values)), header_values)
def test_any_header_is_accepted_or_refused(fields, value):
    extra = [(b"sec-websocket-extensions", value), (b"sec-websocket-protocol", value)]
    for request in (make_request(*fields), make_request(*extra[:1]), make_request(*extra[1:])):
        try:
            handshake = Handshake(request)
        except BadRequest as error:
            assert error.status_hint in (400, 426)  # noqa: PT017
        else:
            assert handshake.accept(None, [], deflate=True)
