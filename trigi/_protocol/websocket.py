"""An open WebSocket: bytes become messages, and messages bytes (RFC 6455, sections 5 to 8; RFC 7692).

A frame that is a whole message, as nearly all are, `websocket_frames` reads. The others wsproto parses: headers,
masks, UTF-8, close codes. What it leaves to its user is here: messages made whole, and a bound for everything
that a peer can make grow. The bounds sit in `FrameGuard`, an extension of wsproto's decoder, since that is where
sizes are known before memory is taken: by the header that announces a frame, and piece by piece while a
compressed one is inflated. Writing needs no help: a server's frame is a short header and the payload as it is,
for only clients mask (RFC 6455, 5.1).
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import CloseConnection
from wsproto.events import Message as ReceivedMessage
from wsproto.events import Ping as ReceivedPing
from wsproto.events import Pong as ReceivedPong
from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

from trigi.exceptions import InvalidMessage

from .websocket_frames import FrameReader, Message
from .websocket_handshake import DeflateParameters

__all__ = ["Closed", "Message", "Pong", "WSEvent", "WebSocketCodec"]

COMPRESS_FROM = 64
"""Messages of fewer bytes are sent as they are (RFC 7692, 6): compressing costs several times the rest of
sending one, and saves little. Never 0: zlib flushes nothing for an empty message, not even its end."""

SERVER_WINDOW_BITS = 12
"""Compressing looks back 4 KiB at most. A client need not know that the window is smaller than agreed."""

MEMORY_LEVEL = 5
"""Of zlib's 1 to 9. With `SERVER_WINDOW_BITS`: 32 KiB a connection; zlib's own defaults take 256 KiB."""

INFLATE_SLICE = 4096
"""Bytes that zlib is given at once. Where a DEFLATE stream ends inside a message it copies the bytes that are
left, and in a long piece made of tiny streams that would cost the square of its length."""

COUNTABLE = 2**62
"""Bytes up to which zlib can be told what there is room for: there is no message that has more."""

BAD_GATEWAY = 1014
"""A code of the IANA registry that wsproto takes for an invalid one."""

END_OF_MESSAGE = b"\x00\x00\xff\xff"
"""What the sender of a compressed message leaves out at its end (RFC 7692, 7.2.1)."""

_NO_RESERVED_BITS = RsvBits(rsv1=False, rsv2=False, rsv3=False)
_RSV1 = RsvBits(rsv1=True, rsv2=False, rsv3=False)

# The bits beside the opcode in a frame's first byte (RFC 6455, 5.2; RFC 7692, 6). The server never fragments.
_FIN = 0x80
_COMPRESSED = 0x40

# wsproto's own words for these would depend on where the reads cut the bytes.
_REASONS: Mapping[int, str] = {1007: "invalid payload data", 1009: "message too big"}


@dataclass(slots=True)
class Pong:
    """The answer to a ping, or a sign of life that nobody asked for (RFC 6455, 5.5.3)."""

    payload: bytes


@dataclass(slots=True)
class Closed:
    """The last event of a WebSocket (RFC 6455, 7.1.5 and 7.1.6).

    Attributes:
        code: of the client's close frame, or 1005 if it had none; 1006 if the bytes ended without a close
            frame; 1002, 1007 or 1009 if the client broke the protocol or a limit.
        reason: of the client's close frame, or what the client did wrong.
    """

    code: int
    reason: str


WSEvent = Message | Pong | Closed


class FrameGuard(Extension):
    """Bounds what frames may add up to, and inflates them (RFC 7692, 7.2.2).

    wsproto calls `frame_inbound_header` again for a header that came in pieces. So what that changes must be
    the same when it is changed twice, and counting is left to `frame_inbound_complete`.

    Attributes:
        reason: what was wrong with a frame, if there is more to say than its close code does.
        is_bad_gateway: whether the client closed with 1014, which wsproto is shown as 1011.
        message_size_limit: bytes of one message, as far as zlib can count them.
        missing: bytes that a frame's header has announced and that have not come, if they are not compressed.
    """

    name = "permessage-deflate"

    def __init__(
        self, deflate: DeflateParameters | None, message_size_limit: float, frame_count_limit: float
    ) -> None:
        self.reason = ""
        self.is_bad_gateway = False
        self.missing = 0
        self.message_size_limit = int(min(message_size_limit, COUNTABLE))
        self._frame_count_limit = frame_count_limit
        self._may_compress = deflate is not None
        self._keep_window = deflate is not None and not deflate.client_no_context_takeover
        self._inflater: Any = None  # zlib's types have no public names
        # The frame that is being read.
        self._opcode = Opcode.CONTINUATION
        self._announced = 0
        # The message that is being read: frames before this one, bytes (in whole frames, or inflated so far).
        self._frames = 0
        self._size = 0
        self._is_compressed = False

    @property
    def in_message(self) -> bool:
        """Whether the next frame may only be a control frame or continue a message (RFC 6455, 5.4)."""
        return self._frames > 0

    def enabled(self) -> bool:
        """Always, also without compression."""
        return True

    def offer(self) -> bool:
        """Nothing: `Handshake` negotiates."""
        return False

    def frame_inbound_header(
        self, _: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        """Check the frames' order (RFC 6455, 5.4), their number, and the size of what is not compressed."""
        self._opcode = opcode
        if opcode.iscontrol():
            return _NO_RESERVED_BITS
        if (opcode is Opcode.CONTINUATION) != (self._frames > 0):
            self.reason = "message inside a message" if self._frames else "continuation of nothing"
            return CloseReason.PROTOCOL_ERROR
        if self._frames >= self._frame_count_limit:
            self.reason = "message in too many frames"
            return CloseReason.MESSAGE_TOO_BIG
        if self._frames == 0:
            self._is_compressed = rsv.rsv1
        self._announced = 0 if self._is_compressed else payload_length
        if self._size + self._announced > self.message_size_limit:
            return CloseReason.MESSAGE_TOO_BIG
        self.missing = self._announced
        # RSV1 says for a whole message, in its first frame, that it is compressed (RFC 7692, 6).
        return _RSV1 if self._may_compress and self._frames == 0 else _NO_RESERVED_BITS

    def frame_inbound_payload_data(self, _: FrameDecoder | FrameProtocol, data: bytes) -> bytes | CloseReason:
        """A piece of a frame, inflated if its message is compressed. Control frames come whole."""
        if not self._opcode.iscontrol():
            self.missing = max(self.missing - len(data), 0)
        if self._opcode is Opcode.CLOSE and data[:2] == BAD_GATEWAY.to_bytes(2, "big"):
            self.is_bad_gateway = True
            return CloseReason.INTERNAL_ERROR.to_bytes(2, "big") + data[2:]
        return self._inflate(data) if self._is_compressed and not self._opcode.iscontrol() else data

    def frame_inbound_complete(
        self, _: FrameDecoder | FrameProtocol, fin: bool
    ) -> bytes | CloseReason | None:
        """Count the frame, and inflate the rest at the end of a message."""
        if self._opcode.iscontrol():
            return None
        if not fin:
            self._frames += 1
            self._size += self._announced
            return None
        rest = self._inflate(END_OF_MESSAGE) if self._is_compressed else None
        if not self._keep_window:
            self._inflater = None
        self._frames = self._size = 0
        return rest

    def _inflate(self, data: bytes) -> bytes | CloseReason:
        """Never to more than one byte beyond the limit, however much there would be."""
        inflated = []
        for start in range(0, len(data), INFLATE_SLICE):
            rest = data[start : start + INFLATE_SLICE]
            while rest:
                if self._inflater is None:
                    # The largest window reads what was written with any smaller one.
                    self._inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
                try:
                    room = self.message_size_limit - self._size
                    inflated.append(self._inflater.decompress(rest, room + 1))
                except zlib.error:
                    return CloseReason.INVALID_FRAME_PAYLOAD_DATA
                self._size += len(inflated[-1])
                if self._size > self.message_size_limit:
                    return CloseReason.MESSAGE_TOO_BIG
                rest = self._inflater.unused_data
                # The sender may mark a block as the last (7.2.3.4): what follows is a new stream.
                if self._inflater.eof:
                    self._inflater = None
        return b"".join(inflated)


class WebSocketCodec:
    """One WebSocket as the server sees it, from the first byte after the handshake.

    Pings and close frames are answered here. The answers wait in `data_to_send()`, and the methods that send
    take along what waits, so that bytes written in the order of the calls are in the order of the protocol.
    After a close frame nothing is sent (RFC 6455, 5.5.1): those methods then give no bytes of their own.

    Args:
        deflate: what `Handshake.accept` has agreed on.
        message_size_limit: bytes of one message, inflated, text as UTF-8; `inf` for none. Past it: 1009.
        frame_count_limit: frames of one message, empty ones too; `inf` for none. Past it: 1009.

    Attributes:
        close_sent: whether a close frame has been given out or waits in `data_to_send()`.
        closed: the last event, once it has been given.
    """

    def __init__(
        self, deflate: DeflateParameters | None, *, message_size_limit: float, frame_count_limit: float
    ) -> None:
        self.close_sent = False
        self.closed: Closed | None = None
        self._deflate = deflate
        self._compressor: Any = None  # zlib's types have no public names
        self._guard = FrameGuard(deflate, message_size_limit, frame_count_limit)
        self._connection = Connection(ConnectionType.SERVER, [self._guard])
        self._reader = FrameReader(self._guard.message_size_limit)
        self._replies: list[bytes] = []
        # A message that is incomplete, text as UTF-8. A list of its pieces, each perhaps of one byte, could take
        # many times its size.
        self._partial: io.BytesIO | None = None

    def receive_data(self, data: bytes) -> list[WSEvent]:
        """The events that these bytes complete, in order; none after `Closed`. Never raises."""
        events: list[WSEvent] = []
        if self.closed is None:
            self._reader.feed(data)
        while self.closed is None:
            # RFC 6455, 5.4. After a close frame messages are dropped: none is kept first until it is complete.
            taken = self._reader.take(may_read=not (self._guard.in_message or self.close_sent))
            if taken is None:
                break
            if isinstance(taken, Message):
                events.append(taken)
            else:
                events += self._parse(taken)
        return events

    def receive_message(self, data: bytes) -> str | bytes | None:
        """What the message says that these bytes are, if they are one and nothing else; `None` if not.

        Then nothing has been received: they are for `receive_data`.
        """
        if self._guard.in_message or self.close_sent or self.closed is not None:
            return None
        message = self._reader.take_alone(data)
        return None if message is None else message.data

    def _parse(self, data: bytes) -> list[WSEvent]:
        """The events of bytes that are wsproto's: all of one frame."""
        events: list[WSEvent] = []
        self._connection.receive_data(data)
        for event in self._connection.events():
            if isinstance(event, ReceivedMessage):
                if message := self._assemble(event):
                    events.append(message)
            elif isinstance(event, ReceivedPing):
                self._reply(Opcode.PONG, event.payload)
            elif isinstance(event, ReceivedPong):
                events.append(Pong(bytes(event.payload)))
            elif isinstance(event, CloseConnection):  # pragma: no branch - there is no other event
                events.append(self._end(event))
        return events

    @property
    def missing(self) -> int:
        """Bytes that are known to come before another frame can begin, as far as they are none to inflate."""
        return self._reader.missing or self._guard.missing

    def receive_eof(self) -> list[WSEvent]:
        """The client sends no more: `Closed` with 1006, unless `Closed` came before (RFC 6455, 7.1.5)."""
        if self.closed is not None:
            return []
        self._let_go()
        self.closed = Closed(1006, "")
        return [self.closed]

    def _assemble(self, event: ReceivedMessage[Any]) -> Message | None:
        """Add a piece to its message: wsproto gives as many for a frame as it took reads."""
        if self.close_sent:
            return None
        data: str | bytes = event.data
        if self._partial is None:
            if event.message_finished:
                return Message(data if isinstance(data, str) else bytes(data))
            self._partial = io.BytesIO()
        self._partial.write(data.encode() if isinstance(data, str) else data)
        if not event.message_finished:
            return None
        whole = self._partial.getvalue()
        self._partial = None
        return Message(whole.decode() if isinstance(data, str) else whole)

    def _end(self, event: CloseConnection) -> Closed:
        """The client closed or broke the protocol: to wsproto the same event, in different states."""
        code, reason = int(event.code), event.reason or ""
        if self._connection.state is ConnectionState.REMOTE_CLOSING:
            code = BAD_GATEWAY if self._guard.is_bad_gateway else code
            payload = b"" if code == CloseReason.NO_STATUS_RCVD else code.to_bytes(2, "big")
        else:
            reason = self._guard.reason or _REASONS.get(code, reason)
            payload = _close_payload(code, reason)
        self._reply(Opcode.CLOSE, payload)
        self.close_sent = True
        self._let_go()
        self.closed = Closed(code, reason)
        return self.closed

    def _let_go(self) -> None:
        """What is there of a message can't be completed any more."""
        self._partial = None
        self._reader.clear()

    def _reply(self, opcode: Opcode, payload: bytes) -> None:
        if not self.close_sent:
            self._replies.append(_frame(_FIN | opcode, payload))

    def data_to_send(self) -> bytes:
        """The answers that wait since the last call of this or of a method that sends; often none."""
        data = b"".join(self._replies)
        self._replies.clear()
        return data

    def send_message(self, data: str | bytes) -> bytes:
        """The bytes that send a message: text for `str`, binary for `bytes` (RFC 6455, 5.6).

        Raises:
            InvalidMessage: the text has surrogates, which are not in UTF-8. The WebSocket stays as it was.
        """
        if isinstance(data, str):
            first_byte, payload = _FIN | Opcode.TEXT, _encode(data, "websocket.send: text")
        else:
            first_byte, payload = _FIN | Opcode.BINARY, data
        if self._deflate is not None and len(payload) >= COMPRESS_FROM and self._can_send():
            return self._send(first_byte | _COMPRESSED, self._compress(payload, self._deflate))
        return self._send(first_byte, payload)

    def ping(self, payload: bytes = b"") -> bytes:
        """The bytes that send a ping (RFC 6455, 5.5.2).

        Raises:
            ValueError: the payload has more than 125 bytes.
        """
        if len(payload) > 125:
            raise ValueError("the payload of a ping has at most 125 bytes")
        return self._send(_FIN | Opcode.PING, payload)

    def close(self, code: int = 1000, reason: str = "") -> bytes:
        """The bytes that close the WebSocket (RFC 6455, 5.5.1). Messages that still come are dropped.

        Args:
            code: 1000 to 1003, 1007 to 1014 or 3000 to 4999 (RFC 6455, 7.4).
            reason: cut to 123 bytes of UTF-8, at the end of a character.

        Raises:
            InvalidMessage: the code is another, or the reason has surrogates.
        """
        if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
            raise InvalidMessage(f"websocket.close: {code} is not a code that may be sent")
        data = self._send(_FIN | Opcode.CLOSE, _close_payload(code, reason))
        self.close_sent = self.close_sent or self.closed is None
        self._partial = None
        self.receive_data(b"")  # what is kept of a frame need not be any more
        return data

    def _can_send(self) -> bool:
        return not self.close_sent and self.closed is None

    def _send(self, first_byte: int, payload: bytes) -> bytes:
        if not self._can_send():
            return self.data_to_send()
        frame = _frame(first_byte, payload)
        return self.data_to_send() + frame if self._replies else frame

    def _compress(self, payload: bytes, deflate: DeflateParameters) -> bytes:
        """RFC 7692, 7.2.1."""
        compressor = self._compressor
        if compressor is None:
            window = min(SERVER_WINDOW_BITS, deflate.server_max_window_bits)
            compressor = zlib.compressobj(wbits=-window, memLevel=MEMORY_LEVEL)
            if not deflate.server_no_context_takeover:
                self._compressor = compressor
        compressed: bytes = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
        return compressed[: -len(END_OF_MESSAGE)]


def _encode(text: str, where: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidMessage(f"{where}: {error.reason} at character {error.start}") from None


def _close_payload(code: int, reason: str) -> bytes:
    """A control frame has at most 125 bytes (RFC 6455, 5.5), and two of them are the code."""
    cut = _encode(reason, "websocket.close: reason")[:123].decode("utf-8", "ignore")
    return code.to_bytes(2, "big") + cut.encode()


def _frame(first_byte: int, payload: bytes) -> bytes:
    """A frame without a mask, with the shortest form of its length (RFC 6455, 5.2)."""
    size = len(payload)
    if size <= 125:
        return bytes((first_byte, size)) + payload
    if size <= 0xFFFF:
        return struct.pack("!BBH", first_byte, 126, size) + payload
    return struct.pack("!BBQ", first_byte, 127, size) + payload
