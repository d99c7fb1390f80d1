"""HTTP/2 bytes become events, and responses become HTTP/2 bytes (RFC 9113), over h2.

    next_event   -> `FrameReader`      whole frames of the right form
                 -> `_receive_frame`   what a stream's state does not allow; floods; what is only one stream's error
                 -> `Engine`           h2: compression, states, windows, settings
                 -> `read_request`     fields -> `Request`

What the client does wrong is answered with the error that the RFC names: a stream is reset, or the connection ended
by GOAWAY. The answer is among the bytes to send, and an event tells of it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from trigi.config import Config
from trigi.exceptions import BadConnection, BadRequest

from .events import (
    NEED_DATA,
    Data,
    Goodbye,
    Headers,
    Pause,
    Pong,
    Prioritized,
    Refused,
    Request,
    Reset,
    WindowOpened,
)
from .http2_fields import Malformed, check_trailers, read_request
from .http2_frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    FRAME_SIZE,
    PADDED,
    ErrorCode,
    Frame,
    FrameReader,
    FrameType,
    Violation,
    encode_frame,
)
from .http2_h2 import INITIAL_WINDOW, Engine
from .http2_priority import parse_priority
from .http2_rates import Rates

__all__ = ["FRAME_SIZE", "ErrorCode", "HTTP2Codec", "HTTP2Event"]

HTTP2Event = Request | Data | Reset | Refused | WindowOpened | Prioritized | Pong | Goodbye | BadConnection

CONNECTION_WINDOW: Final = 1024 * 1024
"""Bytes of body that may be on their way on all streams together. It is given back on receipt: streams are bounded by
their own windows, and none can hold the others."""

HIGHEST_STREAM: Final = 2**31 - 1

HEAD_SIZE_MARGIN: Final = 4
"""How many times too large a head may be to be answered with 431: a larger one costs the connection."""

RESETS_REMEMBERED: Final = 1000
"""Streams that were reset from here, on which the client may send for a while without knowing it."""


@dataclass(slots=True)
class _Stream:
    """One open stream.

    Attributes:
        remaining: bytes of the request's body that its content-length still promises, `None` without one.
        received: bytes of it that came.
        unreturned: bytes of its window that were used and can be given back.
        request_complete: the client has ended its side.
        response_complete: so has the server.
        is_tunnel: it carries a WebSocket.
        is_refused: its body is too large; no more of it is told.
    """

    remaining: int | None
    request_complete: bool
    received: int = 0
    unreturned: int = 0
    response_complete: bool = False
    is_tunnel: bool = False
    is_refused: bool = False


class HTTP2Codec:
    """The streams of one connection.

    Attributes:
        streams_ever: how many requests there were.
        abandoned: streams that are closed and count as open, for their applications still run: a client could otherwise
            have any number of them.
    """

    def __init__(self, config: Config) -> None:
        self.streams_ever = 0
        self.abandoned = 0
        self._config = config
        self._reader = FrameReader(HEAD_SIZE_MARGIN * config.head_size_limit)
        self._output = bytearray()
        self._streams: dict[int, _Stream] = {}
        self._reset: dict[int, None] = {}  # by this side, the oldest first
        self._highest = 0  # of the client's stream identifiers
        self._goodbye_said = False
        self._broken = False
        self._last_accepted = HIGHEST_STREAM
        self._unreturned = 0  # of the connection's window
        self._unseen = 0  # the same, of bytes that h2 does not know of
        self._rates = Rates(config)
        self._window = int(config.h2_stream_window)
        self._engine = Engine(
            stream_limit=config.h2_max_concurrent_streams,
            stream_window=self._window,
            head_size=config.head_size_limit,
            head_size_limit=HEAD_SIZE_MARGIN * config.head_size_limit,
        )
        self._output += self._engine.preface
        self._engine.open_window(CONNECTION_WINDOW - INITIAL_WINDOW)
        self._take_output()

    # What there is to know

    @property
    def established(self) -> bool:
        """Whether the client's preface has come, whole."""
        return self._reader.established

    @property
    def open_head(self) -> int | None:
        """A number for the head, or the trailers, whose beginning has come and the end has not; `None` for none."""
        return self._reader.open_block

    @property
    def unsent(self) -> int:
        """Bytes that wait for `data_to_send()`."""
        return len(self._output)

    def is_open(self, stream_id: int) -> bool:
        """Whether either side of a stream may still send on it."""
        return stream_id in self._streams

    def is_request_complete(self, stream_id: int) -> bool:
        """Whether the client sends nothing more on a stream."""
        stream = self._streams.get(stream_id)
        return stream is None or stream.request_complete

    def is_response_complete(self, stream_id: int) -> bool:
        """Whether nothing more can be sent on a stream."""
        stream = self._streams.get(stream_id)
        return stream is None or stream.response_complete

    @property
    def connection_window(self) -> int:
        """Bytes of bodies that the client takes now, on all streams together."""
        return self._engine.connection_window

    def window(self, stream_id: int) -> int:
        """Bytes of a body that the client takes on a stream, if the connection's window has as many; may be < 0."""
        return self._engine.window(stream_id)

    # Receiving

    def receive_data(self, data: bytes | bytearray, now: float) -> None:
        """Take bytes from the client. Nothing is done with them before `next_event()`.

        Args:
            data: may be empty.
            now: the time, in seconds since whenever.
        """
        self._reader.receive_data(data)
        self._rates.advance(now)

    def next_event(self) -> HTTP2Event | Pause:
        """The next event, `NEED_DATA` when there is none. After `BadConnection` nothing more is read.

        Frames are read one by one: what an event leads to is done before the next frame changes the state again.
        """
        if self._broken:
            return NEED_DATA
        try:
            while (frame := self._reader.next_frame()) is not None:
                event = self._receive_frame(frame)
                if event is not None:
                    return event
        except Violation as error:
            self._broken = self._goodbye_said = True
            self._streams.clear()  # h2 would not have them any more
            self._output += _goaway(min(self._highest, self._last_accepted), error.code)
            return BadConnection(error.reason, error_code=error.code.name, limit=error.limit)
        return NEED_DATA

    def _receive_frame(self, frame: Frame) -> HTTP2Event | None:
        match frame.type:
            case FrameType.DATA:
                return self._receive_body(frame)
            case FrameType.HEADERS:
                return self._receive_fields(frame)
            case FrameType.RST_STREAM:
                return self._receive_reset(frame)
        self._rates.count_control_frame()
        match frame.type:
            case FrameType.GOAWAY:
                return Goodbye()  # h2 would end all streams with it
            case FrameType.WINDOW_UPDATE:
                return self._receive_window_update(frame)
            case FrameType.SETTINGS:
                self._engine.receive_settings(frame.flags, frame.payload)
                self._take_output()
                return WindowOpened(0)
            case FrameType.PING if frame.flags & ACK:
                return Pong()
            case FrameType.PING:
                self._output += encode_frame(FrameType.PING, ACK, 0, frame.payload)
            case FrameType.PRIORITY_UPDATE:
                return self._receive_priority_update(frame)
            case FrameType.PRIORITY:
                return self._check_priority(frame)
        return None  # other frames are ignored (RFC 9113, 5.5)

    def _receive_fields(self, frame: Frame) -> HTTP2Event | None:
        stream_id = frame.stream_id
        if not stream_id % 2:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "a stream identifier of the server's")
        if stream_id > self._highest:
            return self._open_stream(frame)
        stream = self._live_stream(stream_id)
        fields = self._engine.read_fields(frame.payload)
        if stream is None:
            self._rates.count_control_frame()
            return None
        if stream.request_complete:
            return self._break_stream(stream_id, "a field section after the end", ErrorCode.STREAM_CLOSED)
        if stream.is_tunnel:  # RFC 9113, 8.5
            return self._break_stream(stream_id, "a field section in a tunnel")
        try:
            check_trailers(fields, ends=bool(frame.flags & END_STREAM), missing=stream.remaining)
        except Malformed as error:
            return self._break_stream(stream_id, str(error))
        # To h2 it is the end of the body: trailers are ours.
        self._engine.receive_body(stream_id, END_STREAM, b"")
        self._request_ended(stream_id, stream)
        return Data(b"", more=False, stream_id=stream_id)

    def _open_stream(self, frame: Frame) -> HTTP2Event | None:
        stream_id = frame.stream_id
        self._highest = stream_id
        has_body = not frame.flags & END_STREAM
        is_full = len(self._streams) + self.abandoned >= self._config.h2_max_concurrent_streams
        if is_full or stream_id > self._last_accepted:
            self._engine.read_fields(frame.payload)
            self._rates.count_control_frame()
            self._remember_reset(stream_id)
            self._output += _rst_stream(stream_id, ErrorCode.REFUSED_STREAM)
            return None
        flags = frame.flags & END_STREAM | END_HEADERS
        fields = self._engine.open_stream(stream_id, flags, frame.payload)
        stream = self._streams[stream_id] = _Stream(None, request_complete=not has_body)
        try:
            request, stream.remaining = read_request(
                fields, stream_id=stream_id, has_body=has_body, config=self._config
            )
        except Malformed as error:
            return self._break_stream(stream_id, str(error))
        except BadRequest as refusal:
            return Refused(stream_id, refusal)
        stream.is_tunnel = request.is_upgrade
        self.streams_ever += 1
        self._rates.earn(1)
        return request

    def _receive_body(self, frame: Frame) -> HTTP2Event | None:
        stream_id, data = frame.stream_id, frame.payload
        ends = bool(frame.flags & END_STREAM)
        if not data and not ends:
            self._rates.count_control_frame()
        stream = self._live_stream(stream_id)
        if stream is None or stream.request_complete:
            self._return_unseen(frame.size)
            if stream is None:
                self._rates.count_control_frame()
                return None
            return self._break_stream(stream_id, "data after the end", ErrorCode.STREAM_CLOSED)
        padding = frame.size - len(data)
        if padding:  # h2 must count it: it is under flow control, too (RFC 9113, 6.9.1)
            data = bytes([padding - 1]) + data + bytes(padding - 1)
        self._engine.receive_body(stream_id, frame.flags & (END_STREAM | PADDED), data)
        data = frame.payload
        self._return_connection_window(frame.size)
        if not ends:
            self.return_window(stream_id, padding)
        stream.received += len(data)
        if stream.remaining is not None:
            stream.remaining -= len(data)
            if stream.remaining < 0 or (ends and stream.remaining):
                how = "more" if stream.remaining < 0 else "less"
                return self._break_stream(stream_id, f"{how} body than the content-length said")
        if ends:
            self._request_ended(stream_id, stream)
        if stream.received > self._config.body_size_limit and not (
            stream.is_tunnel or stream.response_complete
        ):
            if not stream.is_refused:
                stream.is_refused = True
                error = BadRequest("request body too large", status_hint=413, limit="body_size_limit")
                return Refused(stream_id, error)
            data = b""
        return Data(data, more=not ends, stream_id=stream_id) if data or ends else None

    def _receive_reset(self, frame: Frame) -> HTTP2Event | None:
        stream_id = frame.stream_id
        if self._is_idle(stream_id):
            raise Violation(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        if stream_id not in self._streams:
            self._rates.count_control_frame()
            return None
        self._rates.count_reset()
        self._forget(stream_id)
        return Reset(stream_id)

    def _receive_window_update(self, frame: Frame) -> HTTP2Event | None:
        stream_id = frame.stream_id
        increment = int.from_bytes(frame.payload) & 0x7FFFFFFF
        if self._is_idle(stream_id):
            raise Violation(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
        if not stream_id and not increment:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
        if stream_id and stream_id not in self._streams:
            return None
        if not increment:
            return self._break_stream(stream_id, "WINDOW_UPDATE by nothing")
        if stream_id and self.window(stream_id) + increment > HIGHEST_STREAM:
            return self._break_stream(stream_id, "window too large", ErrorCode.FLOW_CONTROL_ERROR)
        self._engine.receive_window_update(stream_id, increment)
        return WindowOpened(stream_id)

    def _receive_priority_update(self, frame: Frame) -> HTTP2Event | None:
        """RFC 9218, 7.1. Of a stream that is not open, also of one that is not open yet, nothing is kept."""
        stream_id = int.from_bytes(frame.payload[:4]) & 0x7FFFFFFF
        if not stream_id % 2:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "PRIORITY_UPDATE of no stream of the client's")
        if stream_id not in self._streams:
            return None
        return Prioritized(stream_id, parse_priority(frame.payload[4:]))

    def _check_priority(self, frame: Frame) -> HTTP2Event | None:
        """The priorities of RFC 7540 mean nothing any more, but their form is checked (RFC 9113, 6.3)."""
        stream_id = frame.stream_id
        if frame.size != 5:
            if stream_id not in self._streams:
                raise Violation(ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {frame.size} bytes")
            return self._break_stream(stream_id, "PRIORITY of a wrong size", ErrorCode.FRAME_SIZE_ERROR)
        if int.from_bytes(frame.payload[:4]) & 0x7FFFFFFF == stream_id:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")
        return None

    def _live_stream(self, stream_id: int) -> _Stream | None:
        """An open stream; `None` for one that was reset from here, of which the client may not know yet."""
        stream = self._streams.get(stream_id)
        if stream is None and stream_id not in self._reset:
            if self._is_idle(stream_id):
                raise Violation(ErrorCode.PROTOCOL_ERROR, "a frame on an idle stream")
            raise Violation(ErrorCode.STREAM_CLOSED, "a frame on a closed stream")
        return stream

    def _is_idle(self, stream_id: int) -> bool:
        """Whether nobody has opened a stream; those with even identifiers are the server's, and it opens none."""
        return stream_id > self._highest or (stream_id > 0 and stream_id % 2 == 0)

    def _break_stream(self, stream_id: int, reason: str, code: ErrorCode = ErrorCode.PROTOCOL_ERROR) -> Reset:
        """Answer a stream error (RFC 9113, 5.4.2). A client may make a server reset streams only so often, too."""
        self._rates.count_reset()
        self.reset(stream_id, code)
        return Reset(stream_id, BadRequest(f"HTTP/2 stream {stream_id}: {code.name}: {reason}"))

    def _request_ended(self, stream_id: int, stream: _Stream) -> None:
        stream.request_complete = True
        if stream.response_complete:
            self._forget(stream_id)

    # Sending

    def data_to_send(self) -> bytes:
        """All bytes that are to be sent now."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def send_headers(self, stream_id: int, headers: Headers, *, end_stream: bool) -> None:
        """Send a field section: an interim response, a response's head, or trailers. The stream must be open."""
        self._engine.send_headers(stream_id, headers, end_stream=end_stream)
        self._take_output()
        if end_stream:
            self._response_ended(stream_id)

    def send_data(self, stream_id: int, data: bytes | memoryview, *, end_stream: bool) -> None:
        """Send a piece of a body: at most `FRAME_SIZE` bytes, and as many as both windows have."""
        self._engine.send_data(stream_id, data, end_stream=end_stream)
        self._take_output()
        # For each piece the client may open both windows, and ask how fast the connection is.
        self._rates.earn(3)
        if end_stream:
            self._response_ended(stream_id)

    def answer(self, stream_id: int, status: int, headers: Headers) -> None:
        """Answer a request in the server's own name, without a body, and read no more of it."""
        fields = [(b":status", b"%d" % status), *headers, (b"content-length", b"0")]
        self.send_headers(stream_id, fields, end_stream=True)
        if stream_id in self._streams:
            self.reset(stream_id, ErrorCode.NO_ERROR)  # RFC 9113, 8.1

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """End an open stream before its time (RFC 9113, 5.4.2)."""
        self._forget(stream_id)
        self._remember_reset(stream_id)
        self._output += _rst_stream(stream_id, code)

    def return_window(self, stream_id: int, size: int) -> None:
        """Let the client send as many more bytes on a stream; told to it when half of the window can be."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.request_complete:
            return
        stream.unreturned += size
        if stream.unreturned * 2 >= self._window:
            self._engine.open_window(stream.unreturned, stream_id)
            stream.unreturned = 0
            self._take_output()

    def begin_goodbye(self) -> None:
        """Say that the connection will end; streams that are opened before the client knows are still served.

        The client's answer to the ping comes as a `Pong` (RFC 9113, 6.8).
        """
        self._output += _goaway(HIGHEST_STREAM, ErrorCode.NO_ERROR)
        self._output += encode_frame(FrameType.PING, 0, 0, b"goodbye.")

    def say_goodbye(self) -> None:
        """Say which stream was the last: later ones are refused, and can be tried again elsewhere."""
        if not self._goodbye_said:
            self._goodbye_said = True
            self._last_accepted = self._highest
            self._output += _goaway(self._highest, ErrorCode.NO_ERROR)

    # Both

    def _take_output(self) -> None:
        self._output += self._engine.data_to_send()

    def _return_connection_window(self, size: int) -> None:
        self._unreturned += size
        if self._unreturned * 4 >= CONNECTION_WINDOW:
            self._engine.open_window(self._unreturned)
            self._unreturned = 0
            self._take_output()

    def _return_unseen(self, size: int) -> None:
        """The same for bytes on streams that h2 has forgotten: it has not counted them, nor will their return."""
        self._unseen += size
        if self._unseen * 4 >= CONNECTION_WINDOW:
            self._output += _window_update(0, self._unseen)
            self._unseen = 0

    def _response_ended(self, stream_id: int) -> None:
        stream = self._streams[stream_id]
        stream.response_complete = True
        if stream.request_complete:
            self._forget(stream_id)

    def _forget(self, stream_id: int) -> None:
        del self._streams[stream_id]
        self._engine.forget(stream_id)

    def _remember_reset(self, stream_id: int) -> None:
        self._reset[stream_id] = None
        if len(self._reset) > RESETS_REMEMBERED:
            del self._reset[next(iter(self._reset))]


def _goaway(last_stream_id: int, code: ErrorCode) -> bytes:
    return encode_frame(FrameType.GOAWAY, 0, 0, struct.pack(">LL", last_stream_id, code))


def _rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    return encode_frame(FrameType.RST_STREAM, 0, stream_id, code.to_bytes(4))


def _window_update(stream_id: int, increment: int) -> bytes:
    return encode_frame(FrameType.WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4))
