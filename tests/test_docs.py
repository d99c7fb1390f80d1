"""What README and docs/ say is so: code runs, options and settings exist, generated pages are fresh, links lead on."""

import importlib
import re
import runpy
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

import trigi
from trigi import _settings
from trigi._server.application import to_asgi3
from trigi.logs import ATOMS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "examples/README.md")),
        *DOCS.rglob("*.md"),
    ]
)
GENERATED = {DOCS / "reference" / "settings.md", DOCS / "reference" / "states.md"}
PUBLIC = [
    "",
    ".adapters",
    ".adapters.asyncio",
    ".exceptions",
    ".lint",
    ".logs",
    ".sync",
    ".testing",
    ".testing.websocket",
    ".typing",
]
OTHERS = {"--no-buffer", "proxy_read_timeout", "cancel_timeout", "close_timeout"}
"""Options and settings in these pages that are another program's, or an adapter's."""
UNITS = {"": 1, "s": 1, "seconds": 1, "KiB": 2**10, "MiB": 2**20}


class Block(NamedTuple):
    """A block of code in a page, and the line that it begins in."""

    page: Path
    line: int
    text: str

    def __str__(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*languages):
    """The fenced blocks of all pages in these languages."""
    return [
        Block(page, page.read_text()[: found.start()].count("\n") + 1, found[2])
        for page in PAGES
        for found in re.finditer(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
        if found[1] in languages
    ]


def prose(page):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def relative(path):
    return str(path.relative_to(ROOT))


every_page = pytest.mark.parametrize("page", PAGES, ids=relative)


# Code


def run(folder, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python(block, tmp_path, monkeypatch):
    """A file of tests passes, a program runs to its end, and what defines an application can be imported."""
    file = tmp_path / "test_block.py"
    file.write_text(block.text)
    if "def test_" in block.text:
        run(tmp_path, "-m", "pytest", "-p", "no:cacheprovider", file)
    elif "trio.run(" in block.text:
        if "cert.pem" in block.text:
            certificate = trustme.CA().issue_cert("localhost")
            certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
            certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
        run(tmp_path, file)
    else:
        monkeypatch.chdir(tmp_path)
        names = runpy.run_path(str(file))
        if "app" in names:
            to_asgi3(names["app"], "auto")


# Command lines, settings


def trigi_arguments(command):
    """The arguments of a command that runs trigi, `None` for one that does not."""
    words = shlex.split(command)
    for index, word in enumerate(words):
        if word == "trigi" and words[index - 1] == "-m":
            return words[index + 1 :]
        if word == "trigi" or word.endswith("/trigi"):
            return words[index + 1 :]
    return None


def commands(block):
    lines = block.text.replace("\\\n", " ").splitlines()
    lines = [line.removeprefix("ExecStart=") for line in lines]
    return [command for line in lines for command in line.split(" && ")]


COMMANDS = [
    pytest.param(arguments, id=f"{block}:{' '.join(arguments)}")
    for block in blocks("sh", "ini")
    for command in commands(block)
    if (arguments := trigi_arguments(command)) is not None
]


@pytest.mark.parametrize("arguments", COMMANDS)
def test_command_line(arguments):
    """It is understood: options exist, values are allowed, and there is an application or a file that names one."""
    given = _settings.read_command_line(arguments)
    assert {"app", "config"} & given.keys()


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_toml(block, tmp_path):
    file = tmp_path / "trigi.toml"
    file.write_text(block.text)
    target, _ = _settings.read_settings(["--config", str(file)], {})
    assert target


@every_page
def test_options_exist(page):
    known = {option for name in _settings.SETTINGS for option in _settings.long_options(name)}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", prose(page)))
    assert named <= known | OTHERS | {"--help", "--version"}


@every_page
def test_settings_exist(page):
    text = page.read_text()
    named = {name.lower() for name in re.findall(r"TRIGI_([A-Z][A-Z_]*[A-Z])", text)}
    named |= set(re.findall(r"`([a-z0-9_]+_(?:timeout|limit|interval|grace|size))`", text))
    assert named <= _settings.SETTINGS.keys() | OTHERS


@every_page
def test_defaults_are_so(page):
    """In tables as `` `name` | `10 s` | ``, and in sentences as `` `name` (10 s)``."""
    if page in GENERATED:
        return
    for name, default in re.findall(r"\| `([a-z0-9_]+)` \| `([^`]+)` \|$", page.read_text(), re.MULTILINE):
        assert default == _settings.default_text(_settings.SETTINGS[name]), name
    for name, number, unit in re.findall(r"`([a-z0-9_]+)` \(([\d.]+) ?(\w*)(?: by default)?\)", prose(page)):
        if name in OTHERS:
            continue
        assert float(number) * UNITS[unit] == _settings.SETTINGS[name].default, name


# Pages


def test_settings_page_is_fresh():
    """`python -m trigi._settings > docs/reference/settings.md`."""
    assert (DOCS / "reference" / "settings.md").read_text() == _settings.settings_reference()


def test_states_page_is_fresh():
    """`python docs/states.py > docs/reference/states.md`."""
    states_page = runpy.run_path(str(DOCS / "states.py"))["states_page"]
    assert (DOCS / "reference" / "states.md").read_text() == states_page()


def test_every_public_name_is_in_the_reference():
    text = "".join((DOCS / "reference" / page).read_text() for page in ("api.md", "exceptions.md"))
    for module in PUBLIC:
        for name in importlib.import_module(f"trigi{module}").__all__:
            assert re.search(rf"`(await |trigi\.)*{re.escape(name)}\b", text), f"trigi{module}.{name}"


def test_every_atom_is_in_the_reference():
    text = (DOCS / "reference" / "access-log.md").read_text()
    rows = re.findall(r"^\| `%\((\w)\)s` \| (.*) \|$", text, re.MULTILINE)
    assert rows == [(name, atom.meaning) for name, atom in ATOMS.items()]


def test_the_map_of_modules_is_complete():
    text = (DOCS / "explanation" / "architecture.md").read_text()
    named = Counter(re.findall(r"^[│ ]*[├└]── (\w+\.py)\b", text, re.MULTILINE))
    there = Counter(path.name for path in Path(trigi.__file__).parent.rglob("*.py"))
    named.pop("__init__.py")
    there.pop("__init__.py")
    assert named == there


def test_the_exceptions_tree_is_complete():
    tree = (DOCS / "reference" / "exceptions.md").read_text().partition("```text")[2].partition("```")[0]
    assert set(re.findall(r"[A-Z]\w+", tree)) - {"ASGI", "HTTP", "ValueError", "OSError"} == set(
        trigi.exceptions.__all__
    )


def anchors(page):
    """What a link into a page may name, as the forges make it from headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page):
    return [
        target
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page))
        if not target.startswith(("https://", "http://"))
    ]


@every_page
def test_links_lead_somewhere(page):
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_index():
    listed = {(DOCS / link).resolve() for link in links(DOCS / "index.md")}
    assert listed >= set(DOCS.rglob("*.md")) - {DOCS / "index.md"}


def test_ci_finds_the_test_command():
    """As `.ci/run` extracts it: the block of one line behind the comment."""
    text = (ROOT / "README.md").read_text()
    found = re.search(r"^<!-- the test command -->\n```sh\n(.*)\n```$", text, re.MULTILINE)
    assert found
    assert found[1].startswith("python3 -m venv .venv-test && .venv-test/bin/pip install ")
    assert found[1].endswith(" && .venv-test/bin/python -m pytest")
