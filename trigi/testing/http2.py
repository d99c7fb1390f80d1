"""An HTTP/2 client for tests, on any trio stream: it sends whatever frames it is asked to, and reads strictly.

    async with open_connection(application) as stream:
        client = HTTP2Client(stream)
        await client.connect()
        response = await client.fetch("/")
        assert response.status == 200

It has no task of its own: what the server sends is read, and SETTINGS, PING and DATA are answered, while the test waits
in a method that receives. So a client that is left alone is a peer that has fallen silent. Several tasks may wait at
once, each for another stream.

What is sent is checked by nobody: a test must be able to send what no decent client would. What is received is held
against RFC 9113: a server that sends what it must not, or more than the windows it was given, meets a `Violation`.
"""

from __future__ import annotations

import re
import struct
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import hpack
import trio

from ._http2_frames import (
    FRAME_TYPES,
    LARGEST_WINDOW,
    PREFACE,
    SETTING_RANGES,
    ErrorCode,
    Flag,
    Frame,
    FrameType,
    SettingCode,
    Violation,
    check,
    check_fields,
    check_shape,
    encode_frame,
    encode_settings,
    error_code,
    pad,
    unpad,
)

__all__ = [
    "PREFACE",
    "ConnectionClosed",
    "ErrorCode",
    "Flag",
    "Frame",
    "FrameType",
    "HTTP2Client",
    "HTTP2Response",
    "SettingCode",
    "StreamReset",
    "Violation",
    "encode_frame",
]

Headers = list[tuple[bytes, bytes]]
Fields = Iterable[tuple[bytes, bytes]]

READ_SIZE = 64 * 1024
HEADER_LIST_LIMIT = 1024 * 1024
"""Bytes of a response's fields: tests go further than clients do."""


@dataclass(slots=True)
class HTTP2Response:
    """A response.

    Attributes:
        status: from 100 on; an interim response's (below 200) is only in `informational`.
        headers: without `:status`, in the order sent.
        body: what `HTTP2Client.response` has read of it.
        trailers: there are none before the body is read to its end.
        informational: the interim responses that came before it.
    """

    status: int
    headers: Headers
    body: bytes = b""
    trailers: Headers = field(default_factory=list)
    informational: list[HTTP2Response] = field(default_factory=list)

    def header(self, name: bytes) -> bytes | None:
        """The value of a header, `None` if there is none; of several, all, joined by commas."""
        values = [value for each, value in self.headers if each == name]
        return b", ".join(values) if values else None


class StreamReset(Exception):
    """The server reset a stream before the end of its response.

    Attributes:
        stream_id: which one.
        code: an `ErrorCode`, or another number.
    """

    def __init__(self, stream_id: int, code: int) -> None:
        self.stream_id = stream_id
        self.code = code
        super().__init__(f"the server reset stream {stream_id}: {code!r}")


class ConnectionClosed(EOFError):
    """The server closed the connection, or said in a GOAWAY that it will not answer.

    Attributes:
        code: of the GOAWAY: an `ErrorCode`, or another number; `None` if there was none.
        last_stream_id: of the GOAWAY: streams above it were not processed.
        debug_data: of the GOAWAY.
    """

    def __init__(
        self, code: int | None = None, last_stream_id: int | None = None, debug_data: bytes = b""
    ) -> None:
        self.code = code
        self.last_stream_id = last_stream_id
        self.debug_data = debug_data
        said = "" if code is None else f": {code!r}, last stream {last_stream_id}, {debug_data!r}"
        super().__init__(f"the server closed the connection{said}")


@dataclass(slots=True)
class _Stream:
    """What came on a stream that the client has used, and what may go each way."""

    send_window: int
    receive_window: int
    method: bytes = b""
    informational: list[HTTP2Response] = field(default_factory=list)
    response: HTTP2Response | None = None
    body: bytearray = field(default_factory=bytearray)  # that nobody has taken
    size: int = 0  # bytes of the body that came
    ended: bool = False
    reset: int | None = None  # by the server
    left: bool = False  # reset by the client: what was on its way is not looked at


class HTTP2Client:
    """An HTTP/2 client on one connection.

    Args:
        stream: the connection. It is the client's from then on, but may also be used directly.
        answers: whether SETTINGS and PING are acknowledged when they are read, as RFC 9113 demands.
        auto_window: whether the windows are given back as DATA is read.

    Attributes:
        settings: the server's, by `SettingCode`; what it did not say is not there.
        goaway: the last one that was read.
        window: bytes of DATA that may still be sent, all streams together.
    """

    def __init__(self, stream: trio.abc.Stream, *, answers: bool = True, auto_window: bool = True) -> None:
        self.stream = stream
        self.answers = answers
        self.auto_window = auto_window
        self.settings: dict[int, int] = {}
        self.goaway: ConnectionClosed | None = None
        self.window = 65535
        self._begun = False  # the server's SETTINGS have come
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder(HEADER_LIST_LIMIT)
        self._streams: dict[int, _Stream] = {}
        self._next_stream_id = 1
        self._pings: deque[bytes] = deque()  # sent, their answers not read
        self._unacknowledged: deque[Mapping[int, int]] = deque()  # settings, as they were sent
        self._receive_window = 65535
        self._initial_receive_window = 65535
        self._frame_size_limit = 16384
        self._received = bytearray()
        self._block: tuple[Frame, bytearray] | None = None  # a HEADERS whose END_HEADERS has not come
        self._end: ConnectionClosed | None = None
        self._reading = False
        self._read_one = trio.lowlevel.ParkingLot()
        self._writing = trio.Lock()

    # Connections

    async def connect(self, settings: Mapping[int, int] | None = None, *, wait: bool = True) -> None:
        """Send the preface and SETTINGS.

        Args:
            settings: by `SettingCode`.
            wait: whether to wait until the server has sent its own and acknowledged these.
        """
        payload = encode_settings(settings or {})
        self._count_sent(FrameType.SETTINGS, 0, 0, payload)
        await self.send(PREFACE + encode_frame(FrameType.SETTINGS, 0, 0, payload))
        while wait and (self._unacknowledged or not self._begun):
            await self._read()

    async def wait_closed(self) -> ConnectionClosed:
        """Read until the server has closed the connection: what it said last. Responses are dropped."""
        while self._end is None:
            with suppress(ConnectionClosed):
                await self._read()
        return self._end

    async def aclose(self) -> None:
        """Close the connection without a word."""
        await self.stream.aclose()

    # Requests

    async def fetch(
        self, path: str = "/", *, method: str = "GET", headers: Fields = (), body: bytes | None = None
    ) -> HTTP2Response:
        """Send a request and read the response: `request()`, `send_body()`, `response()`."""
        stream_id = await self.request(method, path, headers, end_stream=body is None)
        if body is not None:
            await self.send_body(stream_id, body)
        return await self.response(stream_id)

    async def request(
        self,
        method: str = "GET",
        path: str = "/",
        headers: Fields = (),
        *,
        authority: str = "localhost",
        scheme: str = "http",
        protocol: str | None = None,
        end_stream: bool = True,
        stream_id: int | None = None,
    ) -> int:
        """Send a request's HEADERS, and wait for nothing.

        Args:
            method: sent as it is.
            path: sent as it is.
            headers: sent as they are, in this order, after the pseudo-headers.
            authority: sent as it is.
            scheme: sent as it is.
            protocol: of an extended CONNECT (RFC 8441).
            end_stream: whether the request has no body.
            stream_id: without it, the next one.

        Returns:
            The stream's identifier.
        """
        pseudo = {":method": method, ":protocol": protocol, ":scheme": scheme, ":authority": authority}
        fields = [
            (name.encode(), value.encode())
            for name, value in (pseudo | {":path": path}).items()
            if value is not None
        ]
        stream_id = self._next_stream_id if stream_id is None else stream_id
        await self.send_headers(stream_id, [*fields, *headers], end_stream=end_stream)
        return stream_id

    async def send_body(self, stream_id: int, data: bytes, *, end_stream: bool = True) -> None:
        """Send DATA as the windows and the frame size of the server allow, reading while there is no room.

        It ends early if the server has answered and asks for no more (RFC 9113, 8.1).

        Raises:
            StreamReset: the server reset the stream before.
            ConnectionClosed: the server closed the connection before.
        """
        stream = self._streams[stream_id]
        rest = memoryview(data)
        while rest or end_stream:
            room = min(self.window, stream.send_window, self._setting(SettingCode.MAX_FRAME_SIZE))
            if stream.ended and stream.reset == ErrorCode.NO_ERROR:
                return
            if rest and room <= 0:
                self._check_goes_on(stream_id)
                await self._read()
                continue
            piece, rest = rest[:room], rest[max(room, 0) :]
            await self.send_data(stream_id, bytes(piece), end_stream=end_stream and not rest)
            if not rest:
                return

    # Responses

    async def response(self, stream_id: int) -> HTTP2Response:
        """The response on a stream, whole; the rest of it if `data()` was called before.

        Raises:
            StreamReset: the server reset the stream before its end.
            ConnectionClosed: the server closed the connection before, or will not answer.
            Violation: the server broke the protocol.
        """
        response = await self.head(stream_id)
        pieces = [response.body]
        try:
            while data := await self.data(stream_id):
                pieces.append(data)
        finally:
            response.body = b"".join(pieces)
        return response

    async def head(self, stream_id: int) -> HTTP2Response:
        """The response on a stream, its body unread.

        Raises: as `response`.
        """
        stream = self._streams[stream_id]
        while stream.response is None:
            self._check_goes_on(stream_id)
            await self._read()
        return stream.response

    async def informational(self, stream_id: int, number: int = 1) -> HTTP2Response:
        """The interim response on a stream, the first or that of the `number`.

        Raises: as `response`.
        """
        stream = self._streams[stream_id]
        while len(stream.informational) < number:
            self._check_goes_on(stream_id)
            await self._read()
        return stream.informational[number - 1]

    async def data(self, stream_id: int) -> bytes:
        """The next piece of the body on a stream: as much as has come, `b""` at its end.

        Raises: as `response`.
        """
        stream = self._streams[stream_id]
        while not stream.body and not stream.ended:
            self._check_goes_on(stream_id)
            await self._read()
        data = bytes(stream.body)
        stream.body.clear()
        return data

    async def wait_reset(self, stream_id: int) -> StreamReset:
        """Read until the server resets a stream, whatever comes before.

        Raises:
            ConnectionClosed: the server closed the connection before.
            Violation: the server broke the protocol.
        """
        stream = self._streams[stream_id]
        while stream.reset is None:
            await self._read()
        return StreamReset(stream_id, stream.reset)

    async def frame(self, *types: int) -> Frame:
        """The frame that comes next, of these types or of any. It is also taken for all that it means.

        Raises:
            ConnectionClosed: there is none, and none will come.
            Violation: the server broke the protocol.
            trio.BusyResourceError: another task reads.
        """
        while True:
            if self._reading:
                raise trio.BusyResourceError("another task reads")
            frame = await self._read()
            if frame is not None and (not types or frame.type in types):
                return frame

    def send_window(self, stream_id: int) -> int:
        """Bytes of DATA that may still be sent on a stream, were it not for the connection's `window`."""
        return self._streams[stream_id].send_window

    # Frames

    async def send(self, data: bytes) -> None:
        """Send these bytes."""
        async with self._writing:  # a test may send while another task answers what it reads
            await self.stream.send_all(data)

    async def send_frame(
        self,
        frame_type: int,
        flags: int = 0,
        stream_id: int = 0,
        payload: bytes = b"",
    ) -> None:
        """Send a frame as it is given: see `encode_frame`."""
        self._count_sent(frame_type, flags, stream_id, payload)
        await self.send(encode_frame(frame_type, flags, stream_id, payload))

    async def send_headers(
        self,
        stream_id: int,
        fields: Fields | bytes,
        *,
        end_stream: bool = False,
        end_headers: bool = True,
        padding: int | None = None,
    ) -> None:
        """Send HEADERS, and CONTINUATION for what does not fit.

        Args:
            stream_id: the stream.
            fields: sent as they are; or a block that is encoded already.
            end_stream: whether END_STREAM is set.
            end_headers: whether END_HEADERS is set on the last frame.
            padding: bytes of padding; without it the frame is not padded.
        """
        block = fields if isinstance(fields, bytes) else self.encode(fields)
        size = self._setting(SettingCode.MAX_FRAME_SIZE) - (0 if padding is None else 1 + padding)
        pieces = [block[start : start + size] for start in range(0, len(block), size)] or [b""]
        last = len(pieces) - 1
        for number, piece in enumerate(pieces):
            flags = Flag.END_HEADERS if end_headers and number == last else 0
            if number:
                await self.send_frame(FrameType.CONTINUATION, flags, stream_id, piece)
                continue
            if end_stream:
                flags |= Flag.END_STREAM
            if padding is not None:
                flags |= Flag.PADDED
                piece = pad(piece, padding)  # noqa: PLW2901
            await self.send_frame(FrameType.HEADERS, flags, stream_id, piece)
        if not isinstance(fields, bytes):
            stream = self._stream(stream_id)
            stream.method = stream.method or dict(fields).get(b":method", b"")

    def encode(self, fields: Fields) -> bytes:
        """A field block: what HEADERS and CONTINUATION carry. It must be sent, for it changes the state of HPACK."""
        return self._encoder.encode(fields)

    async def send_data(
        self, stream_id: int, data: bytes = b"", *, end_stream: bool = False, padding: int | None = None
    ) -> None:
        """Send one DATA frame, whatever the windows are.

        Args:
            stream_id: the stream.
            data: the payload.
            end_stream: whether END_STREAM is set.
            padding: bytes of padding; without it the frame is not padded.
        """
        flags = (Flag.END_STREAM if end_stream else 0) | (0 if padding is None else Flag.PADDED)
        payload = data if padding is None else pad(data, padding)
        await self.send_frame(FrameType.DATA, flags, stream_id, payload)

    async def send_settings(self, settings: Mapping[int, int] | Iterable[tuple[int, int]]) -> None:
        """Send SETTINGS: in this order, from a list also the same one twice."""
        await self.send_frame(FrameType.SETTINGS, 0, 0, encode_settings(settings))

    async def reset(self, stream_id: int, code: int = ErrorCode.CANCEL) -> None:
        """Reset a stream."""
        await self.send_frame(FrameType.RST_STREAM, 0, stream_id, struct.pack(">L", code))

    async def ping(self, payload: bytes = b"trigi...") -> None:
        """Send a PING, and wait until it is answered."""
        await self.send_frame(FrameType.PING, 0, 0, payload)
        while self._pings:
            await self._read()

    async def window_update(self, stream_id: int, size: int) -> None:
        """Give the server this many bytes more, on a stream or, for 0, on the connection."""
        await self.send_frame(FrameType.WINDOW_UPDATE, 0, stream_id, struct.pack(">L", size))

    async def send_goaway(
        self, code: int = ErrorCode.NO_ERROR, last_stream_id: int = 0, debug_data: bytes = b""
    ) -> None:
        """Send a GOAWAY."""
        await self.send_frame(FrameType.GOAWAY, 0, 0, struct.pack(">LL", last_stream_id, code) + debug_data)

    # What was sent

    def _setting(self, code: SettingCode) -> int:
        """The server's value, or the one it begins with."""
        initial = {SettingCode.INITIAL_WINDOW_SIZE: 65535, SettingCode.MAX_FRAME_SIZE: 16384}
        return self.settings.get(code, initial[code])

    def _stream(self, stream_id: int) -> _Stream:
        if stream_id not in self._streams:
            window = self._setting(SettingCode.INITIAL_WINDOW_SIZE)
            self._streams[stream_id] = _Stream(window, self._initial_receive_window)
        return self._streams[stream_id]

    def _count_sent(self, frame_type: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Know what the server may send, and what else may be sent to it."""
        stream = self._stream(stream_id) if stream_id and frame_type in FRAME_TYPES else None
        if frame_type == FrameType.HEADERS and stream_id % 2:
            self._next_stream_id = max(self._next_stream_id, stream_id + 2)
        match frame_type:
            case FrameType.DATA:
                self.window -= len(payload)
                if stream is not None:
                    stream.send_window -= len(payload)
            case FrameType.RST_STREAM if stream is not None:
                stream.left = True
            case FrameType.SETTINGS if not flags & Flag.ACK:
                pairs = payload[: len(payload) // 6 * 6]
                self._unacknowledged.append(dict(struct.iter_unpack(">HL", pairs)))
            case FrameType.PING if not flags & Flag.ACK:
                self._pings.append(payload)
            case FrameType.WINDOW_UPDATE if len(payload) == 4:
                size = struct.unpack(">L", payload)[0] & LARGEST_WINDOW
                if stream is None:
                    self._receive_window += size
                else:
                    stream.receive_window += size

    # What is received

    def _check_goes_on(self, stream_id: int) -> None:
        """Raise if a response on the stream will not come to its end."""
        stream = self._streams[stream_id]
        if stream.reset is not None:
            raise StreamReset(stream_id, stream.reset)
        said = self._end or self.goaway
        if said is not None and (self._end or said.code or stream_id > (said.last_stream_id or 0)):
            raise said

    async def _read(self) -> Frame | None:
        """Read one frame, and take it for what it means; or wait until another task has, and return `None`."""
        if self._reading:
            await self._read_one.park()
            return None
        self._reading = True
        try:
            frame = await self._next_frame()
            await self._take(frame)
        finally:
            self._reading = False
            self._read_one.unpark_all()
        return frame

    async def _next_frame(self) -> Frame:
        while True:
            if len(self._received) >= 9:
                size = int.from_bytes(self._received[:3], "big")
                check(size <= self._frame_size_limit, f"a frame of {size} bytes")
                if len(self._received) >= 9 + size:
                    frame_type, flags, stream_id = struct.unpack(">BBL", self._received[3:9])
                    frame = Frame(frame_type, flags, stream_id, bytes(self._received[9 : 9 + size]))
                    del self._received[: 9 + size]
                    return frame
            data = b""
            with suppress(trio.BrokenResourceError):
                data = bytes(await self.stream.receive_some(READ_SIZE))
            if not data:
                self._end = self.goaway or ConnectionClosed()
                raise self._end
            self._received += data

    async def _take(self, frame: Frame) -> None:
        check(self._begun or frame.type == FrameType.SETTINGS, f"first came {frame}, not SETTINGS")
        in_block = self._block is not None
        check(in_block == (frame.type == FrameType.CONTINUATION), f"{frame}, where another one must come")
        check_shape(frame)
        stream = self._streams.get(frame.stream_id)
        if frame.type in FRAME_TYPES and frame.stream_id:
            check(stream is not None, f"{frame} on a stream that is idle")
        match frame.type:
            case FrameType.DATA:
                assert stream is not None
                await self._take_data(stream, frame)
            case FrameType.HEADERS | FrameType.CONTINUATION:
                assert stream is not None
                self._take_block(stream, frame)
            case FrameType.RST_STREAM:
                assert stream is not None
                check(stream.reset is None, f"{frame} on a stream that was reset")
                stream.reset = error_code(struct.unpack(">L", frame.payload)[0])
            case FrameType.SETTINGS if frame.flags & Flag.ACK:
                check(self._unacknowledged, "an ACK of SETTINGS that were not sent")
                self._apply_own(self._unacknowledged.popleft())
            case FrameType.SETTINGS:
                self._apply(dict(struct.iter_unpack(">HL", frame.payload)))
                await self._answer(FrameType.SETTINGS, Flag.ACK)
            case FrameType.PING if frame.flags & Flag.ACK:
                check(frame.payload in self._pings, f"{frame} answers no PING")
                self._pings.remove(frame.payload)
            case FrameType.PING:
                await self._answer(FrameType.PING, Flag.ACK, 0, frame.payload)
            case FrameType.GOAWAY:
                self._take_goaway(frame)
            case FrameType.WINDOW_UPDATE:
                self._take_window_update(stream, frame)

    async def _answer(
        self, frame_type: FrameType, flags: int = 0, stream_id: int = 0, payload: bytes = b""
    ) -> None:
        """Send what answers a frame, unless nobody is there to read it, or the test has sent the end."""
        if self.answers or frame_type == FrameType.WINDOW_UPDATE:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self.send(encode_frame(frame_type, flags, stream_id, payload))

    async def _take_data(self, stream: _Stream, frame: Frame) -> None:
        size = len(frame.payload)
        self._receive_window -= size
        stream.receive_window -= size
        check(self._receive_window >= 0, f"{-self._receive_window} bytes more than the connection's window")
        if not stream.left:
            check(
                size == 0 or stream.receive_window >= 0,
                f"{size} bytes of DATA, more than the stream's window",
            )
            check(stream.response is not None, "DATA before HEADERS")
            self._check_open(stream, frame)
            data = unpad(frame)
            stream.body += data
            stream.size += len(data)
            if frame.flags & Flag.END_STREAM:
                self._end_stream(stream)
        if size and self.auto_window:
            for stream_id in [0] if stream.ended or stream.left else [0, frame.stream_id]:
                payload = struct.pack(">L", size)
                self._count_sent(FrameType.WINDOW_UPDATE, 0, stream_id, payload)
                await self._answer(FrameType.WINDOW_UPDATE, 0, stream_id, payload)

    def _take_block(self, stream: _Stream, frame: Frame) -> None:
        first, block = self._block or (frame, bytearray())
        if first is frame:
            if not stream.left:
                self._check_open(stream, frame)
            block += unpad(frame)[5 if frame.flags & Flag.PRIORITY else 0 :]
        else:
            check(first.stream_id == frame.stream_id, f"{frame} goes on with another stream's")
            block += frame.payload
        self._block = (first, block)
        if not frame.flags & Flag.END_HEADERS:
            return
        self._block = None
        try:
            fields = [
                (bytes(name), bytes(value)) for name, value in self._decoder.decode(bytes(block), raw=True)
            ]
        except hpack.HPACKError as error:
            raise Violation(f"{first} cannot be decoded: {error}") from error
        if not stream.left:
            self._take_fields(stream, fields, end_stream=bool(first.flags & Flag.END_STREAM))

    def _take_fields(self, stream: _Stream, fields: Headers, *, end_stream: bool) -> None:
        if stream.response is not None:
            check(end_stream, "trailers without END_STREAM")
            check_fields(fields)
            stream.response.trailers = fields
        else:
            check(fields and fields[0][0] == b":status", f"{fields} do not begin with :status")
            (_, status), *headers = fields
            check(re.fullmatch(rb"[1-9][0-9][0-9]", status) and status != b"101", f"the status {status!r}")
            check_fields(headers)
            response = HTTP2Response(int(status), headers)
            if response.status < 200:
                check(not end_stream, "END_STREAM on an interim response")
                stream.informational.append(response)
                return
            response.informational = stream.informational
            stream.response = response
        if end_stream:
            self._end_stream(stream)

    def _end_stream(self, stream: _Stream) -> None:
        stream.ended = True
        response = stream.response
        assert response is not None
        empty = stream.method == b"HEAD" or response.status in {204, 304}
        check(not (empty and stream.size), f"a body of {stream.size} bytes where there is none")
        lengths = {value for name, value in response.headers if name == b"content-length"}
        if not empty and lengths:
            check(lengths == {b"%d" % stream.size}, f"{stream.size} bytes, but content-length is {lengths}")

    @staticmethod
    def _check_open(stream: _Stream, frame: Frame) -> None:
        check(not stream.ended, f"{frame} behind END_STREAM")
        check(stream.reset is None, f"{frame} behind RST_STREAM")

    def _apply(self, settings: dict[int, int]) -> None:
        """The server's settings, from now on."""
        for code, value in settings.items():
            low, high = SETTING_RANGES.get(code, (0, value))
            check(low <= value <= high, f"the setting {code} is {value}")
        before = self._setting(SettingCode.INITIAL_WINDOW_SIZE)
        self.settings |= settings
        self._begun = True
        for stream in self._streams.values():
            stream.send_window += self._setting(SettingCode.INITIAL_WINDOW_SIZE) - before
        if SettingCode.HEADER_TABLE_SIZE in settings:
            self._encoder.header_table_size = min(settings[SettingCode.HEADER_TABLE_SIZE], 4096)

    def _apply_own(self, settings: Mapping[int, int]) -> None:
        """Settings that the server has acknowledged: from now on it must obey them."""
        self._frame_size_limit = settings.get(SettingCode.MAX_FRAME_SIZE, self._frame_size_limit)
        if SettingCode.HEADER_TABLE_SIZE in settings:
            self._decoder.max_allowed_table_size = settings[SettingCode.HEADER_TABLE_SIZE]
        if SettingCode.INITIAL_WINDOW_SIZE in settings:
            change = settings[SettingCode.INITIAL_WINDOW_SIZE] - self._initial_receive_window
            self._initial_receive_window += change
            for stream in self._streams.values():
                stream.receive_window += change

    def _take_goaway(self, frame: Frame) -> None:
        last_stream_id, code = struct.unpack(">LL", frame.payload[:8])
        if self.goaway is not None:
            check(last_stream_id <= (self.goaway.last_stream_id or 0), f"{frame} takes a GOAWAY back")
        self.goaway = ConnectionClosed(error_code(code), last_stream_id, frame.payload[8:])

    def _take_window_update(self, stream: _Stream | None, frame: Frame) -> None:
        size = struct.unpack(">L", frame.payload)[0]
        check(size, f"{frame} gives nothing")
        if stream is None:
            self.window += size
        else:
            stream.send_window += size
        window = self.window if stream is None else stream.send_window
        check(window <= LARGEST_WINDOW, f"{frame}: a window of {window}")
