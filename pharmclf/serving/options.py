"""Options of the server of predictions, and the limits of a request. Pure."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from pharmclf.config import AUTO, check_location
from pharmclf.config.parsing import check_name
from pharmclf.core.errors import ConfigError, error_reason
from pharmclf.core.units import parse_duration, parse_size
from pharmclf.inference.options import Accelerator

TOKEN_VARIABLE = "PHARMCLF_SERVE_TOKEN"
_MIN_TOKEN = 16  # characters


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request may cost."""

    images: int = 32
    bytes: int = 20_000_000
    """Of the body."""
    megapixels: float = 50.0
    """Of a decoded image; a JPEG counts by its scaled decode."""
    seconds: float = 30.0
    """For the body to arrive, and again for the answer."""


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Which models answer, where, and to whom."""

    model: tuple[str, ...] = ()
    """Models: each a run's folder, its model folder, a folder of `pharmclf fetch-best` or a .keras file; or s3://.
    NAME=LOCATION gives it another name than that of its folder. The first answers requests that name none."""
    host: str = "127.0.0.1"
    """Address that it listens on. 0.0.0.0: every address of this machine, in plain HTTP."""
    port: int = 8000
    """Port that it listens on."""
    replicas: str = AUTO
    """Processes that answer, each with all models: N, or MIN-MAX as the load needs them. auto: one for each GPU,
    without GPUs one for each node."""
    accelerator: Accelerator = "auto"
    """auto: GPUs where there are any, one for each replica. gpu: nothing else. cpu: GPUs are left to others."""
    max_images: int = 32
    """Images of a request."""
    max_bytes: str = "20MB"
    """Size of a request's body."""
    max_megapixels: float = 50.0
    """Millions of pixels to decode of an image; a JPEG counts by its scaled decode."""
    max_seconds: str = "30s"
    """Time for a request's body to arrive, and again for its answer."""
    token_file: str = ""
    """File with the token that requests must have. Empty: the variable PHARMCLF_SERVE_TOKEN, or else a new one, which
    is printed as a link."""
    no_token: bool = False
    """Answer everyone who reaches the port."""
    allow_unauthenticated_cluster: bool = False
    """Join a cluster whose job server takes jobs from anyone who reaches it."""

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("--model: received nothing, expected a run's folder or a .keras file. Give --model RUN")
        _ = self.models, self.limits, self.replica_range  # each refuses what it cannot use
        if not 0 < self.port < 65536:
            raise ConfigError(f"--port: received {self.port}, expected a number from 1 to 65535. Write --port 8000")
        if self.no_token and self.token_file:
            raise ConfigError("--no-token: received --token-file too, expected one of them. Leave one out")

    @property
    def models(self) -> dict[str, str]:
        """Location of each model, by its name.

        Raises:
            ConfigError: a name that is no name, or is given twice, or a location that no storage has.
        """
        found: dict[str, str] = {}
        for text in self.model:
            name, _equals, location = text.partition("=") if re.match(r"[\w.-]+=", text) else ("", "", text)
            name = name or re.sub(r"[^\w.-]", "-", _default_name(location))
            check_location("--model", location)
            check_name(name)
            if not location or name in found:
                wrong = f"the name {name!r} twice" if location else f"{text!r}, without a location"
                raise ConfigError(f"--model: received {wrong}, expected NAME=LOCATION, each name once. Name each model")
            found[name] = location
        return found

    @property
    def limits(self) -> Limits:
        """What a request may cost.

        Raises:
            ConfigError: a limit that lets nothing pass.
        """
        limits = Limits(
            images=self.max_images,
            bytes=int(parse_size(self.max_bytes, "--max-bytes")),
            megapixels=self.max_megapixels,
            seconds=parse_duration(self.max_seconds, "--max-seconds", plain_seconds=True),
        )
        if not min(limits.images, limits.bytes, limits.megapixels, limits.seconds) > 0:
            raise ConfigError(f"--max-…: received {limits}, expected limits above 0. Leave out what you do not need")
        return limits

    @property
    def replica_range(self) -> tuple[int, int] | None:
        """Least and most replicas; None: one for each GPU or node.

        Raises:
            ConfigError: neither a number nor a range.
        """
        if self.replicas == AUTO:
            return None
        match = re.fullmatch(r"([1-9]\d*)(?:-([1-9]\d*))?", self.replicas)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(
                f"--replicas: received {self.replicas!r}, expected auto, a number from 1, or MIN-MAX. Write 1-4"
            )
        return int(match[1]), int(match[2] or match[1])

    def find_token(self) -> tuple[str, bool]:
        """The token that requests must have, "" where they need none; and whether it is new.

        Raises:
            ConfigError: a file that cannot be read, or a token that is too short.
        """
        if self.no_token:
            return "", False
        token, source = os.environ.get(TOKEN_VARIABLE, ""), TOKEN_VARIABLE
        if self.token_file:
            source = f"--token-file {self.token_file}"
            try:
                token = Path(self.token_file).read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as error:
                raise ConfigError(f"{source}: {error_reason(error)}. Give a text file that holds the token") from error
        elif not token:
            return secrets.token_urlsafe(24), True
        if len(token) < _MIN_TOKEN or not token.isascii() or not token.isprintable():
            raise ConfigError(
                f"{source}: received {len(token)} characters, expected {_MIN_TOKEN} or more, of ASCII. Write one with "
                "openssl rand -hex 16"
            )
        return token, False


def digest(token: str) -> str:
    """What replicas know of a token, so that it is in no list of their arguments: its sha256, hex; "" of none."""
    return hashlib.sha256(token.encode()).hexdigest() if token else ""


def _default_name(location: str) -> str:
    """The last part of a location that says something: runs/tablets/model/model.keras is tablets."""
    parts = [part for part in re.split(r"[/\\]", location) if part not in ("", ".", "..")]
    while len(parts) > 1 and parts[-1] in ("model", "model.keras"):
        parts.pop()
    return parts[-1].removesuffix(".keras") if parts else "model"
