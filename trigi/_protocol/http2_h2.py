"""h2, with what trigi decides for itself taken out of its hands.

h2 is a strict judge, for whom nearly everything that a client does wrong is the end of the connection and of all its
requests. The codec gives it only what is right, and three things it is not to know of: how many streams are open, what
is in a field section, and settings that mean nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable
from typing import Any, Final, Generic, TypeVar

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from hpack import Decoder, Encoder, HeaderTuple, HPACKError, OversizedHeaderListError
from hpack.table import HeaderTable

from .events import Headers
from .http2_frames import LARGEST_FRAME, PREFACE, ErrorCode, FrameType, Violation, encode_frame

__all__ = ["INITIAL_WINDOW", "Engine"]

INITIAL_WINDOW: Final = 65_535
"""Bytes that each side may send on a connection before it is told otherwise (RFC 9113, 6.9.2)."""

HEADER_TABLE_SIZE: Final = 4096
"""Bytes of the compression's memory for responses, however much the client would keep (RFC 7541, 4.2)."""

NO_RFC7540_PRIORITIES: Final = 9
"""RFC 9218, 2.1."""

HEEDED_SETTINGS: Final = frozenset(
    {
        SettingCodes.HEADER_TABLE_SIZE,
        SettingCodes.ENABLE_PUSH,
        SettingCodes.INITIAL_WINDOW_SIZE,
        SettingCodes.MAX_FRAME_SIZE,
        SettingCodes.ENABLE_CONNECT_PROTOCOL,
    }
)
"""What h2 is told of: it would keep any others, too, as many as a client makes up."""

HUFFMAN_SIZE: Final = 1024
"""Bytes of a value that is compressed by Huffman's code."""

KNOWN_SECTIONS: Final = 16
KNOWN_BLOCK_SIZE: Final = 256
"""How many field sections are remembered, and bytes that each was compressed to."""

UPDATES_LIMIT: Final = 16
"""Changes of the compression's memory in one field block: two can be of use (RFC 7541, 4.2), and each takes time."""

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

SETTING: Final = struct.Struct(">HL")

CONFIGURATION: Final = H2Configuration(
    client_side=False,
    header_encoding=None,
    validate_inbound_headers=False,  # read_request does
    normalize_inbound_headers=False,
    validate_outbound_headers=False,  # check_headers has
    normalize_outbound_headers=False,
)


class Engine:
    """The state of one connection: compression, streams, settings and windows.

    Everything that raises `Violation` ends the connection.

    Args:
        stream_limit: what the client is told of how many streams it may have open.
        stream_window: bytes that it may send on each.
        head_size: what it is told of how large a head may be.
        head_size_limit: what a head may have, decompressed, before it is not even decompressed.
    """

    def __init__(
        self, *, stream_limit: float, stream_window: int, head_size: float, head_size_limit: float
    ) -> None:
        self._decoder = _Decoder(head_size_limit)
        self._h2 = _H2Connection(CONFIGURATION)
        self._h2.decoder = self._decoder
        self._encoder = self._h2.encoder = _Encoder()
        self._h2.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = (
            stream_window  # once the client has said so
        )
        self._h2.initiate_connection()
        self._h2.clear_outbound_data_buffer()  # its SETTINGS would say what holds now, and not what will
        self._h2.receive_data(PREFACE)
        self._h2.max_inbound_frame_size = LARGEST_FRAME  # FrameReader has checked
        settings = {
            SettingCodes.MAX_CONCURRENT_STREAMS: min(stream_limit, 2**32 - 1),
            SettingCodes.INITIAL_WINDOW_SIZE: stream_window,
            SettingCodes.MAX_HEADER_LIST_SIZE: min(head_size, 2**32 - 1),
            SettingCodes.ENABLE_CONNECT_PROTOCOL: 1,  # RFC 8441, 3
            NO_RFC7540_PRIORITIES: 1,
        }
        payload = b"".join([SETTING.pack(code, int(value)) for code, value in settings.items()])
        self.preface = encode_frame(FrameType.SETTINGS, 0, 0, payload)

    # Receiving

    def open_stream(self, stream_id: int, flags: int, block: bytes) -> Headers:
        """The fields of the field section that opens a stream."""
        self._receive(FrameType.HEADERS, flags, stream_id, block)
        return self._decoder.fields

    def read_fields(self, block: bytes) -> Headers:
        """The fields of any other: every one changes the state of the compression, be it used or not."""
        self._decoder.decode(block)
        return self._decoder.fields

    def receive_body(self, stream_id: int, flags: int, payload: bytes) -> None:
        """A DATA frame on an open stream."""
        self._receive(FrameType.DATA, flags, stream_id, payload)

    def receive_settings(self, flags: int, payload: bytes) -> None:
        """A SETTINGS frame: what matters of it, and no more memory for the compression than there is here."""
        settings = []
        for code, value in SETTING.iter_unpack(payload):
            if code == NO_RFC7540_PRIORITIES and value > 1:
                raise Violation(ErrorCode.PROTOCOL_ERROR, "SETTINGS_NO_RFC7540_PRIORITIES is 0 or 1")
            if code in HEEDED_SETTINGS:
                known = min(value, HEADER_TABLE_SIZE) if code == SettingCodes.HEADER_TABLE_SIZE else value
                settings.append(SETTING.pack(code, known))
        self._receive(FrameType.SETTINGS, flags, 0, b"".join(settings))
        self._encoder.forget_changes()

    def receive_window_update(self, stream_id: int, increment: int) -> None:
        """A WINDOW_UPDATE frame on the connection, or an open stream."""
        self._receive(FrameType.WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4))

    def _receive(self, type_: FrameType, flags: int, stream_id: int, payload: bytes) -> None:
        try:
            self._h2.receive_data(encode_frame(type_, flags, stream_id, payload))
        except ProtocolError as error:
            self._h2.clear_outbound_data_buffer()  # GOAWAY is the codec's to send
            raise Violation(ErrorCode(error.error_code), str(error)) from error

    # Sending

    def data_to_send(self) -> bytes:
        """What came of the last call."""
        return self._h2.data_to_send()

    def send_headers(self, stream_id: int, headers: Headers, *, end_stream: bool) -> None:
        """A field section."""
        self._h2.send_headers(stream_id, headers, end_stream)

    def send_data(self, stream_id: int, data: bytes | memoryview, *, end_stream: bool) -> None:
        """A DATA frame."""
        self._h2.send_data(stream_id, data, end_stream)

    def open_window(self, increment: int, stream_id: int | None = None) -> None:
        """Let the client send more, on a stream or in all."""
        self._h2.increment_flow_control_window(increment, stream_id)

    def forget(self, stream_id: int) -> None:
        """A stream has ended: nothing about it must come here any more."""
        del self._h2.streams[stream_id]

    @property
    def connection_window(self) -> int:
        """Bytes of bodies that the client takes now, on all streams together."""
        return self._h2.outbound_flow_control_window

    def window(self, stream_id: int) -> int:
        """Bytes of a body that the client takes on one stream."""
        return self._h2.streams[stream_id].outbound_flow_control_window


class _H2Connection(H2Connection):
    """h2 without its count of open streams: over its limit it would end the connection, and the count takes time."""

    @property
    def open_inbound_streams(self) -> int:
        """Never too many: the codec counts."""
        return 0


class _Known(Generic[K, V]):
    """What came of field sections, for those that are the same again while the compression's memory stays as it is.

    Most of a connection's responses differ in nothing but their date, and many requests in nothing at all.

    Args:
        table: the memory.
    """

    def __init__(self, table: HeaderTable) -> None:
        self._table = table
        self._sections: dict[K, V] = {}
        self._newest: object = None  # an entry of it, which nobody else is
        self._size = 0, table.maxsize

    def get(self, section: K) -> V | None:
        """What came of it; `None` if that is not known."""
        return self._sections.get(section)

    def learn(self, section: K, result: V, block: bytes) -> None:
        """Keep what came of a section, unless that has changed the memory: then forget all there is.

        What is compressed to little is little itself, or in the memory. A block that changes the memory's size is more
        than its section.
        """
        entries: Any = self._table.dynamic_entries  # compiled, a tuple whose type is known has no identity
        newest = entries[0] if entries else None
        size = len(entries), self._table.maxsize
        if newest is not self._newest or size != self._size:
            self._newest, self._size = newest, size
            self._sections.clear()
        elif (
            0 < len(block) <= KNOWN_BLOCK_SIZE
            and not _updates(block)
            and len(self._sections) < KNOWN_SECTIONS
        ):
            self._sections[section] = result


class _Encoder(Encoder):
    """Field sections, compressed in a time that a client can't make long."""

    def __init__(self) -> None:
        super().__init__()
        self._known = _Known[tuple[tuple[bytes, bytes], ...], bytes](self.header_table)

    def encode(self, headers: Any, huffman: bool = True) -> bytes:
        """Huffman's code only where values are short: for long ones it takes a time quadratic in their length."""
        section = tuple(headers)
        block = None if self.header_table.resized else self._known.get(section)
        if block is None:
            short = huffman and all(len(value) <= HUFFMAN_SIZE for _, value in section)
            block = super().encode(section, huffman=short)
            self._known.learn(section, block, block)
        return block

    def forget_changes(self) -> None:
        """Of many changes of the memory's size, only the smallest and the last need to be told (RFC 7541, 4.2)."""
        changes = self.table_size_changes
        if changes:  # hpack would not tell of them when the last was none
            self.header_table.resized = True
        if len(changes) > 2:
            self.table_size_changes = [min(changes), changes[-1]]


class _Decoder(Decoder):
    """Field sections, decompressed for the codec and hidden from h2, which would judge them for itself.

    Attributes:
        fields: of the section that was read last.
    """

    def __init__(self, size_limit: float) -> None:
        super().__init__()
        self.max_header_list_size = size_limit  # type: ignore[assignment] # it is only compared
        self.fields: Headers = []
        self._known = _Known[bytes, Headers](self.header_table)

    def decode(self, data: bytes, raw: bool = True) -> list[HeaderTuple]:  # noqa: ARG002 - h2 wants bytes always
        """Read a section, for h2: nothing is in it.

        Raises:
            Violation: it can't be decompressed, so that the state of the compression is lost.
        """
        known = self._known.get(data)
        if known is not None:
            self.fields = known
            return []
        if _updates(data) > UPDATES_LIMIT:
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, "a field block of nothing but table size updates")
        try:
            self.fields = super().decode(data, raw=True)  # type: ignore[assignment] # raw: bytes
            self._known.learn(data, self.fields, data)
        except OversizedHeaderListError:
            raise Violation(
                ErrorCode.ENHANCE_YOUR_CALM, "a head far too large", limit="head_size_limit"
            ) from None
        except HPACKError as error:
            raise Violation(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        return []


def _updates(block: bytes) -> int:
    """How many dynamic table size updates a block begins with, one more than allowed at most (RFC 7541, 6.3)."""
    count = position = 0
    while count <= UPDATES_LIMIT and position < len(block) and block[position] & 0xE0 == 0x20:
        count += 1
        if block[position] & 0x1F == 0x1F:  # the integer goes on (RFC 7541, 5.1)
            position += 1
            while position < len(block) and block[position] & 0x80:
                position += 1
        position += 1
    return count
