"""What trio, httptools and the system need for a request, without a server: the floor for one of trigi's shape.

`floor.py [--scope] --port PORT applications:NAME` calls the application for each request, in one task for a connection.
It waits for sockets as trigi does, parses a head with httptools, and writes what the application sends in one call. It
checks nothing, limits nothing, and has no timeouts; with `--scope` each call has a cancel scope. Not for any other use.
"""

import argparse
import contextlib
import importlib
import socket

import httptools
import trio

from trigi._connection.readiness import Readiness


class Head:
    """What httptools has found in a request."""

    def __init__(self):
        self.headers = []
        self.url = b""

    def on_url(self, url):
        """The target."""
        self.url = url

    def on_header(self, name, value):
        """A field."""
        self.headers.append((name.lower(), value))


class Connection:
    """One connection: its socket, and the task that waits for it."""

    def __init__(self, connected: socket.socket):
        self._socket = connected
        self._waiting = None
        Readiness.current().watch(connected.fileno(), self._became_readable)
        self._start = b""

    def _became_readable(self, _):
        if self._waiting is not None:
            trio.lowlevel.reschedule(self._waiting)
            self._waiting = None

    def _stop_waiting(self, _):
        self._waiting = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def _receive(self):
        while True:
            try:
                return self._socket.recv(65536)
            except BlockingIOError:
                self._waiting = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)

    async def receive(self):
        """There is no body."""
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(self, message):
        """The head waits for the body."""
        if message["type"] == "http.response.start":
            fields = [b"%b: %b\r\n" % field for field in message["headers"]]
            self._start = b"HTTP/1.1 %d OK\r\n%b\r\n" % (message["status"], b"".join(fields))
        else:
            self._socket.send(self._start + message["body"])

    async def serve(self, application, *, with_scope: bool):
        """Answer until the client leaves."""
        descriptor = self._socket.fileno()
        with self._socket, contextlib.suppress(ConnectionError):
            while data := await self._receive():
                head = Head()
                parser = httptools.HttpRequestParser(head)
                parser.feed_data(data)
                method = parser.get_method().decode()
                scope = {"type": "http", "method": method, "path": head.url.decode(), "headers": head.headers}
                if with_scope:
                    with trio.CancelScope():
                        await application(scope, self.receive, self.send)
                else:
                    await application(scope, self.receive, self.send)
        Readiness.current().forget(descriptor)


async def main(options: argparse.Namespace):
    """Accept for ever."""
    module, _, name = options.application.partition(":")
    application = getattr(importlib.import_module(module), name)
    listening = socket.create_server(("127.0.0.1", options.port), backlog=2000)
    listening.setblocking(False)
    async with trio.open_nursery() as nursery:
        while True:
            await trio.lowlevel.wait_readable(listening)
            connected, _ = listening.accept()
            connected.setblocking(False)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(connected)
            nursery.start_soon(lambda it=connection: it.serve(application, with_scope=options.scope))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--scope", action="store_true", help="a cancel scope for each call")
    parser.add_argument("application", help="module:name")
    trio.run(main, parser.parse_args())
