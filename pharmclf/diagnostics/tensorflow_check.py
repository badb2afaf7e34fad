"""TensorFlow on a node: what it was built with, what it finds there, and whether it computes on it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from pharmclf.core.errors import describe_exit
from pharmclf.diagnostics.gpu_check import DriverInfo
from pharmclf.diagnostics.results import Finding, fail, ok, warn

PROBE_TIMEOUT_S = 150.0
"""For the trial: TensorFlow alone takes up to 17 s on two busy cores, and kernels are compiled on a new GPU."""
_MIN_DRIVERS = {11: (450, 80, 2), 12: (525, 60, 13), 13: (580,)}
"""The oldest driver for each CUDA (NVIDIA: CUDA Compatibility, minor version compatibility)."""
_COMPLAINTS = re.compile(
    r"could not load dynamic library|cannot dlopen|failed call to cuinit|cuda_error|loaded runtime cudnn", re.IGNORECASE
)
_PREFIX = re.compile(r"^(\S+ \S+ )?[EWI]\S* .*?\] ")  # time, severity, file
_NO_ANSWER = "no answer"
_INSTALL = "install the package with its GPU libraries: pip install '.[gpu]'"


@dataclass(frozen=True, kw_only=True)
class TensorflowInfo:
    """What the trial has found."""

    error: str = ""
    """Why there is nothing else: it could not be imported, crashed, or took too long."""
    complaints: tuple[str, ...] = ()
    """What TensorFlow said about libraries and the driver."""
    version: str = ""
    cuda_built: str = ""
    """The CUDA that it was built with; "" where it was built without."""
    cudnn_built: str = ""
    cudnn_loaded: str = ""
    capabilities_built: tuple[str, ...] = ()
    """Compute capabilities that it has kernels for: sm_80, or compute_90 for those and all later ones."""
    gpus: tuple[dict[str, Any], ...] = ()
    """name and capability of each that it finds."""
    precision: str = ""
    """In which the step was taken."""
    step_error: str = ""
    """What went wrong in the step."""


def probe_tensorflow(precision: str, *, xla: bool, gpus: bool, limit_s: float = PROBE_TIMEOUT_S) -> TensorflowInfo:
    """Let a process of its own try TensorFlow.

    Args:
        precision: as in RunConfig.
        xla: as in RunConfig.
        gpus: whether they may be used.
        limit_s: after so many seconds it is killed.
    """
    command = [sys.executable, "-m", "pharmclf.diagnostics.tensorflow_probe", precision, str(int(xla)), str(int(gpus))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TF_CPP_MIN_LOG_LEVEL": "0"}
    if not gpus:
        environment["CUDA_VISIBLE_DEVICES"] = "-1"
    elif os.environ.get("CUDA_VISIBLE_DEVICES") == "":  # Ray hides the GPUs from those who reserve none
        del environment["CUDA_VISIBLE_DEVICES"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, env=environment)
    except subprocess.TimeoutExpired:
        return TensorflowInfo(error=f"{_NO_ANSWER} within {limit_s:.0f} s")
    return parse_probe_output(ended.returncode, ended.stdout, ended.stderr)


def parse_probe_output(code: int, output: str, errors: str) -> TensorflowInfo:
    """What the trial's process has said; pure.

    Args:
        code: that it ended with; -N: signal N.
        output: what it wrote to standard output.
        errors: to standard error.
    """
    lines = [_PREFIX.sub("", line).strip() for line in errors.splitlines() if _COMPLAINTS.search(line)]
    complaints = tuple(dict.fromkeys(lines))
    if code:
        return TensorflowInfo(error=describe_exit(code, errors), complaints=complaints)
    found = json.loads(output.strip().splitlines()[-1])
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return TensorflowInfo(complaints=complaints, **values)


def check_tensorflow(facts: TensorflowInfo, driver: DriverInfo, accelerator: str) -> list[Finding]:
    """Whether TensorFlow uses what is there.

    Args:
        facts: of the trial.
        driver: the GPUs that are there.
        accelerator: as in RunConfig.
    """
    if facts.error:
        remedy = "install the package's dependencies anew on this node"
        if facts.error.startswith(_NO_ANSWER):
            remedy = "see `top` for what else runs on this node, and `dmesg` for a GPU that hangs"
        elif "SIGILL" in facts.error:
            remedy = "TensorFlow's packages need a processor with AVX: take another machine"
        return [fail("tensorflow", f"it does not start: {facts.error}", remedy)]
    wanted = bool(driver.gpus) and accelerator != "cpu"
    found = [_check_gpus(facts, driver)] if wanted else []
    on_gpu = wanted and bool(facts.gpus)
    if facts.step_error:
        remedy = "give --precision float32 and --xla False, and update the driver"
        text = f"a step in {facts.precision} on the {'GPU' if on_gpu else 'processors'} fails: {facts.step_error}"
        return [*found, fail("tensorflow", text, remedy)]
    where = "the GPU, whose memory it takes as it needs it" if on_gpu else "the processors"
    return [*found, ok("tensorflow", f"{facts.version} takes a step in {facts.precision} on {where}")]


def _check_gpus(facts: TensorflowInfo, driver: DriverInfo) -> Finding:
    built = f"TensorFlow {facts.version}, built with CUDA {facts.cuda_built}"
    if not facts.cuda_built:
        return fail("CUDA", f"TensorFlow {facts.version} was built without CUDA", _INSTALL)
    least = _MIN_DRIVERS.get(_version_numbers(facts.cuda_built)[0])
    if least and driver.version and _version_numbers(driver.version) < least:
        wanted = ".".join(map(str, least))
        remedy = f"update the driver to {wanted} or newer"
        return fail("CUDA", f"{built}; the driver is {driver.version}, too old for it", remedy)
    if not facts.gpus:
        said = f": {'; '.join(facts.complaints)}" if facts.complaints else ""
        remedy = f"{_INSTALL}; nothing on LD_LIBRARY_PATH may stand before them"
        return fail("CUDA", f"{built}, finds none of {len(driver.gpus)} GPUs{said}", remedy)
    ours, loaded = _version_numbers(facts.cudnn_built), _version_numbers(facts.cudnn_loaded)
    if loaded and ours and (loaded[0] != ours[0] or loaded < ours):
        text = f"{built} and cuDNN {facts.cudnn_built}, finds cuDNN {facts.cudnn_loaded}"
        return fail("CUDA", text, f"{_INSTALL}; nothing on LD_LIBRARY_PATH may stand before them")
    for gpu in facts.gpus:
        capability = tuple(gpu["capability"])
        if capability and facts.capabilities_built and (finding := _check_capability(built, facts, gpu, capability)):
            return finding
    names = ", ".join(str(gpu["name"]) for gpu in facts.gpus)
    cudnn = f", cuDNN {facts.cudnn_loaded}" if facts.cudnn_loaded else ""
    if len(facts.gpus) < len(driver.gpus):
        text = f"{built}{cudnn}, finds {len(facts.gpus)} of {len(driver.gpus)} GPUs: {names}"
        return warn("CUDA", text, "CUDA_VISIBLE_DEVICES names those that may be used; see `nvidia-smi` for the others")
    return ok("CUDA", f"{built}{cudnn}, finds {names}")


def _check_capability(
    built: str, facts: TensorflowInfo, gpu: dict[str, Any], capability: tuple[int, ...]
) -> Finding | None:
    """Whether TensorFlow has kernels for a GPU; None where it has."""
    known = {name: _capability(name) for name in facts.capabilities_built}
    binaries = [version for name, version in known.items() if name.startswith("sm_")]
    portable = [version for name, version in known.items() if name.startswith("compute_")]
    shown = ".".join(map(str, capability))
    # a binary runs on later GPUs of the same first number; portable code on all later ones
    if any(version[0] == capability[0] and version <= capability for version in [*binaries, *portable]):
        return None
    text = f"{built} for {', '.join(facts.capabilities_built)}; {gpu['name']} has compute capability {shown}"
    if any(version <= capability for version in portable):
        return warn("CUDA", text, "its first start compiles all kernels, which takes many minutes; keep ~/.nv between")
    return fail("CUDA", text, "take a GPU that TensorFlow was built for, or a build for this one")


def _capability(name: str) -> tuple[int, int]:
    digits = re.sub(r"\D", "", name) or "0"
    return int(digits[:-1] or 0), int(digits[-1])


def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))
