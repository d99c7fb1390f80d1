"""A file as the response: the server opens and sends it, and the application reads none of it.

    python -m trigi --app-dir examples send_file:app
    curl --remote-name http://127.0.0.1:8000/send_file.py
    curl http://127.0.0.1:8000/nothing

A path is taken on every connection. The headers are the application's; the server adds the length if there is none.
"""

from mimetypes import guess_type
from pathlib import Path

FILES = {path.name: path for path in Path(__file__).resolve().parent.iterdir() if path.is_file()}


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    path = FILES.get(scope["path"].removeprefix("/"))  # only these: no path that a client makes up
    if path is not None and "http.response.pathsend" in scope["extensions"]:
        kind = guess_type(path)[0] or "application/octet-stream"
        headers = [(b"content-type", kind.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.pathsend", "path": str(path)})
        return
    await send({"type": "http.response.start", "status": 404})
    await send({"type": "http.response.body", "body": b"no such file\n"})
