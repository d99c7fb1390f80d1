"""Scopes: what is in them, that nothing in one is shared with another, and how a path is made."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trigi._protocol.events import Request
from trigi._protocol.scope import (
    ConnectionInfo,
    Endpoint,
    http_scope,
    lifespan_scope,
    mounted_path,
    websocket_scope,
)

TLS = {
    "server_cert": "-----BEGIN CERTIFICATE-----",
    "client_cert_chain": ["-----BEGIN CERTIFICATE-----"],
    "client_cert_name": None,
    "client_cert_error": None,
    "tls_version": 0x0304,
    "cipher_suite": 0x1301,
}


def make_request(**changes):
    fields = {
        "method": "GET",
        "target": b"/a%20b?c=%64",
        "raw_path": b"/a%20b",
        "query_string": b"c=%64",
        "http_version": "1.1",
        "headers": [(b"host", b"example.org"), (b"x", b"1"), (b"x", b"2")],
    }
    return Request(**(fields | changes))


def make_connection(tls=None):
    return ConnectionInfo(Endpoint("192.0.2.1", 50000), Endpoint("127.0.0.1", 8000), tls)


def http(request=None, connection=None, root_path="", state=None, extension=None):
    return http_scope(
        request or make_request(),
        connection or make_connection(),
        root_path,
        state or {},
        extension or {},
        extensions=("http.response.pathsend", "http.response.trailers"),
    )


def websocket(request=None, connection=None, root_path="", state=None, extension=None, *, subprotocols=()):
    return websocket_scope(
        request or make_request(),
        connection or make_connection(),
        root_path,
        state or {},
        extension or {},
        subprotocols=subprotocols,
    )


BOTH = pytest.mark.parametrize("make", [http, websocket])


def test_an_http_scope_has_exactly_these_keys():
    pool, extension = object(), {"nursery": object()}
    assert http(state={"pool": pool}, extension=extension) == {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/a b",
        "raw_path": b"/a%20b",
        "query_string": b"c=%64",
        "root_path": "",
        "headers": [(b"host", b"example.org"), (b"x", b"1"), (b"x", b"2")],
        "client": ("192.0.2.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {"pool": pool},
        "extensions": {
            "trigi": extension,
            "http.response.pathsend": {},
            "http.response.trailers": {},
        },
    }


def test_a_websocket_scope_has_exactly_these_keys():
    pool, extension = object(), {"nursery": object()}
    found = websocket(state={"pool": pool}, extension=extension, subprotocols=["chat", "v2"])
    assert found == {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.5"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": "/a b",
        "raw_path": b"/a%20b",
        "query_string": b"c=%64",
        "root_path": "",
        "headers": [(b"host", b"example.org"), (b"x", b"1"), (b"x", b"2")],
        "client": ("192.0.2.1", 50000),
        "server": ("127.0.0.1", 8000),
        "subprotocols": ["chat", "v2"],
        "state": {"pool": pool},
        "extensions": {"trigi": extension, "websocket.http.response": {}},
    }


def test_a_lifespan_scope_has_the_very_state_that_it_fills():
    state = {}
    scope = lifespan_scope(state)
    assert scope == {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    assert scope["state"] is state
    assert lifespan_scope({})["asgi"] is not scope["asgi"]


@pytest.mark.parametrize("version", ["1.0", "1.1", "2"])
@BOTH
def test_the_http_version_is_the_request_s(make, version):
    assert make(make_request(http_version=version))["http_version"] == version


@pytest.mark.parametrize(
    ("sent", "seen"), [("GET", "GET"), ("HEAD", "HEAD"), ("PROPFIND", "PROPFIND"), ("get", "GET")]
)
def test_the_method_is_in_upper_case(sent, seen):
    assert http(make_request(method=sent))["method"] == seen


@pytest.mark.parametrize(("make", "plain", "secure"), [(http, "http", "https"), (websocket, "ws", "wss")])
def test_tls_makes_the_scheme_and_the_extension(make, plain, secure):
    without, with_tls = make(), make(connection=make_connection(TLS))
    assert (without["scheme"], with_tls["scheme"]) == (plain, secure)
    assert "tls" not in without["extensions"]
    assert with_tls["extensions"] == without["extensions"] | {"tls": TLS}


@BOTH
def test_endpoints_may_be_unknown_or_unix(make):
    memory = make(connection=ConnectionInfo())
    assert (memory["client"], memory["server"]) == (None, None)
    unix = make(connection=ConnectionInfo(server=Endpoint("/run/a.sock", None)))
    assert (unix["client"], unix["server"]) == (None, ("/run/a.sock", None))


def containers(value, path="scope"):
    """Everything in a scope that can be changed, by where it is."""
    if isinstance(value, dict):
        yield path, value
        for key, item in value.items():
            yield from containers(item, f"{path}.{key}")
    elif isinstance(value, list):
        yield path, value
        for item in value:
            yield from containers(item, f"{path}[]")


@BOTH
def test_nothing_that_can_be_changed_is_shared_between_scopes(make):
    """Nor with what scopes are made from. The server's own extension is the call's, and `state` is shallow."""
    request, connection, state = make_request(), make_connection(TLS), {"shared": ["on purpose"]}
    subprotocols = {"subprotocols": ["chat"]} if make is websocket else {}
    first = make(request, connection, "/mnt", state, {}, **subprotocols)
    second = make(request, connection, "/mnt", state, {}, **subprotocols)
    assert first == second
    sources = [
        *containers(request.headers),
        *containers(connection.tls),
        *containers({**state, **subprotocols}),
        *containers(second),
    ]
    mine = [(path, item) for path, item in containers(first) if path != "scope.state.shared"]
    assert len(mine) >= 9
    assert {path for path, item in mine if any(item is other for _, other in sources)} == set()
    assert first["state"] is not state
    assert first["state"]["shared"] is state["shared"]


# Paths


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/", "/"),
        (b"*", "*"),
        (b"/a+b;c=d,e", "/a+b;c=d,e"),
        (b"/%20", "/ "),
        (b"/%2541", "/%41"),
        (b"/a%2Fb%2fc", "/a/b/c"),
        (b"/caf%C3%A9", "/caf\xe9"),
        (b"/%F0%9F%8D%8B", "/\N{LEMON}"),
        (b"/%E9%FF/x", "/\ufffd\ufffd/x"),
        (b"/%C3/%A9", "/\ufffd/\ufffd"),
        (b"/%", "/%"),
        (b"/%4", "/%4"),
        (b"/%zz%41", "/%zzA"),
        (b"/%00", "/\x00"),
        (b"//a//b/./../c/", "//a//b/./../c/"),
        (b"/%2e%2E/", "/../"),
    ],
    ids=repr,
)
def test_a_path_is_decoded_once_and_nothing_else(raw, path):
    assert mounted_path(raw, "") == path


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/", "/mnt/"),
        (b"/a", "/mnt/a"),
        (b"/mnt", "/mnt"),
        (b"/mnt/", "/mnt/"),
        (b"/mnt/a%20b", "/mnt/a b"),
        (b"/%6dnt/a", "/mnt/a"),
        (b"/mntain", "/mnt/mntain"),
        (b"/MNT/a", "/mnt/MNT/a"),
        (b"//mnt/a", "/mnt//mnt/a"),
        (b"*", "*"),
    ],
    ids=repr,
)
def test_a_path_begins_with_the_root_path_whether_the_proxy_strips_it_or_not(raw, path):
    assert mounted_path(raw, "/mnt") == path


@BOTH
def test_a_scope_has_the_mounted_path_the_raw_path_and_the_root_path(make):
    scope = make(make_request(raw_path=b"/%61"), root_path="/mnt")
    assert (scope["path"], scope["raw_path"], scope["root_path"]) == ("/mnt/a", b"/%61", "/mnt")


@given(st.text(st.characters(codec="utf-8"), max_size=20), st.sampled_from(["", "/mnt", "/m\xe9/n t"]))
def test_any_path_that_was_encoded_comes_back(path, root_path):
    found = mounted_path(quote("/" + path).encode("ascii"), root_path)
    assert found.endswith("/" + path)
    assert found.startswith(root_path)


@given(st.lists(st.sampled_from([*map(chr, range(0x21, 0x7F)), "%4", "%41", "%FF", "%C3%A9"])).map("".join))
def test_any_target_has_some_path(raw):
    assert mounted_path(b"/" + raw.encode("ascii"), "/mnt").startswith("/mnt")


# Endpoints


@pytest.mark.parametrize(
    ("endpoint", "text"),
    [
        (Endpoint("127.0.0.1", 80), "127.0.0.1:80"),
        (Endpoint("::1", 80), "[::1]:80"),
        (Endpoint("fe80::1%eth0", 0), "[fe80::1%eth0]:0"),
        (Endpoint("/run/a.sock", None), "unix:/run/a.sock"),
    ],
    ids=str,
)
def test_an_endpoint_reads_as_an_address(endpoint, text):
    assert str(endpoint) == text
