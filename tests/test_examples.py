"""Every file in examples/ does what its first lines say, run by the command that stands there."""

import ast
import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from tests.compliance.databases import running_postgresql

EXAMPLES = Path(__file__).parents[1] / "examples"
SECONDS = 30
"""What hangs is given up after this."""


class Example:
    """One file, run in an empty folder that has `examples` in it.

    Attributes:
        environ: its environment.
        url: where it listens, once it does.
    """

    def __init__(self, path, folder):
        self.path = path
        self.folder = folder
        self.url = ""
        self._output = folder / "stdout"
        self._errors = folder / "stderr"
        (folder / "examples").symlink_to(EXAMPLES)
        # no settings of whoever runs the tests; and a port that the system chooses, unless the command says otherwise
        environ = {name: value for name, value in os.environ.items() if not name.startswith("TRIGI_")}
        self.environ = environ | {
            "TRIGI_PORT": "0",
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_ADDOPTS": "-p no:cacheprovider",
        }

    @property
    def output(self):
        """What it has printed."""
        return self._output.read_text()

    @property
    def command(self):
        """The first command in its docstring."""
        docstring = ast.get_docstring(ast.parse(self.path.read_text()))
        line = re.search(r"^ {4}python (.*?)(?: {2,}\(.*)?$", docstring, re.MULTILINE)
        assert line, f"the docstring of {self.path.name} does not say how to run it"
        return [sys.executable, *shlex.split(line[1])]

    @contextmanager
    def started(self):
        """Run it meanwhile; it must end well by itself, or be ended in the block."""
        with self._output.open("w") as output, self._errors.open("w") as errors:
            process = subprocess.Popen(
                self.command, cwd=self.folder, env=self.environ, stdout=output, stderr=errors
            )
        try:
            yield process
            status = process.wait(SECONDS)
        finally:
            process.kill()
            process.wait()
        errors = self._errors.read_text()
        assert status == 0, errors
        assert "Traceback" not in errors
        assert " ERROR " not in errors

    @contextmanager
    def serving(self):
        """Run it until the block ends; it must stop gracefully when it is told to."""
        with self.started() as process:
            self.url = self.wait_for(r"listening on (\S+)", self._errors)[1]
            yield
            process.send_signal(signal.SIGTERM)

    def wait_for(self, pattern, file=None):
        """Wait until it has printed this."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            if found := re.search(pattern, (file or self._output).read_text()):
                return found
            time.sleep(0.01)
        raise AssertionError(f"no {pattern!r} in {self.output}{self._errors.read_text()}")


def hello(example):
    with example.serving():
        response = httpx.get(example.url)
    assert (response.status_code, response.text) == (200, "Hello\n")


def streaming(example):
    with example.serving(), httpx.stream("GET", example.url) as response:
        pieces = list(response.iter_raw())
    assert b"".join(pieces) == b"5\n4\n3\n2\n1\nlift-off\n"
    assert len(pieces) > 1


def upload(example):
    body = b"0123456789" * 100_000
    with example.serving():
        response = httpx.post(example.url, content=body)
    assert response.text == f"1000000 bytes, sha256 {hashlib.sha256(body).hexdigest()}\n"


def disconnect(example):
    with example.serving():
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(example.url, timeout=0.5)
        folder = Path(example.wait_for("working in (.*)")[1])
        example.wait_for("cleaned up")
    assert not folder.exists()


def background(example):
    with example.serving(), httpx.Client(base_url=example.url) as client:
        first = client.post("/", content=b"Ada")
        second = client.post("/", content=b"Bob")
        assert "letter" not in example.output
    assert first.text == second.text == "accepted\n"
    # The server was told to stop meanwhile, and has let both end.
    assert "welcome letter to Ada written" in example.output
    assert "welcome letter to Bob written" in example.output


def send_file(example):
    with example.serving(), httpx.Client(base_url=example.url) as client:
        response = client.get("/send_file.py")
        assert response.content == example.path.read_bytes()
        assert response.headers["content-length"] == str(len(response.content))
        assert response.headers["content-type"] == "text/x-python"
        assert client.get("/nothing").status_code == 404


def background_nursery(example):
    with example.serving():
        assert httpx.post(example.url, content=b"Ada").text == "accepted\n"
        assert "letter" not in example.output
    assert "welcome letter to Ada written" in example.output


def websocket_echo(example):
    with example.serving():
        with connect(example.url.replace("http", "ws")) as websocket:
            websocket.send("text")
            assert websocket.recv() == "text"
            websocket.send(b"bytes")
            assert websocket.recv() == b"bytes"
            websocket.close(4001, "enough")
        example.wait_for("closed with 4001 'enough'")


def lifespan_state(example):
    with example.serving():
        response = httpx.get(example.url)
    assert re.fullmatch(r"\d+\.\d °C\n", response.text)
    assert example.output.endswith("sensor released\n")


def embed_in_trio(example):
    with example.started():
        url = example.wait_for(r"progress at (\S+)")[1]
        assert re.fullmatch(r"\d+ of 20 steps\n", httpx.get(url).text)
    assert example.output.endswith("the work is done, and the server has stopped\n")


def unix_socket(example):
    with example.serving():
        file = example.folder / "hello.sock"
        assert file.stat().st_mode & 0o777 == 0o660
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(file))) as client:
            response = client.get("http://localhost/")
    assert response.text == "Hello from hello.sock\n"
    assert not file.exists()


def asgi2(example):
    with example.serving():
        response = httpx.post(example.url + "/path", content=b"hello")
    assert response.text == "POST /path with 5 bytes\n"


def wsgi_flask(example):
    with example.serving(), httpx.Client(base_url=example.url) as client:
        assert client.get("/hello/Ada").text == "Hello, Ada\n"
        assert client.post("/upload", content=b"x" * 1_000_000).text == "1000000 bytes\n"
        assert client.get("/count/3").text == "0\n1\n2\n"


def django_wsgi(example):
    with example.serving(), httpx.Client(base_url=example.url) as client:
        assert client.get("/hello/Ada").text == "Hello, Ada\n"
        assert client.get("/source").content == example.path.read_bytes()
        assert client.get("/nothing").status_code == 404


def starlette_app(example):
    with example.serving():
        with httpx.Client(base_url=example.url) as client:
            assert client.get("/").json() == {"weather": "took 0.1 s", "news": "took 0.2 s"}
            assert client.get("/count/3").text == "0\n1\n2\n"
        with connect(example.url.replace("http", "ws") + "/shout") as websocket:
            websocket.send("hello")
            assert websocket.recv() == "HELLO"
    for line in ("opened", "home was visited", "closed"):
        assert f"{line}\n" in example.output


def fastapi_app(example):
    with example.serving(), httpx.Client(base_url=example.url) as client:
        assert client.get("/items/7").json() == {"number": 7, "name": "seven"}
        assert client.get("/sum?a=1&b=2").json() == {"sum": 3}
        assert client.get("/sum?a=1").status_code == 422
    assert "session opened\nsession closed\n" in re.sub(r".*HTTP/1.1.*\n", "", example.output)


def fastapi_asyncpg(example):
    with running_postgresql() as url:
        example.environ["DATABASE_URL"] = url
        with example.serving(), httpx.Client(base_url=example.url) as client:
            assert client.post("/notes", json={"text": "tea"}).json() == {"id": 1}
            assert client.post("/notes", json={"text": "cake"}).json() == {"id": 2}
            assert client.get("/notes").json() == ["tea", "cake"]
            assert client.post("/notes", json={}).status_code == 422
    assert example.output.startswith("pool opened\n")
    assert example.output.endswith("pool closed\n")


def sync_code(example):
    with example.serving(), httpx.Client(base_url=example.url) as client:
        assert client.get("/planets").text == "Mercury\nVenus\n"
        example.wait_for("/planets: closed")
        with pytest.raises(httpx.ReadTimeout):
            client.get("/forever", timeout=0.5)
        example.wait_for("/forever: closed")


def django_asgi(example):
    with example.serving(), httpx.Client(base_url=example.url) as client:
        assert client.get("/").text == "Hello from Django\n"
        assert client.post("/notes", data={"text": "tea"}).json() == {"id": 1}
        assert client.get("/notes").json() == {"notes": ["tea"]}
        assert client.get("/countdown").text == "3\n2\n1\nlift-off\n"


def channels_chat(example):
    with example.serving():
        url = example.url.replace("http", "ws")
        with connect(f"{url}/rooms/tea") as one, connect(f"{url}/rooms/tea") as two:
            one.send("hello")
            assert one.recv() == two.recv() == "hello"
        example.wait_for("left with 1000")


def many_streams(example):
    with example.serving():
        with (
            httpx.Client(base_url=example.url, http1=False, http2=True) as client,
            client.stream("GET", "/slow") as slow,
        ):
            pieces = slow.iter_text()
            assert next(pieces) == "1\n"
            quick = client.get("/quick")  # meanwhile
            assert (quick.text, quick.http_version) == ("done\n", "HTTP/2")
            assert next(pieces)
        counted = example.wait_for(r"counted to (\d+)\n")[1]
    assert int(counted) < 100
    assert len(set(re.findall(r"from port (\d+)", example.output))) == 1


def live(example):
    with example.serving():
        response = httpx.get(example.url)
    assert response.text == (EXAMPLES / "live.html").read_text()


def with_pytest(example):
    """A file of tests, under whatever settings of pytest; its own command says how to run it from the checkout."""
    with example.started():
        pass
    assert re.search(r"\d+ passed", example.output)


CHECKS = {
    "asgi2.py": asgi2,
    "background.py": background,
    "background_nursery.py": background_nursery,
    "channels_chat.py": channels_chat,
    "disconnect.py": disconnect,
    "django_asgi.py": django_asgi,
    "django_wsgi.py": django_wsgi,
    "embed_in_trio.py": embed_in_trio,
    "fastapi_app.py": fastapi_app,
    "fastapi_asyncpg.py": fastapi_asyncpg,
    "hello.py": hello,
    "lifespan_state.py": lifespan_state,
    "live.py": live,
    "many_streams.py": many_streams,
    "send_file.py": send_file,
    "starlette_app.py": starlette_app,
    "streaming.py": streaming,
    "sync_code.py": sync_code,
    "testing_an_app.py": with_pytest,
    "testing_over_tls.py": with_pytest,
    "unix_socket.py": unix_socket,
    "upload.py": upload,
    "websocket_echo.py": websocket_echo,
    "wsgi_flask.py": wsgi_flask,
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example(path, tmp_path):
    assert path.name in CHECKS, f"{path.name} needs an entry in CHECKS"
    CHECKS[path.name](Example(path, tmp_path))


def test_the_index_lists_every_example():
    listed = re.findall(r"^\| \[(.*?)\]\(\1\) \|", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.py"))
