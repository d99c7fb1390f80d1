"""The picture in docs/explanation/architecture.md is true: layers, single importers, no cycles."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

import trigi

ROOT = Path(trigi.__file__).parent
MODULES = {
    ".".join(("trigi", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in ROOT.rglob("*.py")
}

# What each part may import of trigi, beside itself and what lies below everything.
FOUNDATION = {"trigi.typing", "trigi.exceptions", "trigi.config", "trigi._version"}
LAYERS = {
    "trigi._protocol": set(),
    "trigi._connection": {"trigi._protocol"},
    "trigi._threads": set(),
    "trigi._handover": set(),
    "trigi._crossing": {"trigi._threads", "trigi._handover"},
    "trigi.sync": {"trigi._crossing", "trigi._threads"},
    "trigi.adapters": {"trigi.sync"},
    "trigi.logs": {"trigi._protocol", "trigi._connection", "trigi._access_format"},
    "trigi._access_format": {"trigi._protocol", "trigi._connection"},
    "trigi._checks": {"trigi._protocol"},
    "trigi.lint": {"trigi._protocol", "trigi._checks"},
    "trigi._server": {"trigi._protocol", "trigi._connection", "trigi.adapters", "trigi.logs", "trigi.lint"},
    "trigi.testing": {"trigi._protocol", "trigi._connection", "trigi._server"},
    "trigi._settings": set(),
    "trigi.cli": {"trigi._settings", "trigi._server"},
    "trigi.__main__": {"trigi.cli"},
}

# Libraries that only one module imports, so that replacing one is a change to one file.
SINGLE_IMPORTERS = {
    "h11": {"trigi._protocol.http1_h11", "trigi.testing.clients"},
    "httptools": {"trigi._protocol.http1_httptools"},
    "h2": {"trigi._protocol.http2_h2"},
    "hpack": {"trigi._protocol.http2_h2", "trigi.testing.http2"},
    "wsproto": {"trigi._protocol.websocket", "trigi.testing.websocket"},
    "websockets": {"trigi._protocol.websocket_frames"},
    "socket": {
        "trigi._server.bind",
        "trigi._server.listeners",
        "trigi._connection.direct",
        "trigi._connection.direct_tls",
        "trigi._connection.socket_stream",
        "trigi._connection.tls_stream",
        "trigi.adapters._asyncio_crossing",
    },
    "ssl": {
        "trigi._server.tls",
        "trigi._server.listeners",
        "trigi._connection.direct_tls",
        "trigi._connection.tls_stream",
    },
    "asyncio": {
        "trigi.adapters.asyncio",
        "trigi.adapters._asyncio_call",
        "trigi.adapters._asyncio_crossing",
        "trigi.adapters._asyncio_loop",
        "trigi.adapters._asyncio_task",
    },
    "argparse": {"trigi._settings"},
    "tomllib": {"trigi._settings"},
}
SANS_IO = {"trio", "socket", "ssl", "time", "logging", "asyncio", "selectors", "threading"}


def imports(name):
    """The modules that a module imports, absolutely named, wherever in it the import stands."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            for alias in node.names:
                submodule = f"{module}.{alias.name}"
                found.add(submodule if submodule in MODULES else module)
    return found


def part_of(name):
    """The part of trigi that a module belongs to, `None` for the foundation."""
    return next((part for part in LAYERS if name == part or name.startswith(part + ".")), None)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_one_way(name):
    part = part_of(name)
    for imported in imports(name):
        if not imported.startswith("trigi") or imported in FOUNDATION or name == "trigi":
            continue
        assert part is not None, f"{name} belongs to no part: add it to LAYERS"
        assert part_of(imported) in LAYERS[part] | {part}, f"{name} imports {imported}"


@pytest.mark.parametrize("name", sorted(FOUNDATION))
def test_the_foundation_imports_nothing_of_the_rest(name):
    assert {imported for imported in imports(name) if imported.startswith("trigi")} <= FOUNDATION


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("trigi._protocol")))
def test_the_protocol_layer_is_sans_io(name):
    assert not SANS_IO & {imported.partition(".")[0] for imported in imports(name)}


@pytest.mark.parametrize("library", sorted(SINGLE_IMPORTERS))
def test_a_library_is_imported_where_it_belongs(library):
    importers = {name for name in MODULES if library in {each.partition(".")[0] for each in imports(name)}}
    assert importers == SINGLE_IMPORTERS[library] & importers
    assert importers >= {name for name in SINGLE_IMPORTERS[library] if not name.startswith("trigi.testing")}


def test_no_module_imports_itself_through_others():
    graph = {name: {each for each in imports(name) if each in MODULES} for name in MODULES}
    done = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for imported in graph[name]:
                visit(imported, [*path, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_no_import_is_hidden_from_the_interpreter():
    assert not [name for name, path in MODULES.items() if "TYPE_CHECKING" in path.read_text()]


def test_only_known_libraries_are_imported():
    """What `pyproject.toml` names: without `trigi[fast]` httptools and websockets are not there."""
    third_party = {
        imported.partition(".")[0]
        for name in MODULES
        for imported in imports(name)
        if imported.partition(".")[0] not in sys.stdlib_module_names
    }
    assert third_party == {"trigi", "trio", "h11", "h2", "hpack", "httptools", "websockets", "wsproto"}


# What mypyc compiles wrongly: CONTRIBUTING.md says how

CHECKOUT = Path(__file__).parent.parent
HOOK = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"][
    "hooks"
]["custom"]
COMPILED = sorted(
    path
    for layer in HOOK["compiled"]
    for path in (CHECKOUT / layer).glob("*.py")
    if str(path.relative_to(CHECKOUT)) not in HOOK["interpreted"]
)


def test_what_is_interpreted_is_there():
    assert all((CHECKOUT / name).is_file() for name in HOOK["interpreted"])
    assert len(COMPILED) > 20


@pytest.mark.parametrize("path", COMPILED, ids=lambda path: path.stem)
def test_nothing_that_is_compiled_awaits_in_a_finally(path):
    """There an exception is raised again that somebody else is handling."""
    for node in ast.walk(ast.parse(path.read_text())):
        for statement in getattr(node, "finalbody", []):
            waits = ast.Await | ast.AsyncWith | ast.AsyncFor
            assert not any(isinstance(each, waits) for each in ast.walk(statement)), (
                f"line {statement.lineno}"
            )


@pytest.mark.parametrize("path", COMPILED, ids=lambda path: path.stem)
def test_nothing_that_is_compiled_derives_from_an_abstract_class_of_others(path):
    """It would share the memory of what is an instance with that class, and be taken for it."""
    for node in ast.walk(ast.parse(path.read_text())):
        for base in getattr(node, "bases", []):
            assert not isinstance(base, ast.Attribute), f"line {node.lineno}: {ast.unparse(base)}"
