"""Listeners: what bind strings mean, what is refused and in which words, what is left behind. Real sockets."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import tempfile
from math import inf
from pathlib import Path

import pytest
import trio
import trio.testing

from trigi._server.bind import open_listeners, parse_bind
from trigi._server.listeners import (
    GONE,
    UNSENT_SIZE,
    DirectListener,
    LimitedListener,
    UnixListener,
    close_listeners,
    listener_urls,
)
from trigi.config import Config
from trigi.exceptions import BindError, ConfigError


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


class Resolver(trio.abc.HostnameResolver):
    """Names and their addresses, in place of the system's."""

    def __init__(self, **names: list[str]) -> None:
        self._names = names

    async def getaddrinfo(self, host, port, *hints, **kinds):
        host = host.decode("ascii")
        if host not in self._names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        entries = []
        for address in self._names[host]:
            entries += socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
        return entries

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


@pytest.fixture
async def opened():
    """Opens listeners; closes at the end of the test those that are still open."""
    everything = []

    async def open_for_test(*bind: str, **settings):
        listeners = await open_listeners(Config(bind=bind, **settings))
        everything.extend(listeners)
        return listeners

    yield open_for_test
    for listener in everything:
        await listener.aclose()


@pytest.fixture
def unprivileged():
    """An effective user who is not root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def taken():
    """A TCP port of 127.0.0.1 on which somebody else listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


async def refusal(*bind: str, **settings) -> str:
    """What `BindError` says; one line, with the operating system's own error behind it."""
    with pytest.raises(BindError) as caught:
        await open_listeners(Config(bind=bind, **settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def address_of(listener) -> tuple:
    return listener.socket.getsockname()


async def assert_talks(listener) -> trio.SocketStream:
    """A client that connects reaches this listener and no other; the accepted stream."""
    client = await trio.testing.open_stream_to_socket_listener(listener)
    served = await listener.accept()
    async with client:
        await client.send_all(b"hello")
        assert await served.receive_some() == b"hello"
    return served


def open_descriptors() -> set[str]:
    return {each.name for each in Path("/dev/fd").iterdir()}


def first_unprivileged_port() -> int:
    setting = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    return int(setting.read_text()) if setting.exists() else 1024


# Bind strings


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("127.0.0.1:8000", ("127.0.0.1", 8000)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:8443", ("::1", 8443)),
        ("[fe80::1%eth0]:80", ("fe80::1%eth0", 80)),
        (":65535", (None, 65535)),
        ("unix:run/app.sock", ("run/app.sock",)),
        ("unix:/run/app.sock", ("/run/app.sock",)),
        ("unix:///run/app.sock", ("/run/app.sock",)),
        ("unix:a:80", ("a:80",)),
        ("fd://3", (3,)),
    ],
)
def test_bind_strings(text, meaning):
    assert tuple(parse_bind(text)) == meaning


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("localhost", "has no port"),
        ("8000", "has no port"),
        ("[::1]", "has no port"),
        ("::1:8000", "in brackets"),
        ("127.0.0.1:", "is no address"),
        ("127.0.0.1:http", "is no address"),
        ("127.0.0.1:-1", "is no address"),
        ("127.0.0.1:65536", "above 65535"),
        ("http://127.0.0.1:8000", "is no address"),
        ("127.0.0.1:8000/", "is no address"),
        ("127.0.0.1:80\n", "is no address"),
        ("[]:80", "is no address"),
        ("unix:", "has no path"),
        ("unix://host/app.sock", "has no path"),
        ("unix:\0abstract", "has no path"),
        ("fd://", "is no address"),
        ("fd://-1", "is no address"),
        ("fd://x", "is no address"),
    ],
)
async def test_bind_strings_that_mean_nothing_are_config_errors(text, complaint):
    with pytest.raises(ConfigError, match=complaint) as caught:
        await open_listeners(Config(bind=text))
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_nothing_is_opened_when_a_later_bind_string_means_nothing(tmp_path):
    with pytest.raises(ConfigError):
        await open_listeners(Config(bind=[f"unix:{tmp_path}/app.sock", "nonsense"]))
    assert list(tmp_path.iterdir()) == []


async def test_the_same_address_twice_is_a_config_error():
    with pytest.raises(ConfigError, match="'fd://7' is given twice"):
        await open_listeners(Config(bind=["fd://7", "fd://7"]))


# TCP


async def test_tcp(opened):
    (listener,) = await opened("127.0.0.1:0")
    host, port = address_of(listener)
    assert host == "127.0.0.1"
    assert port > 0
    served = await assert_talks(listener)
    assert served.socket.getsockname() == (host, port)
    await served.aclose()


@needs_ipv6
async def test_an_ipv6_address_leaves_the_same_port_of_ipv4_free(opened):
    (v6,) = await opened("[::]:0")
    port = address_of(v6)[1]
    (v4,) = await opened(f"0.0.0.0:{port}")
    assert v6.socket.family == socket.AF_INET6
    assert address_of(v4) == ("0.0.0.0", port)


async def test_no_host_is_every_address_of_the_machine_on_one_port(opened):
    listeners = await opened(":0")
    hosts = {address_of(listener)[0] for listener in listeners}
    ports = {address_of(listener)[1] for listener in listeners}
    assert hosts == ({"0.0.0.0", "::"} if has_ipv6() else {"0.0.0.0"})
    assert len(ports) == 1
    for listener in listeners:
        await (await assert_talks(listener)).aclose()


async def test_a_name_is_all_its_addresses_on_one_port(opened):
    trio.socket.set_custom_hostname_resolver(Resolver(both=["127.0.0.1", "127.0.0.2", "127.0.0.1"]))
    listeners = await opened("both:0")
    (host, port), (other_host, other_port) = map(address_of, listeners)
    assert [host, other_host] == ["127.0.0.1", "127.0.0.2"]
    assert port == other_port


async def test_addresses_that_this_machine_does_not_have_are_passed_over_when_there_is_another(opened):
    trio.socket.set_custom_hostname_resolver(Resolver(some=["192.0.2.1", "127.0.0.1"]))
    (listener,) = await opened("some:0")
    assert address_of(listener)[0] == "127.0.0.1"


async def test_a_name_of_whose_addresses_one_is_in_use_is_refused_as_a_whole(taken):
    trio.socket.set_custom_hostname_resolver(Resolver(both=["127.0.0.2", "127.0.0.1"]))
    before = open_descriptors()
    assert f"127.0.0.1:{taken}" in await refusal(f"both:{taken}")
    assert open_descriptors() == before


async def test_a_port_that_is_free_nowhere_is_looked_for_only_so_often():
    # whatever port the first address gets, the second then overlaps with it
    trio.socket.set_custom_hostname_resolver(Resolver(overlapping=["127.0.0.1", "0.0.0.0"]))
    before = open_descriptors()
    assert "already in use" in await refusal("overlapping:0")
    assert open_descriptors() == before


async def test_a_port_can_be_bound_again_at_once(opened):
    (listener,) = await opened("127.0.0.1:0")
    _, port = address_of(listener)
    async with await trio.testing.open_stream_to_socket_listener(listener) as client:
        async with await listener.accept():
            pass  # who closes first keeps the connection in TIME_WAIT, on the listener's port
        assert await client.receive_some() == b""
    await listener.aclose()
    await opened(f"127.0.0.1:{port}")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a socket's backlog")
async def test_the_backlog_is_that_of_the_settings(opened):
    (listener,) = await opened("127.0.0.1:0", backlog=7)
    # tcp_info.tcpi_sacked is the backlog of a listening socket (tcp(7))
    info = listener.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    assert int.from_bytes(info[28:32], sys.byteorder) == 7


async def test_a_port_in_use(taken):
    before = open_descriptors()
    said = await refusal(f"127.0.0.1:{taken}")
    assert said == (
        f"cannot listen on 127.0.0.1:{taken}: "
        f"address already in use: another program, or another bind, listens on 127.0.0.1:{taken}"
    )
    assert open_descriptors() == before


async def test_an_error_of_the_system_is_kept(taken):
    with pytest.raises(BindError) as caught:
        await open_listeners(Config(bind=f"127.0.0.1:{taken}"))
    assert caught.value.errno == caught.value.__cause__.errno != 0


@pytest.mark.skipif(first_unprivileged_port() <= 1023, reason="no port is privileged here")
async def test_a_privileged_port(unprivileged):
    said = await refusal("127.0.0.1:1023")
    assert said == (
        "cannot listen on 127.0.0.1:1023: permission denied: "
        "ports below 1024 are privileged; choose a higher one"
    )


async def test_an_address_of_another_machine():
    said = await refusal("192.0.2.1:8000")
    assert said == "cannot listen on 192.0.2.1:8000: no interface of this machine has this address"


async def test_a_name_without_an_address():
    trio.socket.set_custom_hostname_resolver(Resolver())
    said = await refusal("nowhere.example:8000")
    assert said == (
        "cannot listen on nowhere.example:8000: the host name has no address (Name or service not known)"
    )


async def test_a_name_that_cannot_be_one():
    assert "cannot listen on a..b:80: the host name has no address" in await refusal("a..b:80")


async def test_all_or_nothing(tmp_path, taken):
    before = open_descriptors()
    await refusal("127.0.0.1:0", f"unix:{tmp_path}/app.sock", f"127.0.0.1:{taken}")
    assert open_descriptors() == before
    assert list(tmp_path.iterdir()) == []


async def test_cancelling_leaves_nothing_open(tmp_path):
    trio.socket.set_custom_hostname_resolver(Resolver())
    before = open_descriptors()
    with trio.CancelScope() as scope:
        scope.cancel()
        await open_listeners(Config(bind=[f"unix:{tmp_path}/app.sock", "127.0.0.1:0", "name.example:80"]))
    assert scope.cancelled_caught
    assert open_descriptors() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cancelled", [False, True])
async def test_all_are_closed_even_when_that_is_cancelled(tmp_path, cancelled):
    before = open_descriptors()
    first, second, third = await open_listeners(
        Config(bind=["127.0.0.1:0", f"unix:{tmp_path}/a", f"unix:{tmp_path}/b"])
    )
    with trio.CancelScope() as scope:
        if cancelled:
            scope.cancel()
        await close_listeners(
            [first, trio.SSLListener(second, None), LimitedListener(third, trio.Semaphore(1))]
        )
    assert open_descriptors() == before
    assert list(tmp_path.iterdir()) == []


# Unix sockets


async def test_unix_socket(opened, tmp_path):
    path = tmp_path / "app.sock"
    (listener,) = await opened(f"unix:{path}")
    assert isinstance(listener, UnixListener)
    served = await assert_talks(listener)
    assert served.socket.getsockname() == str(path)
    await served.aclose()


async def test_the_file_goes_with_the_listener(opened, tmp_path):
    path = tmp_path / "app.sock"
    (listener,) = await opened(f"unix:{path}")
    assert stat.S_ISSOCK(path.stat().st_mode)
    await listener.aclose()
    assert not path.exists()
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()
    await listener.aclose()


async def test_the_file_goes_when_closing_is_cancelled(opened, tmp_path):
    path = tmp_path / "app.sock"
    (listener,) = await opened(f"unix:{path}")
    await trio.aclose_forcefully(listener)
    assert not path.exists()
    assert listener.socket.fileno() == -1


async def test_the_file_of_a_relative_path_goes_wherever_the_program_is_then(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (listener,) = await opened("unix:app.sock")
    monkeypatch.chdir("/")
    await listener.aclose()
    assert list(tmp_path.iterdir()) == []


async def test_a_file_that_was_replaced_stays(opened, tmp_path):
    path = tmp_path / "app.sock"
    (old,) = await opened(f"unix:{path}")
    path.unlink()
    (new,) = await opened(f"unix:{path}")
    await old.aclose()
    await (await assert_talks(new)).aclose()


async def test_closing_twice_does_not_remove_the_file_of_the_next(opened, tmp_path):
    path = tmp_path / "app.sock"
    (old,) = await opened(f"unix:{path}")
    await old.aclose()
    (new,) = await opened(f"unix:{path}")  # often with the same inode
    await old.aclose()
    await (await assert_talks(new)).aclose()


async def test_a_file_that_is_gone_is_no_error_at_the_end(opened, tmp_path):
    path = tmp_path / "app.sock"
    (listener,) = await opened(f"unix:{path}")
    path.unlink()
    await listener.aclose()


async def test_a_stale_file_is_replaced(opened, tmp_path):
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
        killed.listen()
    (listener,) = await opened(f"unix:{path}")
    await (await assert_talks(listener)).aclose()


@pytest.mark.parametrize("backlog_is_full", [False, True])
async def test_a_live_socket_is_an_error(tmp_path, backlog_is_full):
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as client:
        live.bind(str(path))
        live.listen(0)
        if backlog_is_full:
            client.connect(str(path))
        said = await refusal(f"unix:{path}")
        assert "already in use" in said
        assert f"unix:{path}" in said
        assert path.exists()


async def test_the_file_goes_when_the_socket_cannot_be_listened_on(tmp_path, monkeypatch):
    def listen(sock, backlog):
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    monkeypatch.setattr(socket.socket, "listen", listen)
    assert os.strerror(errno.ENOBUFS) in await refusal(f"unix:{tmp_path}/app.sock")
    assert list(tmp_path.iterdir()) == []


async def test_a_datagram_socket_is_an_error(tmp_path):
    path = tmp_path / "log.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as live:
        live.bind(str(path))
        assert "already in use" in await refusal(f"unix:{path}")
        assert path.exists()


async def test_a_file_that_is_no_socket_is_an_error(tmp_path):
    path = tmp_path / "precious.txt"
    path.write_text("data")
    assert "is not a socket" in await refusal(f"unix:{path}")
    assert path.read_text() == "data"


async def test_a_folder_that_is_not_there(tmp_path):
    said = await refusal(f"unix:{tmp_path}/missing/app.sock")
    assert said == (
        f"cannot listen on unix:{tmp_path}/missing/app.sock: there is no folder {tmp_path}/missing; create it"
    )


async def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert "there is no folder" in await refusal(f"unix:{tmp_path}/file/app.sock")


async def test_a_folder_that_may_not_be_written(tmp_path, unprivileged):
    if os.getuid() != 0:
        tmp_path.chmod(0o500)
    assert "permission denied" in await refusal(f"unix:{tmp_path}/app.sock")


async def test_a_live_socket_of_somebody_else_is_not_taken_for_a_stale_one(tmp_path, unprivileged):
    if os.getuid() != 0:
        pytest.skip("needs root, to be somebody else")
    os.seteuid(0)
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        path.chmod(0o600)
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(0o777)
        os.seteuid(65534)
        assert "permission denied" in await refusal(f"unix:{path}")
        assert path.exists()


async def test_a_path_that_is_too_long(tmp_path):
    assert "too long" in await refusal(f"unix:{tmp_path}/{'x' * 120}")


@pytest.mark.parametrize("mode", [0o600, 0o666, 0o000])
async def test_uds_mode_whatever_the_umask(opened, tmp_path, mode):
    path = tmp_path / "app.sock"
    umask = os.umask(0o022)
    try:
        await opened(f"unix:{path}", uds_mode=mode)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == mode


async def test_without_uds_mode_the_umask_decides(opened, tmp_path):
    path = tmp_path / "app.sock"
    umask = os.umask(0o027)
    try:
        await opened(f"unix:{path}")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


# Inherited descriptors


@pytest.mark.parametrize("family", [socket.AF_INET, pytest.param(socket.AF_INET6, marks=needs_ipv6)])
async def test_an_inherited_tcp_socket(opened, family):
    with socket.create_server(("", 0), family=family) as sock:
        (listener,) = await opened(f"fd://{sock.fileno()}")
        sock.detach()
    assert listener.socket.family == family
    await (await assert_talks(listener)).aclose()


async def test_the_file_of_an_inherited_unix_socket_is_its_creators(opened, tmp_path):
    path = tmp_path / "app.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        (listener,) = await opened(f"fd://{sock.fileno()}")
        sock.detach()
    await (await assert_talks(listener)).aclose()
    await listener.aclose()
    assert path.exists()


async def test_an_inherited_descriptor_is_closed_with_its_listener(opened):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        (listener,) = await opened(f"fd://{sock.fileno()}")
        descriptor = sock.detach()
    await listener.aclose()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


async def test_an_inherited_descriptor_stays_open_when_something_fails(taken):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        await refusal(f"fd://{sock.fileno()}", f"127.0.0.1:{taken}")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (socket.socket, "does not listen"),
        (lambda: socket.socket(type=socket.SOCK_DGRAM), "is not a TCP or unix stream socket"),
        (tempfile.TemporaryFile, "is not a socket"),
    ],
    ids=["not listening", "datagrams", "file"],
)
async def test_a_descriptor_that_is_no_listening_socket(make, complaint):
    with make() as thing:
        said = await refusal(f"fd://{thing.fileno()}")
        os.fstat(thing.fileno())  # still open
    assert said.startswith(f"cannot listen on fd://{said.split('//')[1].split(':')[0]}: the descriptor ")
    assert complaint in said


async def test_a_descriptor_that_is_not_open():
    assert "is not open" in await refusal("fd://987654")


# URLs


async def test_urls(opened, tmp_path):
    binds = ["127.0.0.1:0", f"unix:{tmp_path}/app.sock"] + ["[::1]:0"] * has_ipv6()
    listeners = await opened(*binds)
    port = address_of(listeners[0])[1]
    for tls, scheme in ((False, "http"), (True, "https")):
        urls = listener_urls(listeners, tls=tls)
        assert urls[:2] == [f"{scheme}://127.0.0.1:{port}", f"unix:{tmp_path}/app.sock"]
        if has_ipv6():
            assert urls[2:] == [f"{scheme}://[::1]:{address_of(listeners[2])[1]}"]


async def test_the_url_of_a_wrapped_listener_is_that_of_the_socket(opened):
    (listener,) = await opened("127.0.0.1:0")
    port = address_of(listener)[1]
    limited = LimitedListener(listener, trio.Semaphore(1))
    assert listener_urls([limited], tls=False) == [f"http://127.0.0.1:{port}"]
    assert listener_urls([trio.SSLListener(limited, None)], tls=False) == [f"https://127.0.0.1:{port}"]


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
async def test_the_url_of_an_inherited_abstract_socket(opened):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0trigi-test-{os.getpid()}")
        sock.listen()
        listeners = await opened(f"fd://{sock.fileno()}")
        sock.detach()
    assert listener_urls(listeners, tls=True) == [f"unix:@trigi-test-{os.getpid()}"]


async def test_a_listener_that_is_no_socket_is_called_by_its_class():
    assert listener_urls([MemoryListener()], tls=False) == ["MemoryListener"]


# Limits


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """Accepts what `connect` gives it."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel(inf)

    def connect(self) -> trio.testing.MemoryReceiveStream:
        client, server = trio.testing.memory_stream_pair()
        self._send.send_nowait(server)
        return client

    async def accept(self) -> trio.abc.Stream:
        return await self._receive.receive()

    async def aclose(self) -> None:
        await self._receive.aclose()


async def accepted_now(listener) -> trio.abc.Stream | None:
    """What accept() gives before everything waits; None when that is nothing."""
    result = None
    async with trio.open_nursery() as nursery:

        async def accept() -> None:
            nonlocal result
            result = await listener.accept()

        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return result


async def test_accepting_waits_while_the_limit_is_reached():
    slots = trio.Semaphore(2, max_value=2)
    inner = MemoryListener()
    listener = LimitedListener(inner, slots)
    for _ in range(3):
        inner.connect()
    assert await accepted_now(listener) is not None
    assert await accepted_now(listener) is not None
    assert await accepted_now(listener) is None
    slots.release()
    assert await accepted_now(listener) is not None
    assert slots.value == 0


async def test_a_waiting_accept_goes_on_when_a_connection_ends():
    slots = trio.Semaphore(1, max_value=1)
    inner = MemoryListener()
    listener = LimitedListener(inner, slots)
    inner.connect()
    inner.connect()
    await listener.accept()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.accept)
        await trio.testing.wait_all_tasks_blocked()
        slots.release()
    assert slots.value == 0


async def test_an_idle_listener_keeps_no_slot_from_another():
    slots = trio.Semaphore(1, max_value=1)
    idle, busy = MemoryListener(), MemoryListener()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(LimitedListener(idle, slots).accept)
        await trio.testing.wait_all_tasks_blocked()
        busy.connect()
        assert await accepted_now(LimitedListener(busy, slots)) is not None
        nursery.cancel_scope.cancel()
    assert slots.value == 0


async def test_a_connection_that_finds_the_last_slot_taken_by_another_listener_waits_for_the_next():
    slots = trio.Semaphore(1, max_value=1)
    first, second = MemoryListener(), MemoryListener()
    served = []

    async def accept(listener) -> None:
        served.append(await listener.accept())

    async with trio.open_nursery() as nursery:
        for inner in (first, second):
            nursery.start_soon(accept, LimitedListener(inner, slots))
        await trio.testing.wait_all_tasks_blocked()  # both wait for a client
        first.connect()
        second.connect()
        await trio.testing.wait_all_tasks_blocked()
        assert len(served) == 1
        slots.release()
    assert len(served) == 2


@pytest.mark.parametrize("connects", [False, True])
async def test_cancelling_accept_takes_no_slot(connects):
    slots = trio.Semaphore(1, max_value=1)
    inner = MemoryListener()
    if connects:
        inner.connect()
    with trio.CancelScope() as scope:
        scope.cancel()
        await LimitedListener(inner, slots).accept()
    assert scope.cancelled_caught
    assert slots.value == 1


async def test_cancelling_accept_while_it_waits_for_a_slot_takes_none():
    slots = trio.Semaphore(1, max_value=1)
    await slots.acquire()
    assert await accepted_now(LimitedListener(MemoryListener(), slots)) is None
    slots.release()
    assert slots.value == 1


async def test_a_connection_that_waits_for_a_slot_is_closed_when_accept_is_cancelled():
    slots = trio.Semaphore(1, max_value=1)
    inner = MemoryListener()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(LimitedListener(inner, slots).accept)
        await trio.testing.wait_all_tasks_blocked()  # it waits for a client
        await slots.acquire()
        client = inner.connect()
        await trio.testing.wait_all_tasks_blocked()  # it waits for a slot
        nursery.cancel_scope.cancel()
    assert await client.receive_some() == b""
    slots.release()


async def test_a_failing_accept_takes_no_slot():
    slots = trio.Semaphore(1, max_value=1)
    listener = LimitedListener(MemoryListener(), slots)
    await listener.aclose()
    for _ in range(3):
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()
    assert slots.value == 1


@pytest.mark.parametrize("full", [False, True])
async def test_closing_ends_an_accept_that_waits(full):
    slots = trio.Semaphore(1, max_value=1)
    if full:
        await slots.acquire()
    listener = LimitedListener(MemoryListener(), slots)
    with pytest.RaisesGroup(trio.ClosedResourceError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.accept)
            await trio.testing.wait_all_tasks_blocked()
            await listener.aclose()
    assert slots.value == (0 if full else 1)


async def test_a_limited_socket_listener_serves_as_many_as_it_may(opened):
    (listener,) = await opened("127.0.0.1:0")
    slots = trio.Semaphore(1, max_value=1)
    limited = LimitedListener(listener, slots)
    first = await trio.testing.open_stream_to_socket_listener(listener)
    second = await trio.testing.open_stream_to_socket_listener(listener)
    async with first, second, await limited.accept():
        assert await accepted_now(limited) is None
        slots.release()
        async with await limited.accept() as served:
            await second.send_all(b"second")
            assert await served.receive_some() == b"second"


# Accepting


async def connected(listener: trio.SocketListener | UnixListener) -> socket.socket:
    """A client that waits to be accepted."""
    client = socket.socket(listener.socket.family)
    client.connect(listener.socket.getsockname())
    return client


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "unix:{folder}/s"])
async def test_what_is_accepted_talks_at_once(opened, tmp_path, bind):
    (inner,) = await opened(bind.format(folder=tmp_path))
    listener = DirectListener(inner)
    with await connected(inner) as client:
        stream = await listener.accept()
        client.sendall(b"hello")
        assert await stream.receive_some() == b"hello"
        assert stream.direct.send_nowait(b"hello") == 5
        assert client.recv(10) == b"hello"
        if inner.socket.family == socket.AF_INET:  # small pieces do not wait for each other
            assert stream.direct.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # nor does the system take what nobody reads
                assert (
                    stream.direct.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
                    == UNSENT_SIZE
                )
        await stream.aclose()
    await listener.aclose()
    assert inner.socket.fileno() == -1


async def test_a_client_that_left_before_it_was_accepted_is_passed_over(opened, monkeypatch):
    (inner,) = await opened("127.0.0.1:0")
    listener = DirectListener(inner)
    errors = [OSError(number, os.strerror(number)) for number in GONE]
    accept = socket.socket.accept

    def accept_late(self):
        if errors:
            raise errors.pop()
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", accept_late)
    with await connected(inner):
        await (await listener.accept()).aclose()
    assert errors == []
    await listener.aclose()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EINVAL])
async def test_other_errors_are_raised(opened, monkeypatch, number):
    (inner,) = await opened("127.0.0.1:0")
    listener = DirectListener(inner)

    def fail(self):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(socket.socket, "accept", fail)
    with pytest.raises(OSError, match="Errno") as caught:
        await listener.accept()
    assert caught.value.errno == number
    await listener.aclose()


async def test_accepting_ends_when_the_listener_is_closed(opened):
    (inner,) = await opened("127.0.0.1:0")
    listener = DirectListener(inner)

    async def accept():
        with pytest.raises(trio.ClosedResourceError):
            await listener.accept()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        await trio.testing.wait_all_tasks_blocked()
        await listener.aclose()
    await accept()


async def test_accepting_is_cancelled_and_loses_nobody(opened):
    (inner,) = await opened("127.0.0.1:0")
    listener = DirectListener(inner)
    with await connected(inner):
        with trio.CancelScope() as scope:
            scope.cancel()
            await listener.accept()
        assert scope.cancelled_caught
        await (await listener.accept()).aclose()
    await listener.aclose()
