"""A load generator: a fixed number of connections, each with one exchange under way at a time.

`load.py PORT KIND CONNECTIONS [SIZE]` opens the connections one by one, makes one exchange on each, and prints a line.
For each line with a number of seconds that it reads, it goes on for so long, lets what is under way end, and prints how
many exchanges ended. At the end of its input it closes the connections. So whoever starts it can look at the server
before and after, while the connections are open and idle. Every reply is checked.
"""

# ruff: noqa: T201 (its output is read by the runner)

import os
import re
import selectors
import socket
import sys
import time

MOST_EXCHANGES = 1_000_000  # in one go, however long it may take
SILENCE = 30.0  # seconds without a byte after which the server is given up
RECEIVED_AT_ONCE = 256 * 1024  # bytes
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
MASK = b"\x37\xfa\x21\x3d"  # RFC 6455 wants it to be unpredictable; for the server's work any will do


class Http:
    """Requests and replies of HTTP/1.1, keep-alive."""

    opening = None

    def __init__(self, body: bytes | None):
        framing = b"" if body is None else b"content-length: %d\r\n" % len(body)
        method = b"GET" if body is None else b"POST"
        self.message = method + b" / HTTP/1.1\r\nhost: localhost\r\n" + framing + b"\r\n" + (body or b"")
        self._head = b""
        self._missing = 0

    def feed(self, data: bytes) -> bool:
        """Whether the reply ends with these bytes; its body is counted and not kept."""
        if self._missing:
            self._missing -= len(data)
        else:
            self._head += data
            head, end, body = self._head.partition(b"\r\n\r\n")
            if not end:
                return False
            if not head.startswith(b"HTTP/1.1 200 "):
                raise SystemExit(f"unexpected reply: {head!r}")
            self._head = b""
            self._missing = int(LENGTH.search(head + b"\r\n")[1]) - len(body)
        if self._missing < 0:
            raise SystemExit("more bytes than the reply has")
        return self._missing == 0


class WebSocket:
    """Binary messages and their echoes, without an extension."""

    opening = (
        b"GET / HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )

    def __init__(self, payload: bytes):
        self._payload = payload
        self.message = self._frame(payload)
        self._buffer = bytearray()
        self._echo = b""
        self._open = False

    @staticmethod
    def _frame(payload: bytes) -> bytes:
        """A masked binary frame."""
        size = len(payload)
        if size < 126:
            length = bytes([0x80 | size])
        elif size < 1 << 16:
            length = b"\xfe" + size.to_bytes(2)
        else:
            length = b"\xff" + size.to_bytes(8)
        mask = int.from_bytes((MASK * (size // 4 + 1))[:size])
        return b"\x82" + length + MASK + (int.from_bytes(payload) ^ mask).to_bytes(size)

    def feed(self, data: bytes) -> bool:
        """Whether the opening handshake or an echo ends with these bytes."""
        self._buffer += data
        if self._open:
            ended = [self._end_of_message(*frame) for frame in self._frames()]
            return any(ended)
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if end and not head.startswith(b"HTTP/1.1 101 "):
            raise SystemExit(f"unexpected reply: {bytes(head)!r}")
        if end:
            self._open, self._buffer = True, rest
        return self._open

    def _frames(self):
        """The frames that are whole: their first byte, and their payload."""
        while len(self._buffer) >= 2:
            size, start = self._buffer[1], 2
            if size >= 126:
                start = 4 if size == 126 else 10
                size = int.from_bytes(self._buffer[2:start])
            if len(self._buffer) < start + size:
                return
            first, payload = self._buffer[0], bytes(self._buffer[start : start + size])
            del self._buffer[: start + size]
            yield first, payload

    def _end_of_message(self, first: int, payload: bytes) -> bool:
        opcode = first & 0x0F
        if opcode == 0x8:
            raise SystemExit(f"the server closed the WebSocket: {payload!r}")
        if opcode > 0x8:  # a ping: no go lasts so long that it must be answered
            return False
        self._echo += payload
        if not first & 0x80:
            return False
        if self._echo != self._payload:
            raise SystemExit("the echo is not what was sent")
        self._echo = b""
        return True


class Connection:
    """A connection, and the exchange that is under way on it."""

    def __init__(self, port: int, protocol):
        self._protocol = protocol
        self._unsent = memoryview(b"")
        self.socket = socket.create_connection(("127.0.0.1", port), SILENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for message in filter(None, (protocol.opening, protocol.message)):
            self.socket.sendall(message)
            while not self.receive():
                pass
        self.socket.setblocking(False)

    def begin(self) -> bool:
        """Begin an exchange; whether all of it could be sent."""
        self._unsent = memoryview(self._protocol.message)
        return self.send()

    def send(self) -> bool:
        """Send what the kernel takes; whether that was all."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            return False
        return True

    def receive(self) -> bool:
        """Whether the exchange ended with what is received."""
        data = self.socket.recv(RECEIVED_AT_ONCE)
        if not data:
            raise SystemExit("the server closed the connection")
        return self._protocol.feed(data)


def go(selector: selectors.BaseSelector, seconds: float) -> int:
    """Exchanges on all connections, one after another on each, for so long: how many."""
    deadline = time.monotonic() + seconds
    begun = ended = 0

    def begin(key):
        nonlocal begun
        begun += 1
        if not key.data.begin():
            selector.modify(key.fileobj, selectors.EVENT_READ | selectors.EVENT_WRITE, key.data)

    for key in list(selector.get_map().values()):
        begin(key)
    while ended < begun:
        events = selector.select(SILENCE)
        if not events:
            raise SystemExit(f"nothing came for {SILENCE} s")
        for key, event in events:
            if event & selectors.EVENT_WRITE and key.data.send():
                selector.modify(key.fileobj, selectors.EVENT_READ, key.data)
            if event & selectors.EVENT_READ and key.data.receive():
                ended += 1
                if begun < MOST_EXCHANGES and time.monotonic() < deadline:
                    begin(key)
    return ended


def main(port: str, kind: str, connections: str, size: str = "0"):
    """Open the connections, and go as often and as long as standard input says."""
    payload = os.urandom(int(size))
    selector = selectors.DefaultSelector()
    for _ in range(int(connections)):
        protocol = WebSocket(payload) if kind == "websocket" else Http(payload if kind == "upload" else None)
        connection = Connection(int(port), protocol)
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    print("ready", flush=True)
    for line in sys.stdin:
        print(go(selector, float(line)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
