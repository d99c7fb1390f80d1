"""Write the page of states: `python docs/states.py > docs/reference/states.md`.

The tables are those by which `send()` decides, so the page can't say anything else.
"""

import sys
from collections.abc import Mapping
from typing import Any

from trigi._protocol.asgi import HTTP, HTTP_SEND, LIFESPAN_SEND, WEBSOCKET_SEND, Lifespan, WebSocket

HEAD = """\
# States

<!-- Written by `python docs/states.py` from the tables in trigi/_protocol/asgi.py: change them there. -->

What an application may send, and when. An event is a message's type, with its flag behind a `+` if that is set:
`http.response.body+more_body` is a `http.response.body` with `more_body` true. What is not in a table is not allowed:
`send()` raises `UnexpectedMessage`, which names the state, the event, and what was allowed; the state stays as it was.

That the client has left is not in the tables. `send()` asks for it first, and raises `ClientDisconnected`.
"""

NOTES = {
    "HTTP": """\
The scope `http`. An application that returns in another state than COMPLETE gets an error in the log, and its client
500, or a response that is cut off. Messages after the end are ignored. An early hint after the head has left is too.
""",
    "WebSocket": """\
The scope `websocket`. An application that returns in OPEN closes with 1000, one that raises there with 1011. Returning
or raising before that is answered with 500. `websocket.close` in CONNECTING is answered with 403. Once the client has
closed, `websocket.close` does nothing, and everything else raises `ClientDisconnected`.
""",
    "Lifespan": """\
The scope `lifespan`. RUNNING becomes STOPPING when the server shuts down: `receive()` then gives `lifespan.shutdown`.
""",
}


def states_page() -> str:
    """The page, in Markdown."""
    parts = [HEAD]
    for name, table, start in (
        ("HTTP", HTTP_SEND, HTTP.START),
        ("WebSocket", WEBSOCKET_SEND, WebSocket.CONNECTING),
        ("Lifespan", LIFESPAN_SEND, Lifespan.STARTING),
    ):
        parts += [f"## {name}\n", NOTES[name], diagram(table, start), rows(table)]
    return "\n".join(parts)


def diagram(table: Mapping[Any, Mapping[str, Any]], start: object) -> str:
    """A table as a picture, in Mermaid."""
    lines = [f"    [*] --> {start}"]
    for state, events in table.items():
        lines += [f"    {state} --> {after}: {event}" for event, after in events.items()]
    if Lifespan.RUNNING in table:  # the one step that is the server's
        lines.append(f"    {Lifespan.RUNNING} --> {Lifespan.STOPPING}: the server shuts down")
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```", ""])


def rows(table: Mapping[Any, Mapping[str, Any]]) -> str:
    """A table as a table."""
    lines = ["| state | event | next state |", "|---|---|---|"]
    for state, events in table.items():
        lines += [f"| {state} | `{event}` | {after} |" for event, after in events.items()]
        if not events:
            lines.append(f"| {state} | nothing | |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.stdout.write(states_page())
