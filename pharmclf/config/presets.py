"""Configurations and search spaces that come with the package: found by name, or by the paths of earlier versions."""

from __future__ import annotations

from pathlib import Path

from pharmclf.config.schema import RunConfig
from pharmclf.config.text import load_yaml
from pharmclf.core.errors import ConfigError, did_you_mean

PRESETS = Path(__file__).parents[1] / "presets"
SPACES = PRESETS / "spaces"
DEFAULT_SPACE = "default"
_EARLIER_PATHS = {"tune/base.yaml": "sweep", "tune/space.yaml": DEFAULT_SPACE}
"""Files of earlier versions that have another name now; those of jobs/configs/ have kept theirs."""


def preset_names(folder: Path = PRESETS) -> list[str]:
    """Names of the configurations, or of the search spaces in SPACES."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_preset(text: str, flag: str, folder: Path = PRESETS) -> Path:
    """The file of a preset's name, or of a path.

    Args:
        text: a name such as "lookalikes"; the path of a file; or jobs/configs/lookalikes.yaml, which is the preset
            where no such file exists.
        flag: that gave the text; named in errors.
        folder: of the presets, PRESETS or SPACES.

    Raises:
        ConfigError: neither a preset nor an existing path.
    """
    names = preset_names(folder)
    if text in names:
        return folder / f"{text}.yaml"
    path = Path(text).expanduser()
    if path.exists():
        return path
    name = _name_of_earlier_path(path)
    if name in names:
        return folder / f"{name}.yaml"
    received = "no such file" if "/" in text or path.suffix else "neither a preset nor a file"
    guess = did_you_mean(path.stem, names)
    known = f"known here: {', '.join(names)}"
    remedy = guess if guess == known else f"{guess} {known.capitalize()}"
    raise ConfigError(f"{flag}: received {text!r}, {received}; {remedy}. Or give the path of a YAML file")


def load_preset(text: str) -> RunConfig:
    """Read the configuration of a preset's name or of a file.

    Raises:
        ConfigError: neither exists, or the file cannot be used.
    """
    return load_yaml(find_preset(text, "--config"))


def _name_of_earlier_path(path: Path) -> str:
    *folders, _ = path.parts or [""]
    if folders[-2:] == ["jobs", "configs"]:
        return path.stem
    return _EARLIER_PATHS.get("/".join(path.parts[-2:]), "")
