"""The Python API: `train` and `sweep` as the commands of these names, and `load` for a model that answers."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import functools
import html
import io
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pharmclf import storage
from pharmclf.config import RunConfig, from_dict, to_dict
from pharmclf.config.presets import DEFAULT_SPACE, SPACES, find_preset, load_preset
from pharmclf.core.console import Say, close_terminal, configure_terminal, print_line
from pharmclf.core.errors import ConfigError
from pharmclf.core.events import EpochRecord
from pharmclf.evaluation.verdict import Verdict
from pharmclf.schema_version import load_record

if TYPE_CHECKING:
    import pandas as pd

    from pharmclf.inference.model import Model

_SCORES = (
    ("validation accuracy", "val_accuracy"),
    ("test accuracy", "test_accuracy"),
    ("test macro F1", "test_macro_f1"),
)


@dataclass(frozen=True)
class Run:
    """A complete run in its folder; a notebook shows its verdict, scores and curves."""

    folder: str
    """Local or s3://."""
    result: Mapping[str, Any] = field(repr=False)
    """Content of result.json: scores with their 95 % intervals, phases, verdict, warnings."""

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Open a run that an earlier process has completed.

        Raises:
            ConfigError: the folder holds no complete run.
        """
        location = storage.absolute(str(folder)).rstrip("/")
        result = storage.join(location, "result.json")
        if not storage.is_file(result):
            raise ConfigError(f"run {folder}: no result.json there. Expected the folder of a run that is complete")
        return cls(location, load_record(result))

    @property
    def report(self) -> str:
        """Location of report.html."""
        return storage.join(self.folder, "report.html")

    @property
    def history(self) -> list[EpochRecord]:
        """One record per epoch of both phases."""
        return [
            EpochRecord.from_dict(record) for record in storage.read_json(storage.join(self.folder, "history.json"))
        ]

    @functools.cached_property
    def model(self) -> Model:
        """The saved model."""
        return load(self.folder)

    def _repr_html_(self) -> str:
        result = self.result
        rows = [
            f"<tr><td>{title}</td><td>{result[key]:.3f}</td><td>{low:.3f} to {high:.3f}</td></tr>"
            for title, key in _SCORES
            for low, high in [result[f"{key}_interval"]]
        ]
        judged = Verdict.from_dict(result)
        level, reasons = (f": {judged.level}", judged.reasons) if judged else ("", ())
        items = "".join(f"<li>{html.escape(f'{reason.text} {reason.remedy}')}</li>" for reason in reasons)
        curves = base64.b64encode(storage.read_bytes(storage.join(self.folder, "learning_curves.png"))).decode()
        return (
            f"<h4>{html.escape(result['name'])}{level}</h4><ul>{items}</ul>"
            f"<table><tr><th></th><th>score</th><th>95 % interval</th></tr>{''.join(rows)}</table>"
            f'<img alt="learning curves" style="max-width:100%" src="data:image/png;base64,{curves}">'
            f"<p>report: {html.escape(self.report)}</p>"
        )


@dataclass(frozen=True)
class Sweep:
    """A complete sweep in its folder."""

    folder: str
    """Local or s3://."""
    best: Run
    """The winner, the only trial that is tested."""

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial: its parameters, scores and state."""
        import pandas as pd

        from pharmclf.tuning.sweep_results import TABLE_FILE

        return pd.read_parquet(io.BytesIO(storage.read_bytes(storage.join(self.folder, TABLE_FILE))))


def train(
    data: str | Path = "",
    *,
    name: str = "",
    config: str | Path | RunConfig = "demo",
    overwrite: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Train and test a classifier, or resume the run of this name, as `pharmclf train` does.

    Args:
        data: folder or s3:// prefix with one folder per product, or a list. Empty: as `config` says; the demo draws its
            images.
        name: of the run, and of its folder below the storage. Empty: as `config` says.
        config: name of a preset, a YAML file, or a configuration.
        overwrite: delete the run of this name, and start a new one.
        quiet: print nothing.
        settings: those of `RunConfig` by name, nested ones as mappings: `storage="runs"`, `phase2={"epochs": 5}`.

    Raises:
        ConfigError: bad input; nothing has been trained or changed.
        RunError: the run failed; the same call resumes it.
        KeyboardInterrupt: a signal stopped it, after a checkpoint; the same call resumes it.
    """
    from pharmclf.pipeline import run

    merged = _merge(config, data, name, settings)
    with _output(quiet) as say:
        _raise_on_signal(run(merged, say, overwrite=overwrite))
    return Run.open(storage.join(storage.absolute(merged.storage), merged.run_name))


def sweep(
    data: str | Path = "",
    *,
    name: str = "",
    trials: int = 16,
    space: str | Path = DEFAULT_SPACE,
    config: str | Path | RunConfig = "sweep",
    overwrite: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Sweep:
    """Search learning rates, dropout and unfreeze depth, or resume the sweep of this name, as `pharmclf sweep` does.

    Args:
        data, name, config, overwrite, quiet: as in `train`.
        trials: in all; trial 0 is the plain run. A sweep with more of them continues.
        space: name of a search space, or a YAML file.
        settings: those of `SweepOptions` and, for the plain run, of `RunConfig` by name.

    Raises:
        As `train`; SweepError: every trial failed.
    """
    from pharmclf.tuning.options import SweepOptions
    from pharmclf.tuning.sweep import run_sweep
    from pharmclf.tuning.sweep_start import SWEEP_FILE

    names = {item.name for item in dataclasses.fields(SweepOptions)}
    own = {key: value for key, value in settings.items() if key in names}
    base = _merge(config, data, name, {key: value for key, value in settings.items() if key not in names})
    file = find_preset(str(space), "space", SPACES)
    with _output(quiet) as say:
        _raise_on_signal(run_sweep(SweepOptions(trials=trials, **own), base, file, say, overwrite=overwrite))
    folder = storage.join(storage.absolute(base.storage), base.name)
    return Sweep(folder, Run.open(load_record(storage.join(folder, SWEEP_FILE))["winner_folder"]))


def load(location: str | Path) -> Model:
    """Open a saved model.

    Args:
        location: a run's folder, its `model` folder, a folder of `pharmclf fetch-best`, or a `.keras` file; local or
            s3://.

    Raises:
        ConfigError: no model, no labels, or another sha256 than recorded.
    """
    from pharmclf.inference.model import Model

    return Model(location)


def _merge(config: str | Path | RunConfig, data: str | Path, name: str, settings: Mapping[str, Any]) -> RunConfig:
    """A configuration with settings, some of them replaced; nested ones one by one."""
    merged = to_dict(config if isinstance(config, RunConfig) else load_preset(str(config)))
    given = {key: value for key, value in (("data", data), ("name", name)) if value} | dict(settings)
    for key, value in given.items():
        section = merged.get(key)
        if isinstance(section, dict) and isinstance(value, Mapping):
            value = section | dict(value)
        merged[key] = str(value) if isinstance(value, Path) else value
    return from_dict(merged, source="settings")


@contextlib.contextmanager
def _output(quiet: bool) -> Iterator[Say]:
    """What a call prints: a moving line where a person watches, and nothing where it is quiet."""
    configure_terminal(quiet=quiet)
    try:
        yield (lambda _: None) if quiet else print_line
    finally:
        close_terminal()


def _raise_on_signal(code: int) -> None:
    if code == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if code:
        sys.exit(code)
