"""Responses become HTTP/1.1 bytes, for every codec (RFC 9112).

Names and values are taken as valid: `headers.check_headers` has seen them. What framing a response gets is decided
by its exchange; here it is only written.
"""

from __future__ import annotations

from http import HTTPStatus

from .events import Headers

__all__ = [
    "LAST_CHUNK",
    "encode_chunk",
    "encode_error",
    "encode_fields",
    "encode_head",
    "encode_trailers",
    "reason_phrase",
]

LAST_CHUNK = b"0\r\n\r\n"

# RFC 9110 has renamed these; Python has the new names from 3.13 on.
_PHRASES = {status.value: status.phrase for status in HTTPStatus} | {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}
_STATUS_LINES = {status: f"HTTP/1.1 {status} {phrase}".encode() for status, phrase in _PHRASES.items()}


def reason_phrase(status: int) -> str:
    """The reason phrase of a status, empty for one that is not registered."""
    return _PHRASES.get(status, "")


def encode_head(status: int, headers: Headers, lines: bytes = b"") -> bytes:
    """Status line, fields and the empty line. The version is the server's, whatever the client's (RFC 9110, 2.5).

    Args:
        status: of the response.
        headers: its fields.
        lines: more of them, by `encode_fields`.
    """
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status
    return b"\r\n".join([line, *[b": ".join(field) for field in headers], lines + b"\r\n"])


def encode_fields(headers: Headers) -> bytes:
    """A line for each field."""
    return b"".join([b"%b: %b\r\n" % field for field in headers])


def encode_chunk(data: bytes) -> bytes:
    """One chunk. Not for empty data, which would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def encode_trailers(trailers: Headers) -> bytes:
    """The last chunk with its trailer section."""
    return b"0\r\n%b\r\n" % encode_fields(trailers)


def encode_error(status: int, headers: Headers) -> bytes:
    """A whole response to a request that can't be read; after it the connection is closed."""
    body = f"{status} {reason_phrase(status)}\n".encode()
    fields = [
        *headers,
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        (b"connection", b"close"),
    ]
    return encode_head(status, fields) + body
