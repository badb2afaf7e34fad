"""Checks of the software of a node: the driver's packages and code, and a TensorFlow that computes."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pharmclf
from pharmclf.config import RunConfig
from pharmclf.core.errors import format_error
from pharmclf.core.hashing import fingerprint, sha256_file
from pharmclf.core.subprocess_call import SubprocessDiedError, run_in_subprocess
from pharmclf.diagnostics.gpu_check import DriverInfo
from pharmclf.diagnostics.results import Finding, fail, ok, warn
from pharmclf.diagnostics.tensorflow_probe import TensorflowInfo, VisibleGpu, probe

_PACKAGES = ("ray", "tensorflow", "keras", "numpy")
_NUM_DIGITS = 8
_SUBMIT = "submit with `ray job submit --working-dir .`, which brings"
LACKS_PACKAGE = f"{_SUBMIT} this package to every node, and install its dependencies on all of them"
"""The remedy for a node that cannot import this package."""
PROBE_TIMEOUT_S = 150.0
"""For the probe: the import takes up to 17 s on two busy cores, and a new GPU compiles kernels."""
_MIN_DRIVERS = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580,)}
"""The oldest driver of each CUDA (NVIDIA: CUDA Compatibility, minor version compatibility)."""
_COMPLAINTS = re.compile(
    r"could not load dynamic library|cannot dlopen|failed call to cuinit|cuda_error|loaded runtime cudnn", re.IGNORECASE
)
_LOG_PREFIX = re.compile(r"^(\S+ \S+ )?[EWI]\S* .*?\] ")  # time, severity, file
_INSTALL = "install the package with its GPU libraries: pip install '.[gpu]'"
_NOTHING_BEFORE = f"{_INSTALL}; LD_LIBRARY_PATH must name no other ones"


@dataclass(frozen=True, kw_only=True)
class Packages:
    """The software of a node."""

    versions: Mapping[str, str]
    """Of Python and the packages; "" where one is not installed."""
    code: str
    """Fingerprint of the code of pharmclf that this process imports."""


def inspect_packages() -> Packages:
    """Software of this process; no package is imported."""
    versions = {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}
    return Packages(versions=versions, code=code_fingerprint(Path(pharmclf.__file__).parent))


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def code_fingerprint(folder: Path) -> str:
    """Fingerprint of all Python files below a folder, by names and contents."""
    return fingerprint({str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*.py"))})


def check_packages(driver: Packages, node: Packages) -> Finding:
    """Whether a node has the software of the driver; pure.

    A version whose third number differs is a warning, since such versions work together; any other difference fails.
    """
    pairs = {name: (node.versions.get(name, ""), version) for name, version in driver.versions.items()}
    pairs = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    parts = [f"{name} {there or 'missing'}, the driver has {here or 'none'}" for name, (there, here) in pairs.items()]
    code = node.code[:_NUM_DIGITS]
    if node.code != driver.code:
        parts.append(f"pharmclf's code {code}, the driver has {driver.code[:_NUM_DIGITS]}")
        remedy = (
            f"{_SUBMIT} the driver's code to every node, or install it on this node; no other check of this node ran"
        )
        return fail("versions", "; ".join(parts), remedy)
    if not parts:
        versions = ", ".join(f"{name} {version}" for name, version in node.versions.items())
        return ok("versions", f"{versions}, pharmclf's code {code}, as the driver's")
    compatible = all(there.split(".")[:2] == here.split(".")[:2] for there, here in pairs.values())
    remedy = "install the driver's versions on this node, and restart its Ray"
    return (warn if compatible else fail)("versions", "; ".join(parts), remedy)


def probe_tensorflow(config: RunConfig, *, gpus: bool) -> TensorflowInfo:
    """Probe TensorFlow in a child process, as a run would use it, with GPUs or without."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "0"}
    if not gpus:
        environment["CUDA_VISIBLE_DEVICES"] = "-1"
    elif os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # Ray hides the GPUs from a process that reserves none
        del environment["CUDA_VISIBLE_DEVICES"]
    log: list[str] = []
    try:
        call = partial(probe, config.precision, config.xla, gpus)
        info = run_in_subprocess(call, environment=environment, timeout_s=PROBE_TIMEOUT_S, read_output=log.append)
    except SubprocessDiedError as error:
        info = TensorflowInfo(error=str(error))
    except Exception as error:  # whatever a broken installation raises
        info = TensorflowInfo(error=format_error(error))
    return replace(info, complaints=find_complaints("".join(log)))


def find_complaints(log: str) -> tuple[str, ...]:
    """Lines of TensorFlow's log about libraries and the driver, without time and file; pure."""
    lines = [_LOG_PREFIX.sub("", line).strip() for line in log.splitlines() if _COMPLAINTS.search(line)]
    return tuple(dict.fromkeys(lines))


def check_tensorflow(info: TensorflowInfo, driver: DriverInfo, config: RunConfig) -> list[Finding]:
    """Whether TensorFlow computes, and uses the GPUs that the driver knows; pure."""
    if info.error:
        remedy = "reinstall the dependencies of the package on this node"
        if info.error.startswith("no answer"):
            remedy = "see `top` for what else runs on this node, and `dmesg` for a GPU that hangs"
        elif "SIGILL" in info.error:
            remedy = "TensorFlow's packages need a processor with AVX: use another machine"
        return [fail("tensorflow", f"it does not start: {info.error}", remedy)]
    has_gpus = bool(driver.gpus) and config.accelerator != "cpu"
    findings = [_check_cuda(info, driver)] if has_gpus else []
    on_gpu = has_gpus and bool(info.gpus)
    if info.step_error:
        remedy = "give --precision float32 and --no-xla, and update the driver"
        text = f"a step in {info.precision} on the {'GPU' if on_gpu else 'processors'} fails: {info.step_error}"
        return [*findings, fail("tensorflow", text, remedy)]
    device = "the GPU, whose memory grows with its use" if on_gpu else "the processors"
    return [*findings, ok("tensorflow", f"{info.version} takes a step in {info.precision} on {device}")]


def _check_cuda(info: TensorflowInfo, driver: DriverInfo) -> Finding:
    if not info.cuda_built:
        return fail("CUDA", f"TensorFlow {info.version} was built without CUDA", _INSTALL)
    text = f"TensorFlow {info.version}, built with CUDA {info.cuda_built}"
    oldest = _MIN_DRIVERS.get(_version_numbers(info.cuda_built)[0])
    if oldest and driver.version and _version_numbers(driver.version) < oldest:
        remedy = f"update the driver to {'.'.join(map(str, oldest))} or newer"
        return fail("CUDA", f"{text}; the driver is {driver.version}, too old for it", remedy)
    if not info.gpus:
        complaints = f": {'; '.join(info.complaints)}" if info.complaints else ""
        return fail("CUDA", f"{text}, finds none of {len(driver.gpus)} GPUs{complaints}", _NOTHING_BEFORE)
    built, loaded = _version_numbers(info.cudnn_built), _version_numbers(info.cudnn_loaded)
    if loaded and built and (loaded[0] != built[0] or loaded < built):
        text = f"{text} and cuDNN {info.cudnn_built}, finds cuDNN {info.cudnn_loaded}"
        return fail("CUDA", text, _NOTHING_BEFORE)
    for gpu in info.gpus:
        if finding := _check_capability(text, info.capabilities_built, gpu):
            return finding
    names = ", ".join(gpu.name for gpu in info.gpus)
    text += f", cuDNN {info.cudnn_loaded}" if info.cudnn_loaded else ""
    if len(info.gpus) < len(driver.gpus):
        text += f", finds {len(info.gpus)} of {len(driver.gpus)} GPUs: {names}"
        return warn("CUDA", text, "CUDA_VISIBLE_DEVICES names those that may be used; see `nvidia-smi` for the others")
    return ok("CUDA", f"{text}, finds {names}")


def _check_capability(text: str, built: tuple[str, ...], gpu: VisibleGpu) -> Finding | None:
    """Whether TensorFlow has kernels for a GPU; None where it has, or nothing is known."""
    if not gpu.capability or not built:
        return None
    versions = {name: _capability(name) for name in built}
    portable = [version for name, version in versions.items() if name.startswith("compute_")]
    # a binary runs on later GPUs of the same first number; portable code on all later ones
    if any(version[0] == gpu.capability[0] and version <= gpu.capability for version in versions.values()):
        return None
    shown = ".".join(map(str, gpu.capability))
    text += f" for {', '.join(built)}; {gpu.name} has compute capability {shown}"
    if any(version <= gpu.capability for version in portable):
        return warn("CUDA", text, "its first start compiles all kernels, which takes many minutes; keep ~/.nv")
    return fail("CUDA", text, "use a GPU that TensorFlow was built for, or a build for this one")


def _capability(name: str) -> tuple[int, int]:
    digits = re.sub(r"\D", "", name) or "0"
    return int(digits[:-1] or 0), int(digits[-1])


def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
