"""The one task that writes an HTTP/2 connection, and what its streams have to send.

Applications don't write to the socket themselves: cancelled in the middle of a write they would tear a frame, and with
it every other stream. They put what they have into their stream's `Outgoing`, and the writer takes it from there,
frame by frame, in the order of the priorities and as far as the client's windows go. An application waits until what
it sent was taken; a small piece that can leave at once it need not wait for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf

import trio

from trigi._protocol.events import Headers
from trigi._protocol.http2 import FRAME_SIZE, ErrorCode, HTTP2Codec
from trigi._protocol.http2_priority import Priority, Schedule
from trigi.exceptions import ClientDisconnected

from .transport import WRITE_SIZE, Transport

__all__ = ["HTTP2Writer", "Outgoing"]

PIECES_AT_ONCE = 64
"""How many small pieces applications may send between two writes before they let others run."""


PIECES_QUEUED = 16
"""How many of one stream's may wait for their turn while it goes on."""


class Patience:
    """How long a client has been taking next to nothing of what waits for it.

    Attributes:
        since: when it took too little for the first time, `inf` while it takes enough.
    """

    def __init__(self) -> None:
        self.since = inf
        self._taken = 0

    def begin(self) -> None:
        """There is no window: the clock runs, if it does not run already."""
        if self.since == inf:
            self.since = trio.current_time()
            self._taken = 0

    def count(self, size: int, *, enough: float) -> None:
        """Some was taken: that stops the clock when it is enough in all."""
        self._taken += size
        if self._taken >= enough:
            self.since = inf


class Outgoing:
    """What one stream has to send.

    Attributes:
        stream_id: whose it is.
        priority: how urgent it is.
        lost: the stream was reset, or the connection has gone: nothing more is sent on it.
        patience: with the client, on this stream.
    """

    def __init__(self, stream_id: int, priority: Priority) -> None:
        self.stream_id = stream_id
        self.priority = priority
        self.lost = False
        self.patience = Patience()
        self._pieces: deque[memoryview] = deque()
        self._ends = False
        self._trailers: Headers = []
        self._size = 0
        self._pieces_put = 0
        self._pieces_taken = 0
        self._taken = trio.lowlevel.ParkingLot()

    @property
    def size(self) -> int:
        """Bytes that have not been taken."""
        return self._size

    @property
    def pieces(self) -> int:
        """How many pieces have not been taken; the last may be empty, and stands for the end."""
        return len(self._pieces)

    def put(self, data: bytes, *, ends: bool, trailers: Headers) -> int:
        """Queue a piece; with `ends` the last, after which come the trailers. Its number, to wait for.

        An end without bytes goes with the piece before it: it must not be left to wait for a window.
        """
        if data or not self._pieces:
            self._pieces.append(memoryview(data))
            self._size += len(data)
            self._pieces_put += 1
        self._ends = ends
        self._trailers = trailers
        return self._pieces_put

    async def wait_taken(self, number: int) -> None:
        """Wait until a piece, and so every one before it, was taken.

        Raises:
            ClientDisconnected: it never will be.
        """
        while self._pieces_taken < number:
            if self.lost:
                raise ClientDisconnected("the client has disconnected, or took no data within write_timeout")
            await self._taken.park()

    def give_up(self) -> None:
        """Send nothing more: who waits for that is told."""
        self.lost = True
        self._pieces.clear()
        self._size = 0
        self._taken.unpark_all()

    def take(self, codec: HTTP2Codec, window: int) -> int:
        """Have the codec send one frame, of what the window allows: its size."""
        piece = self._pieces[0]
        data = piece[: min(window, FRAME_SIZE)] if piece else piece
        rest = piece[len(data) :]
        self._size -= len(data)
        if rest:
            self._pieces[0] = rest
        else:
            self._pieces.popleft()
            self._pieces_taken += 1
            self._taken.unpark_all()
        is_last = self._ends and not self._pieces
        if data or (is_last and not self._trailers):
            codec.send_data(self.stream_id, data, end_stream=is_last and not self._trailers)
        if is_last and self._trailers:
            codec.send_headers(self.stream_id, self._trailers, end_stream=True)
        return len(data)


class HTTP2Writer:
    """Writes what the codec and the streams have.

    Args:
        transport: what to write to.
        codec: the connection's; whoever makes it send something calls `wake()`.
        buffer_size: bytes that may wait, of all streams together, before their applications do.
        timeout: seconds that a client may take nothing, on a stream or at all.
        on_sent: called with a stream's identifier when the end of its response was taken.
        on_ended: called with it when the stream ended otherwise.
        on_stalled: called with the identifier of a stream on which the client takes nothing.
        on_broken: called when the client has gone, or takes nothing at all.
    """

    def __init__(
        self,
        transport: Transport,
        codec: HTTP2Codec,
        *,
        buffer_size: float,
        timeout: float,
        on_sent: Callable[[int], None],
        on_ended: Callable[[int], None],
        on_stalled: Callable[[int], None],
        on_broken: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._codec = codec
        self._buffer_size = buffer_size
        self._timeout = timeout
        self._on_sent = on_sent
        self._on_ended = on_ended
        self._on_stalled = on_stalled
        self._on_broken = on_broken
        self._streams: dict[int, Outgoing] = {}
        self._schedule = Schedule()
        self._blocked: set[int] = set()  # streams whose windows are used up
        self._is_blocked = False  # so is the connection's
        self._patience = Patience()
        self._queued = 0
        self._at_once = 0  # pieces that have left so since the last write
        self._wake = trio.Event()
        self._finishing = False
        self._finished = trio.Event()
        self._written = trio.lowlevel.ParkingLot()

    async def run(self) -> None:
        """Write until the transport is broken, or everything is written after `finish()`."""
        try:
            while True:
                data = self._next_write()
                if data:
                    await self._transport.write([data])
                    self._written.unpark_all()
                    self._give_up_stalled()
                elif self._finishing:
                    return
                else:
                    await self._wait_for_more()
        except ClientDisconnected:
            self._on_broken()
        finally:
            self._finishing = True
            self._written.unpark_all()
            self._finished.set()

    async def finish(self) -> None:
        """Write what there is, and end."""
        self._finishing = True
        self._wake.set()
        await self._finished.wait()

    def wake(self) -> None:
        """The codec has something to send."""
        self._wake.set()

    async def wait_written(self) -> None:
        """Wait while more is unwritten than should be: a client that makes the server send must also read."""
        while self._codec.unsent > self._buffer_size and not self._finishing:
            await self._written.park()

    async def send(
        self, outgoing: Outgoing, data: bytes, *, ends: bool = False, trailers: Headers | None = None
    ) -> None:
        """Send a piece of a body after those that were put before it; the state changes before anything is awaited.

        An end without bytes, with nothing before it, is sent at once: only bytes of bodies wait for windows and turns.

        Raises:
            ClientDisconnected: the stream was reset, or the client takes nothing.

        Cancellation: the piece may be taken or not; the stream is to be reset.
        """
        if outgoing.lost:
            raise ClientDisconnected("the client has disconnected")
        stream_id = outgoing.stream_id
        self._wake.set()
        leaves_at_once = self._leaves_at_once(stream_id, len(data))
        number = outgoing.put(data, ends=ends, trailers=trailers or [])
        self._queued += len(data)
        if leaves_at_once or not outgoing.size:
            self._take(outgoing, FRAME_SIZE)
            return
        self._streams[stream_id] = outgoing
        if stream_id not in self._blocked:
            self._schedule.add(stream_id, outgoing.priority)
        is_small = self._queued + self._codec.unsent <= self._buffer_size
        if is_small and outgoing.size <= self._codec.window(stream_id) and outgoing.pieces <= PIECES_QUEUED:
            return
        await outgoing.wait_taken(number)

    def _leaves_at_once(self, stream_id: int, size: int) -> bool:
        """Whether a piece fits where nothing waits: then it need not be queued to have its turn."""
        codec = self._codec
        if self._queued or self._at_once >= PIECES_AT_ONCE or codec.unsent + size > self._buffer_size:
            return False
        self._at_once += 1
        return 0 < size <= min(codec.window(stream_id), codec.connection_window, FRAME_SIZE)

    def send_fields(self, outgoing: Outgoing, fields: Headers, *, ends: bool = False) -> None:
        """Send the head of a response, an interim one's, or all of a response without a body."""
        self._codec.send_headers(outgoing.stream_id, fields, end_stream=ends)
        self._wake.set()
        if ends:
            self._on_sent(outgoing.stream_id)

    def answer(self, outgoing: Outgoing, status: int, headers: Headers) -> None:
        """Answer in the server's own name, and end the stream on both sides."""
        self._codec.answer(outgoing.stream_id, status, headers)
        self.drop(outgoing)

    def reset(self, outgoing: Outgoing, code: ErrorCode) -> None:
        """End a stream before its time, if it is open still."""
        if self._codec.is_open(outgoing.stream_id):
            self._codec.reset(outgoing.stream_id, code)
        self.drop(outgoing)

    def drop(self, outgoing: Outgoing) -> None:
        """Send nothing more on a stream that has ended."""
        self._queued -= outgoing.size
        outgoing.give_up()
        self._streams.pop(outgoing.stream_id, None)
        self._schedule.remove(outgoing.stream_id)
        self._blocked.discard(outgoing.stream_id)
        self._wake.set()
        self._on_ended(outgoing.stream_id)

    def return_window(self, stream_id: int, size: int) -> None:
        """Let the client send as many more bytes on a stream."""
        self._codec.return_window(stream_id, size)
        self._wake.set()

    def open_window(self, stream_id: int) -> None:
        """The client takes more on a stream; with 0, on several."""
        for each in [stream_id] if stream_id else list(self._blocked):
            if each in self._blocked and self._codec.window(each) > 0:
                self._blocked.discard(each)
                self._schedule.add(each, self._streams[each].priority)
        self._wake.set()

    def prioritize(self, outgoing: Outgoing, priority: Priority) -> None:
        """Change a stream's priority, for what is still to be sent."""
        outgoing.priority = priority
        if outgoing.stream_id in self._schedule:
            self._schedule.remove(outgoing.stream_id)
            self._schedule.add(outgoing.stream_id, priority)

    def _next_write(self) -> bytes:
        """Frames for one write, of the streams whose turn it is.

        They are equally urgent: the application of a more urgent stream may have more to send after the write.
        """
        codec = self._codec
        self._at_once = 0
        self._is_blocked = False
        urgency: int | None = None
        while codec.unsent < WRITE_SIZE and (stream_id := self._schedule.next()) is not None:
            outgoing = self._streams[stream_id]
            window = min(codec.window(stream_id), codec.connection_window)
            if window <= 0:
                if codec.connection_window <= 0:
                    self._is_blocked = True
                    self._patience.begin()
                    break
                self._schedule.remove(stream_id)
                self._blocked.add(stream_id)
                outgoing.patience.begin()
                continue
            if urgency not in (None, outgoing.priority.urgency):
                break
            urgency = outgoing.priority.urgency
            self._schedule.rotate()
            self._take(outgoing, window)
        return codec.data_to_send()

    def _take(self, outgoing: Outgoing, window: int) -> None:
        size = outgoing.take(self._codec, window)
        self._queued -= size
        self._patience.count(size, enough=WRITE_SIZE)
        # All streams together may be as slow as one connection of HTTP/1.1.
        outgoing.patience.count(size, enough=WRITE_SIZE / len(self._streams) if outgoing.pieces else 0)
        if not outgoing.pieces:
            self._schedule.remove(outgoing.stream_id)
            self._streams.pop(outgoing.stream_id, None)
            if self._codec.is_response_complete(outgoing.stream_id):
                self._on_sent(outgoing.stream_id)

    async def _wait_for_more(self) -> None:
        self._wake = trio.Event()
        waits = [self._streams[stream_id].patience.since for stream_id in self._blocked]
        if self._is_blocked:
            waits.append(self._patience.since)
        deadline = min(waits, default=inf) + self._timeout
        with trio.CancelScope(deadline=deadline) as scope:
            await self._wake.wait()
        if scope.cancelled_caught:
            self._give_up_stalled()

    def _give_up_stalled(self) -> None:
        now = trio.current_time()
        if self._is_blocked and self._patience.since + self._timeout <= now:
            self._on_broken()
        for each in list(self._blocked):
            if each in self._blocked and self._streams[each].patience.since + self._timeout <= now:
                self._on_stalled(each)
