"""From the command line, the environment and a TOML file to the target and its `Config`.

Each source is read into a `Source`: the settings that it gives, each checked, and each with the place it came
from, so that an error can name that place. `merge` lays them over each other: the command line over the
environment over the file over the defaults. All of it is made from the fields of `Config`, and from the few
settings of this file that say what to serve, and where to bind in fewer words.

`python -m trigi._settings` writes the settings reference of the documentation.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ._version import __version__
from .config import Config, Setting
from .exceptions import ConfigError

__all__ = ["read_settings", "settings_reference"]


class Given(NamedTuple):
    """A value, and where it came from: `"--port"`, `"TRIGI_PORT"`, `"trigi.toml: port"`."""

    value: Any
    origin: str


Source = Mapping[str, Given]
"""What one source gives, by the names of the settings."""

CONFIG_FIELDS: dict[str, Setting] = {field.name: field.metadata["setting"] for field in fields(Config)}
SHORTHANDS = {
    "host": Setting(
        default="127.0.0.1",
        kind="text",
        group="Binding",
        help="Address or name to listen on, with the port: short for a bind.",
        metavar="HOST",
    ),
    "port": Setting(
        default=8000,
        kind="whole",
        group="Binding",
        help="TCP port to listen on, with the host: short for a bind. The system chooses for 0.",
        metavar="PORT",
        minimum=0,
        maximum=65535,
    ),
    "uds": Setting(
        default=None,
        kind="text",
        group="Binding",
        help="Unix socket to listen on: short for a bind to unix:PATH.",
        metavar="PATH",
    ),
    "fd": Setting(
        default=None,
        kind="whole",
        group="Binding",
        help="Open socket to listen on, by its file descriptor: short for a bind to fd://N.",
        minimum=0,
        maximum=2**31 - 1,
    ),
}
SETTINGS = {
    "app": Setting(
        default=None,
        kind="text",
        group="Application",
        help="What to serve: a module, and the application in it. With wsgi: in front it is a WSGI application.",
        metavar="MODULE:ATTRIBUTE",
    ),
    "config": Setting(
        default=None,
        kind="text",
        group="Application",
        help="TOML file of settings, by their names, without tables. It cannot name another.",
        metavar="FILE",
    ),
    **SHORTHANDS,
    **CONFIG_FIELDS,
}
GROUP_NOTES = {
    "Binding": "Addresses of one source add up, and replace a lower one's; host and port may come from two.",
    "Timeouts": "The longest that something is waited for, in seconds; inf waits for ever.",
    "Limits": "Whole numbers, with KiB, MiB or GiB behind them if they count bytes; inf is no limit.",
}
PRECEDENCE = (
    "Each setting can also be given in the environment (TRIGI_HEADER_TIMEOUT=5) and in a TOML file "
    "(header_timeout = 5). The command line wins over the environment, and the environment over the file."
)
REFERENCE_NOTES = """\
A name is a key of the file and a keyword of `trigi.Config`; but `Config` knows `bind` only, not `host`,
`port`, `uds` and `fd`, and `app` goes to `trigi.run` beside it. `--config FILE` or `TRIGI_CONFIG` names the
file. What is unknown is an error everywhere, also a variable that begins with `TRIGI_`.

In the environment, addresses are separated by blanks or commas, and a flag is one of `1`, `true`, `yes`, `on`
and `0`, `false`, `no`, `off`. In the file, values have TOML's types, but a size may also be a string
(`"16 MiB"`), and a mode is `"660"` or `0o660`.
"""
METAVARS = {"seconds": "SECONDS", "size": "SIZE", "whole": "N", "mode": "MODE"}
FLAGS = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(("0", "false", "no", "off"), False)
SIZES = {None: 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def read_settings(arguments: Sequence[str], environ: Mapping[str, str]) -> tuple[str, Config]:
    """The target and the settings that the command line, the environment, and the file they may name, give.

    Args:
        arguments: the command line, without the name of the command.
        environ: the environment; only variables that begin with `TRIGI_` are looked at.

    Raises:
        ConfigError: a setting is unknown or wrong, the file cannot be read, or there is no target. One line.
        SystemExit: `--help` or `--version` was asked for, and is printed.
    """
    command_line, environment = read_command_line(arguments), read_environment(environ)
    file = command_line.get("config") or environment.get("config")
    return merge([read_file(*file) if file else {}, environment, command_line])


def merge(sources: Sequence[Source]) -> tuple[str, Config]:
    """The target and the settings of all sources, the lowest first."""
    given = {name: entry for source in sources for name, entry in source.items()}
    if "app" not in given:
        raise ConfigError("no application is given: expected MODULE:ATTRIBUTE, as in trigi main:app")
    values = {name: entry.value for name, entry in given.items() if name in CONFIG_FIELDS}
    try:
        return given["app"].value, Config(**values | merge_binds(sources))
    except ConfigError as error:  # of a combination: each value by itself has been checked
        name, _, complaint = str(error).partition(": ")
        raise ConfigError(f"{given[name].origin}: {complaint}") from None


def merge_binds(sources: Sequence[Source]) -> dict[str, tuple[str, ...]]:
    """What all sources, the lowest first, say about `bind`, directly and in shorthand; empty if they don't.

    In one source, `bind` and shorthands add up. A source that says anything replaces what lower ones say, but
    its host may meet the port of a lower one, and its port the host.
    """
    binds: list[str] = []
    tcp: dict[str, Any] = {}
    for source in sources:
        said = {name: source[name].value for name in ("bind", *SHORTHANDS) if name in source}
        if not said:
            continue
        tcp = {**tcp, **said} if "host" in said or "port" in said else {}
        binds = [*said.get("bind", ())]
        if tcp:
            host, port = (tcp.get(name, SHORTHANDS[name].default) for name in ("host", "port"))
            is_ipv6 = ":" in host and not host.startswith("[")
            binds.append(f"[{host}]:{port}" if is_ipv6 else f"{host}:{port}")
        if "uds" in said:
            binds.append(f"unix:{said['uds']}")
        if "fd" in said:
            binds.append(f"fd://{said['fd']}")
    return {"bind": tuple(binds)} if binds else {}


# The sources


def read_command_line(arguments: Sequence[str]) -> Source:
    """What the command line gives."""
    namespace, rest = make_parser().parse_known_args(arguments)
    options = [argument.partition("=")[0] for argument in rest if argument.startswith("-")]
    if options:  # looked at first: what follows an unknown option may be its value
        known = ["help", "version", *(s[2:] for name in SETTINGS for s in long_options(name))]
        raise unknown(options[0], "option", options[0].lstrip("-"), known, "--{}".format)
    if rest:
        raise ConfigError(f"{rest[0]}: one argument too many: the application is {namespace.app}")
    return {
        name: give(name, value, "MODULE:ATTRIBUTE" if name == "app" else long_options(name)[0], is_text=True)
        for name, value in vars(namespace).items()
    }


def read_environment(environ: Mapping[str, str]) -> Source:
    """What the environment gives, in variables that begin with `TRIGI_`."""
    source = {}
    for spelled, text in environ.items():
        if spelled.startswith("TRIGI_"):
            name = spelled.removeprefix("TRIGI_").lower()
            if variable(name) != spelled or name not in SETTINGS:
                raise unknown(spelled, "setting", name, SETTINGS, variable)
            source[name] = give(name, text, spelled, is_text=True)
    return source


def read_file(path: str, origin: str) -> Source:
    """What a TOML file gives, by settings' names at its top level.

    Args:
        path: where it is.
        origin: what named it.
    """
    try:
        values = tomllib.loads(Path(path).read_bytes().decode())
    except OSError as error:
        raise ConfigError(f"{origin}: cannot read {path!r}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"{path}: not a TOML file: {error}") from None
    known = [name for name in SETTINGS if name != "config"]
    for name in values:
        if name not in known:
            raise unknown(f"{path}: {name}", "setting", name, known, str)
    return {
        name: give(name, value, f"{path}: {name}", is_text=SETTINGS[name].kind in {"size", "mode"})
        for name, value in values.items()
    }


def give(name: str, value: object, origin: str, *, is_text: bool) -> Given:
    """A checked value with its origin.

    Args:
        name: the setting's name.
        value: its value.
        origin: what an error calls it.
        is_text: if the value is a string, it is text that stands for the value.
    """
    if is_text and isinstance(value, str):
        value = parse(SETTINGS[name].kind, value)
    return Given(SETTINGS[name].check(value, origin), origin)


def parse(kind: str, text: str) -> object:
    """What a text stands for; if it stands for nothing, the text itself, for `Setting.check` to refuse."""
    try:
        match kind:
            case "flag":
                return FLAGS.get(text.lower(), text)
            case "texts":
                return re.findall(r"[^\s,]+", text)
            case "mode":
                return int(text, 8)
            case "seconds":
                return float(text)
            case "whole" | "size" if text == "inf":
                return inf
            case "whole":
                return int(text)
            case "size" if size := re.fullmatch(r"([0-9]+) ?([KMG]iB)?", text):
                return int(size[1]) * SIZES[size[2]]
    except ValueError:
        pass
    return text


def unknown(
    spelled: str, what: str, name: str, known: Iterable[str], spell: Callable[[str], str]
) -> ConfigError:
    """The error for a name that is not known, with the nearest that is."""
    nearest = get_close_matches(name.lower(), known, n=1)
    hint = f"did you mean {spell(nearest[0])}?" if nearest else "trigi --help lists all"
    return ConfigError(f"{spelled}: there is no such {what}; {hint}")


# Spellings


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"TRIGI_{name.upper()}"


def long_options(name: str) -> list[str]:
    """The options of a setting on the command line, without the short one. A flag can be given either way."""
    if name == "app":
        return []
    kebab = name.replace("_", "-")
    return [f"--{kebab}", f"--no-{kebab}"] if SETTINGS[name].kind == "flag" else [f"--{kebab}"]


def metavar(setting: Setting) -> str:
    """The shape of a setting's value, on the command line."""
    return setting.metavar or METAVARS.get(setting.kind) or "{" + ",".join(setting.choices) + "}"


def default_text(setting: Setting) -> str:
    """A setting's default, as it is written, with its unit; empty if it is nothing."""
    match setting.default:
        case None | "":
            return ""
        case bool() as flag:
            return "true" if flag else "false"
        case tuple() as texts:
            return " ".join(texts)
        case int(size) if setting.kind == "size":
            suffix = max((s for s in SIZES if size % SIZES[s] == 0), key=SIZES.__getitem__)
            return f"{size // SIZES[suffix]} {suffix or setting.unit}"
        case float() | int() as number if number != inf:
            return f"{number} {setting.unit}".rstrip()
        case other:
            return str(other)


# What is made from the list


class Parser(argparse.ArgumentParser):
    """A parser that raises its errors."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print together with the usage."""
        raise ConfigError(message.removeprefix("argument "))


def make_parser() -> Parser:
    """The parser of the command line. It leaves values as they are written, and absent ones out."""
    parser = Parser(
        prog="trigi",
        usage="%(prog)s [options] MODULE:ATTRIBUTE",
        description="Serve an ASGI application.",
        epilog=PRECEDENCE,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"trigi {__version__}")
    for group, settings in by_group().items():
        section = parser.add_argument_group(group, GROUP_NOTES.get(group))
        for name, setting in settings.items():
            default = default_text(setting)
            about = setting.help + (f" (default: {default})" if default else "")
            options: dict[str, Any] = {"help": about.replace("%", "%%")}
            if setting.kind == "flag":
                options["action"] = argparse.BooleanOptionalAction
            else:
                options["metavar"] = metavar(setting)
                options["action"] = "append" if setting.kind == "texts" else "store"
            if name == "app":
                section.add_argument(name, nargs="?", **options)
            else:
                short = [setting.short] if setting.short else []
                section.add_argument(*short, long_options(name)[0], dest=name, **options)
    return parser


def settings_reference() -> str:
    """The settings reference of the documentation, in Markdown."""
    lines = ["# Settings", "", "<!-- Written by `python -m trigi._settings`: change it there. -->", ""]
    lines += [PRECEDENCE, "", REFERENCE_NOTES]
    for group, settings in by_group().items():
        note = [GROUP_NOTES[group], ""] if group in GROUP_NOTES else []
        head = "| name | command line | environment | default | what it is |\n|---|---|---|---|---|"
        rows = (reference_row(name, setting) for name, setting in settings.items())
        lines += [f"## {group}", "", *note, head, *rows, ""]
    return "\n".join(lines)


def reference_row(name: str, setting: Setting) -> str:
    """One setting's line in the settings reference."""
    value = "" if setting.kind == "flag" else metavar(setting)
    options = [f"{option} {value}".strip() for option in [setting.short, *long_options(name)] if option]
    spellings = ", ".join(f"`{option}`" for option in options or [value])
    default = default_text(setting)
    shown = f"`{default}`" if default else ""
    return f"| `{name}` | {spellings} | `{variable(name)}` | {shown} | {setting.help} |"


def by_group() -> dict[str, dict[str, Setting]]:
    """All settings, under the headings of their groups."""
    groups: dict[str, dict[str, Setting]] = {}
    for name, setting in SETTINGS.items():
        groups.setdefault(setting.group, {})[name] = setting
    return groups


if __name__ == "__main__":
    sys.stdout.write(settings_reference())
