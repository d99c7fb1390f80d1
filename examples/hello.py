"""The smallest application: the same answer to every request.

    python -m trigi --app-dir examples hello:app
    curl http://127.0.0.1:8000/

Every other example adds one idea to this.
"""


async def app(scope, receive, send):
    if scope["type"] != "http":  # of other protocols an application says by an exception that it has none
        raise NotImplementedError(scope["type"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"Hello\n"})
