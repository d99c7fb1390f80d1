"""The heads of responses: what they say, and that one which is known again is one that would be taken."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from trigi._protocol import response_head
from trigi._protocol.response_head import KNOWN_LIMIT, KNOWN_SIZE, check_head
from trigi.exceptions import InvalidMessage

WHERE = "http.response.start"


@pytest.fixture(autouse=True)
def nothing_is_known():
    response_head._known.clear()


def test_a_head_says_what_the_application_gave():
    head = check_head(201, [(b"X-A", b" 1 "), (b"Content-Length", b"07"), (b"x-a", b"2")], WHERE)
    assert head.status == 201
    assert head.headers == [(b"x-a", b"1"), (b"content-length", b"07"), (b"x-a", b"2")]
    assert head.names == {b"x-a", b"content-length"}
    assert head.length == 7
    assert head.lines == b"HTTP/1.1 201 Created\r\nx-a: 1\r\ncontent-length: 07\r\nx-a: 2\r\n"
    assert head.is_plain


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, []),
        (204, [(b"content-length", b"0")]),
        *[(200, [(b"content-length", b"1"), (name, b"x")]) for name in response_head.NOT_PLAIN],
    ],
)
def test_what_needs_framing_or_has_the_servers_fields_is_not_plain(status, headers):
    assert not check_head(status, headers, WHERE).is_plain


def test_the_same_head_is_known_again():
    first, again, other = (check_head(200, [(b"a", value)], WHERE) for value in (b"1", b"1", b"2"))
    assert again is first
    assert other is not first


def test_a_head_that_was_refused_is_refused_again():
    for _ in range(2):
        with pytest.raises(InvalidMessage):
            check_head(200, [(b"a", b"b\n")], WHERE)


@pytest.mark.parametrize("status", [True, 200.0, "200", None])
def test_what_equals_a_status_is_none(status):
    check_head(200, [], WHERE)
    with pytest.raises(InvalidMessage, match="status must be int"):
        check_head(status, [], WHERE)


def test_the_same_names_in_another_order_are_another_head():
    fields = [(b"a", b"1"), (b"b", b"2")]
    assert check_head(200, fields, WHERE).headers == fields
    assert check_head(200, fields[::-1], WHERE).headers == fields[::-1]
    assert check_head(404, fields, WHERE).status == 404


def test_headers_that_can_change_are_read_each_time():
    """Lists can, and whatever gives a name and a value when it is asked."""

    class Field:
        value = b"1"

        def __iter__(self) -> Iterator[bytes]:
            return iter((b"a", self.value))

    field, pair = Field(), [b"b", b"1"]
    assert check_head(200, [field, pair], WHERE).headers == [(b"a", b"1"), (b"b", b"1")]
    assert check_head(200, [field], WHERE).headers == [(b"a", b"1")]
    field.value = pair[1] = b"2"
    assert check_head(200, [field, pair], WHERE).headers == [(b"a", b"2"), (b"b", b"2")]
    assert check_head(200, [field], WHERE).headers == [(b"a", b"2")]


def test_a_list_that_changes_afterwards_changes_no_head():
    fields = [(b"a", b"1")]
    head = check_head(200, fields, WHERE)
    fields.append((b"b", b"2"))
    assert head.headers == [(b"a", b"1")]
    assert check_head(200, [(b"a", b"1")], WHERE).headers == [(b"a", b"1")]


def test_what_is_known_is_bounded():
    check_head(200, [(b"a", b"x" * KNOWN_SIZE)], WHERE)
    assert not response_head._known
    for number in range(3 * KNOWN_LIMIT):
        check_head(200, [(b"a", b"%d" % number)], WHERE)
        assert len(response_head._known) <= KNOWN_LIMIT


def test_a_name_or_value_that_is_bytes_in_its_own_way_is_not_remembered():
    class Caseless(bytes):
        def __eq__(self, other):
            return self.lower() == other.lower()

        __hash__ = bytes.__hash__

    for value in (b"Ab", b"aB"):
        assert check_head(200, [(b"etag", Caseless(value))], WHERE).headers == [(b"etag", value)]
    assert not response_head._known
