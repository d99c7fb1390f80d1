"""Bind strings become listening sockets.

    127.0.0.1:8000      IPv4 address and port
    [::1]:8000          IPv6 address and port; never IPv4 as well, so [::]:8000 leaves 0.0.0.0:8000 free
    localhost:8000      every address of the name
    :8000               every address of this machine
    unix:run/app.sock   a unix socket by its path, relative or absolute; unix:///run/app.sock as a URL has it
    fd://3              a listening socket that this process has inherited, of any of these kinds

For port 0 the system chooses the port, one for all addresses of a name.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import trio

from trigi._protocol.scope import Endpoint
from trigi.config import Config
from trigi.exceptions import BindError, ConfigError

from .listeners import SocketFile, UnixListener

__all__ = ["open_listeners"]

PORT_ATTEMPTS = 16
"""How many ports the system may choose of which another address of the same name is not free."""

ALLOWED = "host:port, [IPv6]:port, :port, unix:PATH or fd://N"

Address = tuple[Any, ...]
"""As the `socket` module has it: host and port, for IPv6 also flow and scope."""


class TCPBind(NamedTuple):
    """`host` is `None` for every address of this machine, `port` is 0 to 65535."""

    host: str | None
    port: int


class UnixBind(NamedTuple):
    """A unix socket to be created."""

    path: str


class DescriptorBind(NamedTuple):
    """A socket that is open already."""

    descriptor: int


async def open_listeners(config: Config) -> list[trio.abc.Listener[trio.SocketStream]]:
    """Listen on everything that `config.bind` names, or on nothing.

    Each is a `trio.SocketListener` or a `UnixListener`, in the order of `config.bind`; a name with several
    addresses gives several. They belong to the caller, who closes them. An inherited descriptor belongs to its
    listener from then on; when something fails, it is left open.

    Raises:
        ConfigError: a string of `config.bind` is not an address; nothing was opened.
        BindError: an address can't be listened on, or a descriptor is not a listening socket. One line that names
            it and says what to do; `errno` is the operating system's, if there is one.

    Cancellation: nothing stays open.
    """
    binds = [parse_bind(text) for text in config.bind]
    for text, bind in zip(config.bind, binds, strict=True):
        if binds.count(bind) > 1 and not (isinstance(bind, TCPBind) and bind.port == 0):
            raise ConfigError(f"bind: {text!r} is given twice")
    opened: list[trio.abc.Listener[trio.SocketStream]] = []
    with ExitStack() as undo:
        for bind in binds:
            match bind:
                case TCPBind():
                    for listener in await _open_tcp(bind, config.backlog):
                        undo.callback(listener.socket.close)
                        opened.append(listener)
                case UnixBind(path):
                    unix_listener = _open_unix(path, config.uds_mode, config.backlog)
                    undo.callback(unix_listener.close)
                    opened.append(unix_listener)
                case DescriptorBind(descriptor):
                    listener = _open_descriptor(descriptor)
                    undo.callback(listener.socket.detach)
                    opened.append(listener)
        undo.pop_all()
    return opened


def parse_bind(text: str) -> TCPBind | UnixBind | DescriptorBind:
    """What a string of `config.bind` means.

    Raises:
        ConfigError: it means nothing.
    """
    if text.startswith("unix:"):
        path = re.sub("^//(?=/)", "", text.removeprefix("unix:"))
        if not path or path.startswith("//") or "\0" in path:
            raise ConfigError(f"bind: {text!r} has no path: allowed are unix:PATH and unix:///PATH")
        return UnixBind(path)
    if found := re.fullmatch("fd://([0-9]{1,9})", text):
        return DescriptorBind(int(found[1]))
    if found := re.fullmatch(r"(?:\[(.+)\]|([^][:/]*)):([0-9]{1,5})", text):
        if int(found[3]) > 65535:
            raise ConfigError(f"bind: {text!r} has a port above 65535")
        return TCPBind(found[1] or found[2] or None, int(found[3]))
    if re.fullmatch(r"\[.+\]|[^:/]+", text):
        raise ConfigError(f"bind: {text!r} has no port: allowed are {ALLOWED}")
    if text.count(":") > 1 and "/" not in text:
        raise ConfigError(f"bind: {text!r} is ambiguous: an IPv6 address goes in brackets, [::1]:8000")
    raise ConfigError(f"bind: {text!r} is no address: allowed are {ALLOWED}")


async def _open_tcp(bind: TCPBind, backlog: int) -> list[trio.SocketListener]:
    addresses = await _resolve(bind)
    attempts = 1 if bind.port else PORT_ATTEMPTS
    while True:
        attempts -= 1
        try:
            return _listen_on_all(addresses, bind.port, backlog)
        except BindError as error:
            if attempts == 0 or error.errno != errno.EADDRINUSE:
                raise


async def _resolve(bind: TCPBind) -> list[tuple[int, Address]]:
    """The addresses of a name, each once, with their families."""
    try:
        found = await trio.socket.getaddrinfo(
            bind.host, bind.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (socket.gaierror, UnicodeError) as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else error
        raise BindError(
            f"cannot listen on {bind.host}:{bind.port}: the host name has no address ({reason})"
        ) from error
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _listen_on_all(
    addresses: list[tuple[int, Address]], port: int, backlog: int
) -> list[trio.SocketListener]:
    """Listen on all addresses, or on none; with port 0, on the one that the system chooses for the first.

    An address that this machine does not have is passed over when there is another: many resolve `localhost` to
    ::1 although IPv6 is switched off.
    """
    opened: list[socket.socket] = []
    missing: BindError | None = None
    with ExitStack() as undo:
        for family, (host, _, *more) in addresses:
            try:
                with _bind_errors(Endpoint(host, port)):
                    sock = _listen_on(family, (host, port, *more), backlog)
            except BindError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
                continue
            undo.enter_context(sock)
            opened.append(sock)
            port = sock.getsockname()[1]
        if missing is not None and not opened:
            raise missing
        undo.pop_all()
    return [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in opened]


def _listen_on(family: int, address: Address, backlog: int) -> socket.socket:
    with ExitStack() as undo:
        sock = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
        # connections of a server that has just stopped may still be in TIME_WAIT
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(backlog)
        undo.pop_all()
    return sock


def _open_unix(path: str, mode: int | None, backlog: int) -> UnixListener:
    with _bind_errors(Endpoint(path, None)), ExitStack() as undo:
        _remove_stale(path)
        sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        sock.bind(path)
        file = SocketFile(path)
        undo.callback(file.remove)
        if mode is not None:
            # Nobody can connect before listen(), so the mode is never wider than asked for when it counts.
            # The umask would be another way, but it belongs to all threads of the process.
            Path(path).chmod(mode)
        sock.listen(backlog)
        listener = UnixListener(trio.SocketListener(trio.socket.from_stdlib_socket(sock)), file)
        undo.pop_all()
    return listener


def _remove_stale(path: str) -> None:
    """Remove a socket's file that nobody accepts on: what a server leaves that was killed."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise BindError(
            f"cannot listen on unix:{path}: the file is not a socket; choose another path, or remove it"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is as good an answer as a connection
        result = probe.connect_ex(path)
    if result == errno.ECONNREFUSED:
        Path(path).unlink(missing_ok=True)
    elif result == errno.EACCES:
        raise OSError(result, os.strerror(result))
    elif result != errno.ENOENT:
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _open_descriptor(descriptor: int) -> trio.SocketListener:
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        reason = "is not open" if error.errno == errno.EBADF else "is not a socket"
        raise _not_listening(descriptor, reason) from error
    with ExitStack() as undo:
        undo.callback(sock.detach)  # what is refused stays the caller's
        families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
        if sock.type != socket.SOCK_STREAM or sock.family not in families:
            raise _not_listening(descriptor, "is not a TCP or unix stream socket")
        try:
            is_listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:  # not every system can tell
            is_listening = 1
        if not is_listening:
            raise _not_listening(descriptor, "is a socket that does not listen")
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        undo.pop_all()
    return listener


def _not_listening(descriptor: int, reason: str) -> BindError:
    return BindError(
        f"cannot listen on fd://{descriptor}: the descriptor {reason}; "
        "it must be a listening socket that this process has inherited"
    )


@contextmanager
def _bind_errors(endpoint: Endpoint) -> Iterator[None]:
    """Say of an error of the operating system which address it is about, and what to do."""
    try:
        yield
    except BindError:
        raise
    except OSError as error:
        refused = BindError(f"cannot listen on {endpoint}: {_explain(error, endpoint)}")
        refused.errno = error.errno
        raise refused from error


def _explain(error: OSError, endpoint: Endpoint) -> str:
    """What is wrong with the address, and what to do."""
    path, port = endpoint
    match error.errno:
        case errno.EADDRINUSE:
            return f"address already in use: another program, or another bind, listens on {endpoint}"
        case errno.EADDRNOTAVAIL:
            return "no interface of this machine has this address"
        case errno.EACCES if port is None:
            return (
                "permission denied: this user may not create this file, or connect to the one that is there"
            )
        case errno.EACCES | errno.EPERM if port is not None and port < 1024:
            return "permission denied: ports below 1024 are privileged; choose a higher one"
        case errno.ENOENT | errno.ENOTDIR if port is None:
            return f"there is no folder {os.path.dirname(path) or '.'}; create it"  # noqa: PTH120 - as it was given
        case _:
            return error.strerror or str(error)
