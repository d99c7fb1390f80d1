"""Layer 2: one connection. Streams in, application calls out.

The tree of tasks of one connection, below the nursery that all connections live in:

    serve_stream                     catches and reports what must not reach other connections
    └─ applications nursery          THE CONNECTION'S NURSERY
       ├─ reader                     its body: bytes -> codec -> events -> exchanges; it waits for the stream
       ├─ writer                     HTTP/2 only: what the streams have to send -> codec -> bytes
       ├─ run_http                   an application call, in exchange.cancel_scope; on HTTP/1.1 one after the other,
       │                             in a task that reads the next request itself if that comes whole
       ├─ run_http                   … on HTTP/2 each stream has one, on HTTP/1.1 each that is overtaken
       └─ run_websocket              an application call, with a nursery for its reader and its keep-alive

    A connection for one request has no nursery: run_http is in serve_stream itself, and the reader, if the application
    waits for anything, in the nursery that all connections live in.

What must always hold:

    I1  Exactly one task waits for what a stream brings. Over a socket, another may read in its place meanwhile, in one
        synchronous stretch: it takes what is its own, and leaves the rest.
    I2  At most one task writes a stream at a time; on HTTP/2 always the writer.
    I3  The reader never waits for an application, except to push back that application's own request body (HTTP/1.1,
        WebSocket); on HTTP/2 a stream's window bounds that.
    I4  A channel that ends is the disconnect: `EndOfChannel` <=> `http.disconnect` / `websocket.disconnect`, for ever.
    I5  State changes happen between awaits, in one synchronous stretch; the await comes last.
    I6  An application's exception never leaves `run_http` or `run_websocket`; a connection's never leaves
        `serve_stream`.
    I7  No shield without a deadline in the same statement.
    I8  Every await on the peer is under a named timeout; every buffer is under a named limit.
    I9  Whether a connection is used again is decided in one function, called from the two places that can be last:
        the end of the response and the end of the request.
"""
