"""Header fields: what an application may send, what a `Host` may be, and how lists are read."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trigi._protocol import headers as module
from trigi._protocol.headers import TOKEN, check_headers, content_length, is_host, tokens
from trigi.exceptions import InvalidMessage

# RFC 9110, 5.6.2
TCHAR = "!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters


def refusal(headers):
    with pytest.raises(InvalidMessage) as caught:
        check_headers(headers, "http.response.start")
    text = str(caught.value)
    assert text.startswith("http.response.start: ")
    return text.removeprefix("http.response.start: ")


# Names and values


def test_names_become_lower_case_and_values_lose_white_space_around_them():
    checked = check_headers(
        [(b"Content-Type", b" text/plain\t "), (b"X-Empty", b"\t"), (b"x", b"a \t b")], "x"
    )
    assert checked == [(b"content-type", b"text/plain"), (b"x-empty", b""), (b"x", b"a \t b")]
    assert all(type(item) is bytes for field in checked for item in field)


@pytest.mark.parametrize("made", [list, tuple, iter])
@pytest.mark.parametrize("pair", [list, tuple, iter])
def test_any_iterable_of_any_pairs_will_do(made, pair):
    fields = [(b"B", b"1"), (b"a", b"2"), (b"b", b"3")]
    checked = check_headers(made([pair(field) for field in fields]), "x")
    assert checked == [(b"b", b"1"), (b"a", b"2"), (b"b", b"3")]


def test_what_is_given_is_not_changed():
    fields = [[b"A", b" 1"]]
    checked = check_headers(fields, "x")
    checked.append((b"b", b"2"))
    assert fields == [[b"A", b" 1"]]


@pytest.mark.parametrize("byte", range(256))
def test_a_name_is_a_token(byte):
    name = b"X-" + bytes((byte,))
    if chr(byte) in TCHAR:
        assert check_headers([(name, b"1")], "x") == [(name.lower(), b"1")]
    else:
        assert refusal([(name, b"1")]) == f"{name!r} is not a valid header name"


@pytest.mark.parametrize("name", [b"", b":status", b" x", b"x ", b"x\r\n", b"a:b", b"x\r\ny"])
def test_a_name_that_is_no_token_is_refused(name):
    assert refusal([(b"a", b"1"), (name, b"1")]) == f"{name!r} is not a valid header name"


@pytest.mark.parametrize("byte", range(256))
def test_a_value_has_no_control_characters(byte):
    value = b"a" + bytes((byte,)) + b"b"
    if byte == 0x09 or (byte >= 0x20 and byte != 0x7F):
        assert check_headers([(b"x", value)], "x") == [(b"x", value)]
    else:
        assert refusal([(b"x", value)]) == f"value of header b'x' has a control character: {value!r}"


@pytest.mark.parametrize("byte", [0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])
def test_only_white_space_is_lost_at_the_ends_of_a_value(byte):
    edge = bytes((byte,))
    kept = b"a" if edge in b" \t" else edge + b"a" + edge
    assert check_headers([(b"x", edge + b"a" + edge)], "x") == [(b"x", kept)]


@pytest.mark.parametrize(
    "value", [b"a\r\nset-cookie: b", b"a\r\n", b"\r\na", b"a\nb", b"a\rb", b"a\x00", b"\n"]
)
def test_a_value_can_not_split_the_response(value):
    """Not at its ends either, where white space is stripped."""
    assert refusal([(b"x", value)]) == f"value of header b'x' has a control character: {value!r}"


@pytest.mark.parametrize("name", ["x", None, 1, bytearray(b"x"), memoryview(b"x"), (b"x",)], ids=repr)
def test_a_name_that_is_not_bytes_is_refused_by_type(name):
    check_headers([(b"x", b"1")], "x")  # known, and equal to some of these
    assert refusal([(name, b"1")]).startswith(f"header names must be bytes, got {type(name).__name__} ")


@pytest.mark.parametrize("value", ["1", None, 1, bytearray(b"1"), memoryview(b"1"), [b"1"]], ids=repr)
def test_a_value_that_is_not_bytes_is_refused_by_name_and_type(value):
    assert refusal([(b"X-A", value)]).startswith(
        f"value of header b'X-A' must be bytes, got {type(value).__name__} "
    )


@pytest.mark.parametrize("field", [b"x-a", "x-a", b"", (), (b"x",), (b"x", b"1", b"2"), None, 1], ids=repr)
def test_a_header_that_is_no_pair_is_refused(field):
    assert refusal([(b"a", b"1"), field]) == f"headers must be pairs of bytes, got {field!r}"


@pytest.mark.parametrize("headers", [None, 1, object()], ids=repr)
def test_headers_that_are_not_iterable_are_refused(headers):
    assert refusal(headers) == f"headers must be iterable, got {type(headers).__name__}"


@pytest.mark.parametrize("error", [TypeError, ValueError, AttributeError, RuntimeError])
def test_an_iterator_that_fails_fails_with_its_own_error(error):
    def fields():
        yield b"a", b"1"
        raise error("the application's")

    with pytest.raises(error, match="the application's"):
        check_headers(fields(), "x")


def test_the_memory_of_names_is_bounded():
    """And names that are not in it are as good as those that are."""
    for number in range(2 * module._KNOWN_NAMES_LIMIT):
        name = b"X-Made-Up-%d" % number
        assert check_headers([(name, b""), (name, b"")], "x") == [(name.lower(), b"")] * 2
    assert len(module._KNOWN_NAMES) == module._KNOWN_NAMES_LIMIT


@given(
    st.lists(
        st.tuples(st.text(TCHAR, min_size=1, max_size=8).map(str.encode), st.binary(max_size=8)), max_size=4
    )
)
def test_what_passes_is_safe_on_the_wire(fields):
    try:
        checked = check_headers(fields, "x")
    except InvalidMessage:
        assert any((byte < 0x20 and byte != 0x09) or byte == 0x7F for _, value in fields for byte in value)
        return
    lines = b"".join(b"%b: %b\r\n" % field for field in checked).split(b"\r\n")
    assert lines.pop() == b""
    assert [(name.lower(), value.strip(b" \t")) for name, value in fields] == [
        tuple(line.split(b": ", 1)) for line in lines
    ]


# Content-Length


@pytest.mark.parametrize(
    ("value", "length"), [(b"0", 0), (b"5", 5), (b"0005", 5), (b"9" * 19, 10**19 - 1)], ids=repr
)
def test_a_content_length_is_a_number(value, length):
    assert content_length([(b"a", b"7"), (b"content-length", value), (b"b", b"8")], "x") == length


def test_there_may_be_no_content_length():
    assert content_length([(b"content-type", b"5")], "x") is None


@pytest.mark.parametrize(
    "values",
    [
        *(
            [value]
            for value in (
                b"",
                b"-1",
                b"+1",
                b"1.0",
                b"1 0",
                b"5, 5",
                b"five",
                b"\xb2",
                b"1" * 20,
                b"1" * 5000,
            )
        ),
        [b"5", b"5"],
        [b"5", b"6"],
    ],
    ids=lambda values: repr(values)[:30],
)
def test_a_content_length_that_is_not_one_number_is_refused(values):
    """5,000 digits are more than `int()` takes."""
    with pytest.raises(
        InvalidMessage, match=r"^http\.response\.start: content-length must be one number, got b'"
    ):
        content_length([(b"content-length", value) for value in values], "http.response.start")


# Lists


def test_a_list_is_read_from_all_lines_in_order():
    fields = [
        (b"connection", b"Keep-Alive, ,Upgrade\t,"),
        (b"upgrade", b"websocket"),
        (b"connection", b""),
        (b"connection", b" \tTE"),
    ]
    assert tokens(fields, b"connection") == [b"keep-alive", b"upgrade", b"te"]
    assert tokens(fields, b"te") == []


@pytest.mark.parametrize("edge", TCHAR)
def test_only_white_space_is_lost_at_the_ends_of_an_item(edge):
    item = f"{edge}a{edge}".encode()
    assert tokens([(b"x", b" " + item + b"\t," + item)], b"x") == [item.lower()] * 2


# Host


HOSTS = r"""
    a example.org EXAMPLE.org. example.org:80 example.org: a:99999 127.0.0.1:8000 a_b-c~d xn--bcher-kva.example
    [::1] [::1]:80 [::1]: [::ffff:1.2.3.4] [v1.a:b] [v1f.x]:80 %41 a%20b !$&'()*+,;=
"""

NO_HOSTS = r"""
    a/b a/ / a?b a#b a\b http://a user@a user:pass@a @ : :80 a:b a:80:80 a:-1 a:+1 ::1 fe80::1
    [] []:80 [::1 ::1] [::1]x [::1]80 [::g] [a]b [::1%25eth0] [v.a] [v1] [v1.]
    % %4 %zz a% <a> "a" a|b a^b a`b {a} é exämple.org
"""


@pytest.mark.parametrize("host", ["", *HOSTS.split()])
def test_a_host_may_be(host):
    assert is_host(host.encode())


@pytest.mark.parametrize(
    "host", [" ", " a", "a ", "a b", "a\tb", "a: 80", "a\r\n", "a\n", "\x00", "\x7f", *NO_HOSTS.split()]
)
def test_a_host_may_not_be(host):
    assert not is_host(host.encode("latin-1"))


def test_a_token_is_what_the_grammar_says():
    assert {chr(byte) for byte in range(256) if TOKEN.fullmatch(bytes((byte,)))} == set(TCHAR)
    assert not TOKEN.fullmatch(b"")
    assert not TOKEN.fullmatch(b"a\n")
