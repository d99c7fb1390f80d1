"""HTTP/2: many requests on one connection, none of which waits for another, or ends with it.

    python -m trigi --app-dir examples many_streams:app
    nghttp --no-dep http://127.0.0.1:8000/slow http://127.0.0.1:8000/quick        (of nghttp2-client)

Both requests share a connection. The answer to the second comes while the first is still counting; end nghttp with
Ctrl-C, and the counting stops. Nothing here knows of HTTP/2 but the line that prints the version: over HTTP/1.1 the
same happens on two connections. With a certificate (`--certfile`, `--keyfile`) browsers speak HTTP/2, too.
"""

import trio


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    print(f"{scope['path']} over HTTP/{scope['http_version']} from port {scope['client'][1]}")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    if scope["path"] == "/slow":
        await count(scope, receive, send)
    await send({"type": "http.response.body", "body": b"done\n"})


async def count(scope, receive, send):
    """Count to a hundred, unless the client has gone before."""
    scope["extensions"]["trigi"]["disconnect_grace"] = 0
    try:
        for number in range(1, 101):
            await send({"type": "http.response.body", "body": b"%d\n" % number, "more_body": True})
            await trio.sleep(0.1)
    finally:
        print(f"counted to {number}")
