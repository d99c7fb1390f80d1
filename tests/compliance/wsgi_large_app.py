"""The WSGI application of `test_wsgi.py` that holds no body itself: the memory of its process is what is tested."""

from __future__ import annotations

PIECE = bytes(64 * 1024)


def app(environ, start_response):
    """`PUT` anything: how many bytes it was. `GET /123`: that many; `GET /lines/123`: in blocks of 64 bytes."""
    if environ["REQUEST_METHOD"] == "GET":
        size = int(environ["PATH_INFO"].rsplit("/", 1)[1])
        start_response("200 OK", [("Content-Length", str(size))])
        return parts(size, 64 if environ["PATH_INFO"].startswith("/lines/") else len(PIECE))
    count = 0
    while data := environ["wsgi.input"].read(64 * 1024):
        count += len(data)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d\n" % count]


def parts(size, step):
    piece = PIECE[:step]
    while size:
        yield piece[:size]
        size -= min(size, step)
