"""HTTP/2 bytes become events, and responses become HTTP/2 bytes (RFC 9113), over h2.

h2 knows compression, the states of streams, settings and flow control. It is a strict judge, though, for whom nearly
everything that a client does wrong is the end of the connection and of all its requests; and it keeps no count of what
a client makes a server do. So this codec stands in front of it, and h2 sees only what is right:

    receive_data -> `FrameReader`      whole frames of the right form
                 -> `_receive_frame`   what a stream's state does not allow; floods; what is only one stream's error
                 -> h2                 states, windows, settings
                 -> `read_request`     fields -> `Request`

What the client does wrong is answered with the error that the RFC names: a stream is reset, or the connection ended
by GOAWAY. The answer is among the bytes to send, and an event tells of it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import inf
from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes
from hpack import Decoder, HeaderTuple, HPACKError, OversizedHeaderListError

from trigi.config import Config
from trigi.exceptions import BadConnection, BadRequest

from .events import Data, Goodbye, Headers, Pong, Prioritized, Refused, Request, Reset, WindowOpened
from .http2_fields import Malformed, check_trailers, read_request
from .http2_frames import (
    ACK,
    END_HEADERS,
    END_STREAM,
    FRAME_SIZE,
    PADDED,
    PREFACE,
    ErrorCode,
    Frame,
    FrameReader,
    FrameType,
    Violation,
    encode_frame,
)
from .http2_priority import parse_priority

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

RATE_SECONDS: Final = 10.0
"""What `h2_reset_limit` and `h2_control_frame_limit` are counted over."""

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

SETTING: Final = struct.Struct(">HL")

_H2_CONFIGURATION: Final = H2Configuration(
    client_side=False,
    header_encoding=None,
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)
"""Fields are checked by `read_request`, and by `headers.check_headers`."""


@dataclass(slots=True)
class _Stream:
    """One open stream.

    Attributes:
        remaining: bytes of the request's body that its content-length still promises, `None` without one.
        received: bytes of it that came.
        unreturned: bytes of its window that were used and can be given back.
        request_complete: the client has ended its side.
        response_complete: so has the server.
    """

    remaining: int | None
    request_complete: bool
    received: int = 0
    unreturned: int = 0
    response_complete: bool = False


class HTTP2Codec:
    """The streams of one connection.

    Attributes:
        streams_ever: how many requests there were.
    """

    def __init__(self, config: Config) -> None:
        self.streams_ever = 0
        self._config = config
        self._reader = FrameReader(HEAD_SIZE_MARGIN * config.head_size_limit)
        self._output = bytearray()
        self._streams: dict[int, _Stream] = {}
        self._reset: dict[int, None] = {}  # by this side, the oldest first
        self._abandoned: set[int] = set()  # reset by the client, while applications work on
        self._highest = 0  # of the client's stream identifiers
        self._goaway_sent = False
        self._last_accepted = HIGHEST_STREAM
        self._unreturned = 0  # of the connection's window
        self._rates_began = -inf
        self._resets = self._control_frames = 0
        self._decoder = _Decoder(HEAD_SIZE_MARGIN * config.head_size_limit)
        self._window = int(config.h2_stream_window)
        self._h2 = _H2Connection(_H2_CONFIGURATION)
        self._h2.decoder = self._decoder
        self._h2.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = (
            self._window
        )  # once the client has said so
        self._h2.initiate_connection()
        self._h2.clear_outbound_data_buffer()  # its SETTINGS would say what holds now, and not what will
        self._h2.receive_data(PREFACE)
        settings = {
            SettingCodes.MAX_CONCURRENT_STREAMS: min(config.h2_max_concurrent_streams, HIGHEST_STREAM),
            SettingCodes.INITIAL_WINDOW_SIZE: self._window,
            SettingCodes.MAX_HEADER_LIST_SIZE: min(config.head_size_limit, 2**32 - 1),
            SettingCodes.ENABLE_CONNECT_PROTOCOL: 1,  # RFC 8441, 3
            NO_RFC7540_PRIORITIES: 1,
        }
        payload = b"".join([SETTING.pack(code, int(value)) for code, value in settings.items()])
        self._output += encode_frame(FrameType.SETTINGS, 0, 0, payload)
        self._h2.increment_flow_control_window(CONNECTION_WINDOW - 65_535)
        self._take_output()

    # What there is to know

    @property
    def established(self) -> bool:
        """Whether the client's preface has come, whole."""
        return self._reader.established

    @property
    def in_head(self) -> bool:
        """Whether the beginning of a request's head has come, and its end has not."""
        return self._reader.in_head

    @property
    def unsent(self) -> int:
        """Bytes that wait for `data_to_send()`."""
        return len(self._output)

    def is_open(self, stream_id: int) -> bool:
        """Whether either side of a stream may still send on it."""
        return stream_id in self._streams

    def is_response_complete(self, stream_id: int) -> bool:
        """Whether nothing more can be sent on a stream."""
        stream = self._streams.get(stream_id)
        return stream is None or stream.response_complete

    @property
    def connection_window(self) -> int:
        """Bytes of bodies that the client takes now, on all streams together."""
        return self._h2.outbound_flow_control_window

    def window(self, stream_id: int) -> int:
        """Bytes of a body that the client takes on a stream, if the connection's window has as many; may be < 0."""
        return self._h2.streams[stream_id].outbound_flow_control_window

    # Receiving

    def receive_data(self, data: bytes | bytearray, now: float) -> list[HTTP2Event]:
        """Take bytes from the client, and give what they mean, in order.

        After a `BadConnection`, which is the last event of all, nothing more is read.

        Args:
            data: may be empty.
            now: the time, in seconds since whenever.
        """
        events: list[HTTP2Event] = []
        self._reader.receive_data(data)
        if now >= self._rates_began + RATE_SECONDS:
            self._rates_began = now
            self._resets = self._control_frames = 0
        try:
            while (frame := self._reader.next_frame()) is not None:
                self._receive_frame(frame, events)
        except Violation as error:
            events.append(self._violated(error))
        except ProtocolError as error:  # h2's own judgement; of its GOAWAY nothing was taken yet
            self._h2.clear_outbound_data_buffer()
            events.append(self._violated(Violation(ErrorCode(error.error_code), str(error))))
        return events

    def _violated(self, error: Violation) -> BadConnection:
        self._goaway_sent = True
        self._output += _goaway(self._highest, error.code)
        return BadConnection(error.reason, error_code=error.code.name, limit=error.limit)

    def _receive_frame(self, frame: Frame, events: list[HTTP2Event]) -> None:
        match frame.type:
            case FrameType.DATA:
                self._receive_body(frame, events)
            case FrameType.HEADERS:
                self._receive_fields(frame, events)
            case FrameType.WINDOW_UPDATE:
                self._count_control_frame()
                self._receive_window_update(frame, events)
            case FrameType.RST_STREAM:
                self._receive_reset(frame, events)
            case FrameType.SETTINGS:
                self._count_control_frame()
                self._give_to_h2(FrameType.SETTINGS, frame.flags, 0, _known_settings(frame.payload))
                events.append(WindowOpened(0))
            case FrameType.PING:
                self._count_control_frame()
                if frame.flags & ACK:
                    events.append(Pong())
                else:
                    self._output += encode_frame(FrameType.PING, ACK, 0, frame.payload)
            case FrameType.GOAWAY:
                events.append(Goodbye())  # h2 would end all streams with it
            case FrameType.PRIORITY_UPDATE:
                self._count_control_frame()
                self._receive_priority_update(frame, events)
            case FrameType.PRIORITY:
                self._count_control_frame()
                self._check_priority(frame, events)
            case _:
                self._count_control_frame()  # and ignored (RFC 9113, 5.5)

    def _receive_fields(self, frame: Frame, events: list[HTTP2Event]) -> None:
        stream_id = frame.stream_id
        if not stream_id % 2:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "a stream identifier of the server's")
        if stream_id > self._highest:
            self._open_stream(frame, events)
            return
        stream = self._live_stream(stream_id)
        self._decoder.decode(frame.payload)  # in any case: it changes the state of the compression
        if stream is None:
            return
        if stream.request_complete:
            self._break_stream(stream_id, "a field section after the end", events, ErrorCode.STREAM_CLOSED)
            return
        try:
            check_trailers(
                self._decoder.fields, ends=bool(frame.flags & END_STREAM), missing=stream.remaining
            )
        except Malformed as error:
            self._break_stream(stream_id, str(error), events)
            return
        # To h2 it is the end of the body: trailers are ours.
        self._give_to_h2(FrameType.DATA, END_STREAM, stream_id, b"")
        self._request_ended(stream_id, stream)
        events.append(Data(b"", more=False, stream_id=stream_id))

    def _open_stream(self, frame: Frame, events: list[HTTP2Event]) -> None:
        stream_id = frame.stream_id
        self._highest = stream_id
        has_body = not frame.flags & END_STREAM
        if self._config.h2_max_concurrent_streams <= len(self._streams) + len(self._abandoned) or (
            stream_id > self._last_accepted
        ):
            self._decoder.decode(frame.payload)
            self._count_control_frame()
            self._remember_reset(stream_id)
            self._output += _rst_stream(stream_id, ErrorCode.REFUSED_STREAM)
            return
        self._give_to_h2(FrameType.HEADERS, frame.flags & END_STREAM | END_HEADERS, stream_id, frame.payload)
        stream = self._streams[stream_id] = _Stream(None, request_complete=not has_body)
        try:
            request, stream.remaining = read_request(
                self._decoder.fields, stream_id=stream_id, has_body=has_body, config=self._config
            )
        except Malformed as error:
            self._break_stream(stream_id, str(error), events)
        except BadRequest as error:
            events.append(Refused(stream_id, error))
        else:
            self.streams_ever += 1
            self._control_frames = max(self._control_frames - 1, 0)
            events.append(request)

    def _receive_body(self, frame: Frame, events: list[HTTP2Event]) -> None:
        stream_id, data = frame.stream_id, frame.payload
        ends = bool(frame.flags & END_STREAM)
        if not data and not ends:
            self._count_control_frame()
        stream = self._live_stream(stream_id)
        if stream is None or stream.request_complete:
            # h2 knows nothing of these bytes, and nothing of their return.
            if frame.size:
                self._output += _window_update(0, frame.size)
            if stream is not None:
                self._break_stream(stream_id, "data after the end", events, ErrorCode.STREAM_CLOSED)
            return
        padding = frame.size - len(data)
        if padding:  # it is under flow control, too (RFC 9113, 6.9.1)
            data = bytes([padding - 1]) + data + bytes(padding - 1)
        self._give_to_h2(FrameType.DATA, frame.flags & (END_STREAM | PADDED), stream_id, data)
        data = frame.payload
        self._return_connection_window(frame.size)
        self.return_window(stream_id, padding)
        stream.received += len(data)
        if stream.remaining is not None:
            stream.remaining -= len(data)
            if stream.remaining < 0 or (ends and stream.remaining):
                how = "more" if stream.remaining < 0 else "less"
                self._break_stream(stream_id, f"{how} body than the content-length said", events)
                return
        if ends:
            self._request_ended(stream_id, stream)
        if stream.received > self._config.body_size_limit:
            error = BadRequest("request body too large", status_hint=413, limit="body_size_limit")
            events.append(Refused(stream_id, error))
        elif data or ends:
            events.append(Data(data, more=not ends, stream_id=stream_id))

    def _receive_reset(self, frame: Frame, events: list[HTTP2Event]) -> None:
        stream_id = frame.stream_id
        if stream_id > self._highest:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        if stream_id not in self._streams:
            self._count_control_frame()
            return
        self._count_reset()
        self._forget(stream_id)
        self._abandoned.add(stream_id)
        events.append(Reset(stream_id))

    def _receive_window_update(self, frame: Frame, events: list[HTTP2Event]) -> None:
        stream_id = frame.stream_id
        increment = int.from_bytes(frame.payload) & 0x7FFFFFFF
        if stream_id > self._highest:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
        if not stream_id and not increment:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by nothing")
        if stream_id and stream_id not in self._streams:
            return
        if not increment:
            self._break_stream(stream_id, "WINDOW_UPDATE by nothing", events)
        elif stream_id and self.window(stream_id) + increment > HIGHEST_STREAM:
            self._break_stream(stream_id, "window too large", events, ErrorCode.FLOW_CONTROL_ERROR)
        else:
            self._give_to_h2(FrameType.WINDOW_UPDATE, 0, stream_id, frame.payload)
            events.append(WindowOpened(stream_id))

    def _receive_priority_update(self, frame: Frame, events: list[HTTP2Event]) -> None:
        """RFC 9218, 7.1. Of a stream that is not open, also of one that is not open yet, nothing is kept."""
        stream_id = int.from_bytes(frame.payload[:4]) & 0x7FFFFFFF
        if not stream_id % 2:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "PRIORITY_UPDATE of no stream of the client's")
        if stream_id in self._streams:
            events.append(Prioritized(stream_id, parse_priority(frame.payload[4:])))

    def _check_priority(self, frame: Frame, events: list[HTTP2Event]) -> None:
        """The priorities of RFC 7540 mean nothing any more, but their form is checked (RFC 9113, 6.3)."""
        stream_id = frame.stream_id
        if frame.size != 5:
            if stream_id not in self._streams:
                raise Violation(ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY of {frame.size} bytes")
            self._break_stream(stream_id, "PRIORITY of a wrong size", events, ErrorCode.FRAME_SIZE_ERROR)
        elif int.from_bytes(frame.payload[:4]) & 0x7FFFFFFF == stream_id:
            raise Violation(ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")

    def _live_stream(self, stream_id: int) -> _Stream | None:
        """An open stream; `None` for one that was reset from here, of which the client may not know yet."""
        stream = self._streams.get(stream_id)
        if stream is None and stream_id not in self._reset:
            if stream_id > self._highest:
                raise Violation(ErrorCode.PROTOCOL_ERROR, "a frame on an idle stream")
            raise Violation(ErrorCode.STREAM_CLOSED, "a frame on a closed stream")
        return stream

    def _break_stream(
        self,
        stream_id: int,
        reason: str,
        events: list[HTTP2Event],
        code: ErrorCode = ErrorCode.PROTOCOL_ERROR,
    ) -> None:
        """Answer a stream error (RFC 9113, 5.4.2). A client may make a server reset streams only so often, too."""
        self._count_reset()
        self.reset(stream_id, code)
        self._abandoned.add(stream_id)
        events.append(Reset(stream_id, BadRequest(f"HTTP/2 stream {stream_id}: {code.name}: {reason}")))

    def _count_reset(self) -> None:
        self._resets += 1
        if self._resets > self._config.h2_reset_limit:
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM, "too many streams reset", limit="h2_reset_limit")

    def _count_control_frame(self) -> None:
        self._control_frames += 1
        if self._control_frames > self._config.h2_control_frame_limit:
            raise Violation(
                ErrorCode.ENHANCE_YOUR_CALM, "too many control frames", limit="h2_control_frame_limit"
            )

    def _request_ended(self, stream_id: int, stream: _Stream) -> None:
        stream.request_complete = True
        if stream.response_complete:
            self._forget(stream_id)

    def release(self, stream_id: int) -> None:
        """The application of a stream has ended: a client could otherwise have any number of them at once."""
        self._abandoned.discard(stream_id)

    # Sending

    def data_to_send(self) -> bytes:
        """All bytes that are to be sent now."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def send_headers(self, stream_id: int, headers: Headers, *, end_stream: bool) -> None:
        """Send a field section: an interim response, a response's head, or trailers. The stream must be open."""
        self._h2.send_headers(stream_id, headers, end_stream)
        self._take_output()
        if end_stream:
            self._response_ended(stream_id)

    def send_data(self, stream_id: int, data: bytes | memoryview, *, end_stream: bool) -> None:
        """Send a piece of a body: at most `FRAME_SIZE` bytes, and as many as both windows have."""
        self._h2.send_data(stream_id, data, end_stream)
        self._take_output()
        # For each piece the client may open both windows, and ask how fast the connection is.
        self._control_frames = max(self._control_frames - 3, 0)
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
            self._h2.increment_flow_control_window(stream.unreturned, stream_id)
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
        if not self._goaway_sent:
            self._goaway_sent = True
            self._last_accepted = self._highest
            self._output += _goaway(self._highest, ErrorCode.NO_ERROR)

    # Both

    def _give_to_h2(self, type_: FrameType, flags: int, stream_id: int, payload: bytes) -> None:
        self._h2.receive_data(encode_frame(type_, flags, stream_id, payload))
        self._take_output()

    def _take_output(self) -> None:
        self._output += self._h2.data_to_send()

    def _return_connection_window(self, size: int) -> None:
        self._unreturned += size
        if self._unreturned * 2 >= CONNECTION_WINDOW:
            self._h2.increment_flow_control_window(self._unreturned)
            self._unreturned = 0
            self._take_output()

    def _response_ended(self, stream_id: int) -> None:
        stream = self._streams[stream_id]
        stream.response_complete = True
        if stream.request_complete:
            self._forget(stream_id)

    def _forget(self, stream_id: int) -> None:
        """h2 need not know any more either: frames on streams that are not open never reach it."""
        del self._streams[stream_id]
        del self._h2.streams[stream_id]

    def _remember_reset(self, stream_id: int) -> None:
        self._reset[stream_id] = None
        if len(self._reset) > RESETS_REMEMBERED:
            del self._reset[next(iter(self._reset))]


class _H2Connection(H2Connection):
    """h2 without its count of open streams: over its limit it would end the connection, and the count takes time."""

    @property
    def open_inbound_streams(self) -> int:
        """Never too many: the codec counts."""
        return 0


class _Decoder(Decoder):
    """Field sections, decompressed for the codec and hidden from h2, which would judge them for itself.

    Attributes:
        fields: of the section that was read last.
    """

    def __init__(self, size_limit: float) -> None:
        super().__init__()
        self.max_header_list_size = size_limit  # type: ignore[assignment] # it is only compared
        self.fields: Headers = []

    def decode(self, data: bytes, raw: bool = True) -> list[HeaderTuple]:  # noqa: ARG002 - h2 wants bytes always
        """Read a section, for h2: nothing is in it.

        Raises:
            Violation: it can't be decompressed, so that the state of the compression is lost.
        """
        try:
            self.fields = super().decode(data, raw=True)  # type: ignore[assignment] # raw: bytes
        except OversizedHeaderListError:
            raise Violation(
                ErrorCode.ENHANCE_YOUR_CALM, "a head far too large", limit="head_size_limit"
            ) from None
        except HPACKError as error:
            raise Violation(ErrorCode.COMPRESSION_ERROR, str(error)) from None
        return []


def _known_settings(payload: bytes) -> bytes:
    """The settings that matter, and no more memory for compression than there is here."""
    settings = []
    for code, value in SETTING.iter_unpack(payload):
        if code in HEEDED_SETTINGS:
            known = min(value, HEADER_TABLE_SIZE) if code == SettingCodes.HEADER_TABLE_SIZE else value
            settings.append(SETTING.pack(code, known))
    return b"".join(settings)


def _goaway(last_stream_id: int, code: ErrorCode) -> bytes:
    return encode_frame(FrameType.GOAWAY, 0, 0, struct.pack(">LL", last_stream_id, code))


def _rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    return encode_frame(FrameType.RST_STREAM, 0, stream_id, code.to_bytes(4))


def _window_update(stream_id: int, increment: int) -> bytes:
    return encode_frame(FrameType.WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4))
