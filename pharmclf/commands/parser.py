"""One parser for the flags of all commands: options, run configurations, earlier spellings."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from pharmclf import storage
from pharmclf.commands.description import format_description
from pharmclf.commands.refusals import refusals_as_errors, value_of
from pharmclf.config import RENAMED, RunConfig, check_batch_word, expand_home, from_dict
from pharmclf.config.presets import load_preset, preset_names
from pharmclf.core.console import configure_terminal
from pharmclf.core.errors import ConfigError, closest_names

PROGRAM = "pharmclf"

T = TypeVar("T")
Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
"""A flag without a value and without a `--no-` form, for what is off unless it is given."""
_FLATTEN = tyro.conf.arg(name="")
_REPEATABLE = ("--eval-data", "--unknown", "--model")
_LIST_BACKBONES = "--list-backbones"


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """What a command prints."""

    quiet: Switch = False
    """Print only the result, warnings and errors."""
    verbose: Switch = False
    """Print details too, such as the duration of each wait."""

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise ConfigError("received --quiet and --verbose, expected at most one of them. Give one at a time")


@dataclasses.dataclass(frozen=True)
class OptionsParser(Generic[T]):
    """Flags of a command that has no run configuration."""

    command: str
    """Its name, as in `pharmclf predict`."""
    description: str | None
    """Text of `--help`."""
    options: type[T]
    """A dataclass whose fields become flags."""
    shows_progress: bool = True
    """Whether it has the switches for that, and sets up the terminal."""

    def parse(self, arguments: Sequence[str] | None = None) -> T:
        """Parse the flags, and set up the terminal of this process.

        Args:
            arguments: those behind the name of the command; None: those of this process.

        Raises:
            ConfigError: an unknown flag, or a bad value.
        """
        flags = _flag_types(self.options) | (_flag_types(OutputOptions) if self.shows_progress else {})
        given = _modernize(sys.argv[1:] if arguments is None else arguments, _switches(flags))
        program = f"{PROGRAM} {self.command}"
        with refusals_as_errors(program, flags, given):
            parsed = tyro.cli(
                self._flags(),
                prog=program,
                description=format_description(self.description),
                args=given,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
        if self.shows_progress:
            configure_terminal(quiet=parsed.output.quiet, verbose=parsed.output.verbose)
        options: T = parsed.options
        return options

    def subcommand(self) -> object:
        """The type of the options as a subcommand of tyro."""
        marks = (tyro.conf.subcommand(self.command), tyro.conf.FlagCreatePairsOff)
        return Annotated[(self._flags(), *marks)]

    def _flags(self) -> Any:
        fields: list[Any] = [("options", Annotated[self.options, _FLATTEN])]
        if self.shows_progress:
            output = dataclasses.field(default_factory=OutputOptions)
            fields.append(("output", Annotated[OutputOptions, _FLATTEN], output))
        return dataclasses.make_dataclass("Flags", fields, frozen=True)


@dataclasses.dataclass(frozen=True)
class RunParser(Generic[T]):
    """Flags of a command that has options and a run configuration: the file of `--config`, then the flags."""

    command: str
    """Its name, as in `pharmclf train`."""
    description: str | None
    """Text of `--help`."""
    options: T
    """A dataclass with the options of the command and their defaults."""
    preset: str
    """Name of the configuration where `--config` is not given."""

    def parse(self, arguments: Sequence[str] | None = None) -> tuple[T, RunConfig]:
        """Parse the flags, and set up the terminal of this process.

        Args:
            arguments: those behind the name of the command; None: those of this process.

        Raises:
            ConfigError: an unknown flag, or a bad file or value.
        """
        settings = _flag_types(RunConfig)
        flags = _flag_types(type(self.options)) | _flag_types(OutputOptions) | settings | {"--config": str}
        given = _modernize(sys.argv[1:] if arguments is None else arguments, _switches(flags))
        extended = value_of("--extend", given) if "--extend" in flags else ""
        base = recorded_settings(given) if extended else load_preset(value_of("--config", given) or self.preset)
        default = self._flags(base)
        program = f"{PROGRAM} {self.command}"
        with refusals_as_errors(program, flags, given), _settings_as_flags(settings):
            parsed = tyro.cli(
                type(default),
                prog=program,
                description=format_description(self.description),
                default=default,
                args=given,
            )
        run: RunConfig = parsed.run
        if extended and (storage.absolute(run.storage), run.run_name) != (base.storage, base.name):
            raise ConfigError(
                f"--extend {extended}: received --name {run.run_name} in --storage {run.storage} too, expected none of "
                "them, since the run keeps its folder. Leave them out"
            )
        configure_terminal(quiet=parsed.output.quiet, verbose=parsed.output.verbose)
        return parsed.options, run

    def subcommand(self) -> object:
        """The type of the flags as a subcommand of tyro, which completes the names of presets."""
        default = self._flags(load_preset(self.preset), Literal[tuple(preset_names())])
        return Annotated[type(default), tyro.conf.subcommand(self.command, default=default)]

    def _flags(self, base: RunConfig, config_type: Any = str) -> Any:
        text = f"A preset ({', '.join(preset_names())}) or a YAML file of the settings below; flags override it."
        config = tyro.conf.arg(metavar="NAME|FILE", help=text, help_behavior_hint=f"(default: {self.preset})")
        fields = [
            ("options", Annotated[type(self.options), _FLATTEN]),
            ("output", Annotated[OutputOptions, _FLATTEN]),
            ("config", Annotated[config_type, config]),
            ("run", Annotated[RunConfig, _FLATTEN]),
        ]
        return dataclasses.make_dataclass("Flags", fields, frozen=True)(
            self.options, OutputOptions(), self.preset, base
        )


def recorded_settings(arguments: Sequence[str]) -> RunConfig:
    """The settings of the run that `--extend` names, by its folder or by its name in the storage.

    Args:
        arguments: with `--extend`.

    Raises:
        ConfigError: `--config` too, no such run, a trial of a sweep, or a damaged record.
    """
    from pharmclf.runs.record import RUN_FILE, read_record  # imports what most commands do without

    where = value_of("--extend", arguments)
    if config := value_of("--config", arguments):
        raise ConfigError(
            f"--extend {where}: received --config {config} too, expected the run's own settings. Give one"
        )
    home = storage.absolute(value_of("--storage", arguments) or RunConfig().storage)
    with storage.errors_as_config_errors(home):
        places = (storage.absolute(where).rstrip("/"), storage.join(home, where))
        folder = next((place for place in places if storage.is_file(storage.join(place, RUN_FILE))), "")
        if not folder:
            runs = [name for name in storage.list_folders(home) if storage.is_file(storage.join(home, name, RUN_FILE))]
            near = ", ".join(closest_names(where, runs)) or "none is there"
            raise ConfigError(
                f"--extend: received {where!r}, expected a run's folder, or a run of {home}, such as {near}"
            )
        record = read_record(folder)
    if record is None or record.trial:
        found = "a trial of a sweep" if record else "the record of another program"
        raise ConfigError(f"--extend: received {folder}, which holds {found}, expected a run. Give the folder of one")
    place, _, name = folder.rpartition("/")
    recorded = from_dict(record.config, source=storage.join(folder, RUN_FILE))
    return dataclasses.replace(recorded, storage=place, name=name)


@contextlib.contextmanager
def _settings_as_flags(flags: Collection[str]) -> Iterator[None]:
    """Name a setting as its flag in an error of the configuration: phase1.epochs: … -> --phase1.epochs: …"""
    try:
        yield
    except ConfigError as error:
        name, colon, rest = str(error).partition(": ")
        flag = f"--{name.replace('_', '-')}"
        raise ConfigError(f"{flag}{colon}{rest}") if flag in flags else error from error


def _flag_types(cls: Any, prefix: str = "--") -> dict[str, Any]:
    """The flags of a dataclass with the types of their values."""
    found: dict[str, Any] = {}
    for field_name, annotation in typing.get_type_hints(cls, include_extras=True).items():
        marks = getattr(annotation, "__metadata__", ())
        hint = annotation.__origin__ if marks else annotation
        given = [mark.name for mark in marks if getattr(mark, "name", None) is not None]  # by tyro.conf.arg
        name = given[0] if given else field_name.replace("_", "-")
        if dataclasses.is_dataclass(hint):
            found |= _flag_types(hint, f"{prefix}{name}." if name else prefix)
        else:
            found[prefix + name] = hint
    return found


def _switches(flags: Mapping[str, Any]) -> set[str]:
    """The flags that take no value."""
    return {flag for flag, hint in flags.items() if hint is bool}


def _modernize(arguments: Sequence[str], switches: Collection[str]) -> list[str]:
    """Rewrite what tyro does not read: earlier spellings, words for other flags, a flag with several values twice.

    Args:
        arguments: the command line without the program's name.
        switches: flags that take no value; earlier versions wanted True or False.
    """
    positionals: list[str] = []
    groups: list[tuple[str, list[str]]] = []  # a flag and its values
    for argument in arguments:
        if argument.startswith("--"):
            flag, equals, value = argument.partition("=")
            groups.append((flag.replace("_", "-"), [value] if equals else []))
        else:
            (groups[-1][1] if groups else positionals).append(argument)
    modern: list[list[str]] = [positionals]
    for flag, texts in groups:
        values = list(map(expand_home, texts))  # a shell expands no ~ behind an equals sign
        flag = _current_flag(flag, values)
        if flag in switches and values[:1] in (["True"], ["False"]):
            modern.append([flag if values[0] == "True" else _negative(flag), *values[1:]])
        elif flag == "--batch-size" and values and not values[0].lstrip("+-").isdecimal():
            check_batch_word(flag, values[0])
            modern.append(["--microbatch", *values])
        elif flag == "--backbone" and values == ["list"] and _LIST_BACKBONES in switches:
            modern.append([_LIST_BACKBONES])
        elif flag in _REPEATABLE and (earlier := next((group for group in modern if group[:1] == [flag]), None)):
            earlier += values
        else:
            modern.append([flag, *values])
    return [argument for group in modern for argument in group]


def _current_flag(flag: str, values: Sequence[str]) -> str:
    """A flag by its current name; a note says so where it has changed."""
    name = RENAMED.get(flag.removeprefix("--").replace("-", "_"))
    if flag == "--activations" and not values:
        name = "precompute_features"  # of `pharmclf prepare`
    if name is None:
        return flag
    current = f"--{name.replace('_', '-')}"
    _note_once(f"note: {flag} is now {current}")
    return current


def _negative(flag: str) -> str:
    section, dot, name = flag.removeprefix("--").rpartition(".")
    return f"--{section}{dot}no-{name}"


@functools.cache
def _note_once(text: str) -> None:
    print(text, file=sys.stderr)
