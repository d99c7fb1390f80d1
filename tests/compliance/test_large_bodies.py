"""Bodies larger than a server's memory should ever be, through a process of its own, whose memory the kernel counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

GIB = 1024**3
MIB = 1024**2

MEMORY = 100 * MIB
"""What the process may have resident at most, of which Python and its libraries take some 40 MiB."""

SECONDS = 120.0
"""What curl may take for a GiB; it should be a few seconds."""

FOLDER = str(Path(__file__).parent)


@pytest.fixture
def server(serve_process):
    if not Path("/proc/self/status").exists():
        pytest.skip("what memory a process has is read from /proc, which this system has not")
    return serve_process("--app-dir", FOLDER, "--lifespan", "off", "large_bodies_app:app")


async def test_an_upload_of_a_gib_in_chunks(server, curl):
    curl_ = f"curl -q -sS --noproxy '*' --max-time {SECONDS} -T - {server.url}"
    answer = await trio.run_process(f"head -c {GIB} /dev/zero | {curl_}", shell=True, capture_stdout=True)
    assert answer.stdout.decode() == f"{GIB}\n"
    assert server.peak_memory < MEMORY


async def test_an_upload_of_a_gib_with_a_length(server, curl, tmp_path):
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(GIB)
    answer = await curl("-T", str(path), server.url, seconds=SECONDS)
    assert answer.out.decode() == f"{GIB}\n"
    assert server.peak_memory < MEMORY
    path.unlink()


async def test_a_download_of_a_gib(server, curl):
    url = f"{server.url}/{GIB}"
    answer = await curl("-o", "/dev/null", "-w", "%{size_download}", url, seconds=SECONDS)
    assert answer.out.decode() == str(GIB)
    assert server.peak_memory < MEMORY


async def download(curl, url):
    answer = await curl("-o", "/dev/null", "-w", "%{size_download}", url)
    assert answer.out.decode() == url.rsplit("/", 1)[1]


async def test_downloads_of_clients_that_stall(server, curl):
    """Ten clients ask for 64 MiB each and read nothing for now: what waits is in the kernel, not in the server."""
    size = 64 * MIB
    before = server.peak_memory
    streams = []
    for _ in range(10):
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        await stream.send_all(f"GET /{size} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        assert (await stream.receive_some(12)) == b"HTTP/1.1 200"
        streams.append(stream)
    # The server has sent what it could, to each: another client's request is answered only after that.
    for _ in range(10):
        await download(curl, f"{server.url}/{MIB}")
    assert server.peak_memory - before < 20 * MIB
    assert server.peak_memory < MEMORY

    received = {}

    async def read(stream):
        count = 12
        async for data in stream:
            count += len(data)
        received[stream] = count
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(read, stream)
    assert set(received) == set(streams)
    assert all(size < count < size + 1000 for count in received.values())
    assert server.peak_memory < MEMORY


async def test_a_single_message_of_64_mib_to_a_client_that_stalls(server, curl):
    """The application has made it: the server must not make it again, for as long as it waits."""
    size = 64 * MIB
    stream = await trio.open_tcp_stream("127.0.0.1", server.port)
    await stream.send_all(f"GET /whole/{size} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    assert (await stream.receive_some(12)) == b"HTTP/1.1 200"
    before = server.memory
    for _ in range(10):
        await download(curl, f"{server.url}/{MIB}")
    assert server.memory - before < 10 * MIB
    count = 12
    async for data in stream:
        count += len(data)
    await stream.aclose()
    assert size < count < size + 1000
    assert server.peak_memory < MEMORY + size


async def test_uploads_to_an_application_that_does_not_read(serve_process, tmp_path):
    """Twenty clients send as much as is taken: what waits is one message each, and the rest is in the kernel."""
    (tmp_path / "idle_app.py").write_text(IDLE, encoding="utf-8")
    server = serve_process(
        "--app-dir", str(tmp_path), "--lifespan", "off", "--graceful-timeout", "0", "idle_app:app"
    )
    before = server.peak_memory
    sent = []

    async def upload():
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        await stream.send_all(b"PUT / HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000\r\n\r\n")
        count = 0
        with trio.move_on_after(SECONDS) as patience:
            while True:
                await stream.send_all(bytes(65536))
                count += 65536
                patience.deadline = trio.current_time() + 0.5  # no more is taken
        sent.append(count)
        await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(upload)
    assert len(sent) == 20
    assert max(sent) < 100 * MIB
    assert server.peak_memory - before < 20 * MIB


IDLE = """
import trio

async def app(scope, receive, send):
    await trio.sleep_forever()
"""
