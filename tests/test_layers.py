"""The house stands: imports go one way, and what decides waits for neither TensorFlow nor Ray."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PURE = [
    "core.errors", "core.hashing", "core.tables", "core.units",
    "config", "storage", "evaluation.metrics", "progress", "cli", "data.manifest", "data.splits", "data.batch_sampler",
    "data.stateless_rng", "data.augment", "data.demo", "data.prepare", "data.run_manifest",
    "training.phases", "training.lr_schedule", "training.checkpoint", "training.context",
    "training.checkpoint_manager", "runs.registry", "training.train_state", "reporting.run_plots",
    "reporting.run_summary", "reporting.html_report", "reporting.model_card", "reporting.calibration_plots",
    "evaluation.abstention_policy", "monitoring", "evaluation.label_alignment", "evaluation.saved_model",
    "evaluation.evaluate", "models.backbone_split", "models.devices", "runs.best_model", "feature_cache.cache_key",
    "feature_cache.cache_policy", "feature_cache.shards", "feature_cache.reader", "feature_cache.inventory",
    "feature_cache.local_cache", "training.grouping", "distributed.cluster_auth", "training.proxy",
    "distributed.ray_address", "distributed.scaling_policy", "training.lr_finder",
    "training.microbatch", "training.loop_progress", "distributed.failure_policy", "runs.status", "runs.status_format",
    "runs.status_reader", "runs.status_writer", "tuning.space", "tuning.search", "tuning.asha", "tuning.options",
    "tuning.trial_store",
]  # fmt: skip
WITH_RAY = [
    "pipeline",
    "runs.prometheus",
    "feature_cache.manager",
    "data.ray_loader",
    "distributed.controller",
    "evaluation.predict",
]
_SHOW = "; import sys; print(*sorted({'tensorflow', 'keras', 'ray'} & set(sys.modules)))"


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)


def _files_with(pattern: str) -> list[str]:
    files = sorted((ROOT / "pharmclf").rglob("*.py"))
    return [str(path.relative_to(ROOT)) for path in files if re.search(pattern, path.read_text(encoding="utf-8"))]


def _imported(modules: list[str]) -> list[str]:
    done = _python("import " + ", ".join(f"pharmclf.{name}" for name in modules) + _SHOW)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def _lint(options: str = "") -> subprocess.CompletedProcess[str]:
    return _python(f"from importlinter import cli; raise SystemExit(cli.lint_imports(no_cache=True, {options}))")


def test_imports_keep_every_contract_of_the_project():
    """import-linter reads all code of the package; the contracts stand in pyproject.toml."""
    done = _lint()
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"Contracts: [3-9] kept, 0 broken", done.stdout), done.stdout


def test_what_decides_imports_neither_tensorflow_nor_ray():
    """Plans, splits, schedules, checkpoints and cuts load in a fresh process without them, also by a detour."""
    assert _imported(PURE) == []


def test_the_driver_imports_ray_and_not_tensorflow():
    """A driver starts in the seconds that Ray takes; only workers pay for TensorFlow."""
    assert _imported(WITH_RAY) == ["ray"]


def test_a_violation_is_noticed(tmp_path: Path):
    """The linter sees imports of other packages, and those inside functions: a contract against them breaks."""
    contract = "[importlinter:contract:{0}]\nname = {0}\ntype = forbidden\n{1}\n"
    one = "source_modules = pharmclf.distributed.controller\nforbidden_modules = ray"
    two = "source_modules = pharmclf.data.augment\nforbidden_modules = tensorflow"
    opening = "[importlinter]\nroot_package = pharmclf\ninclude_external_packages = True\n"
    (tmp_path / "broken.ini").write_text(opening + contract.format("one", one) + contract.format("two", two))
    done = _lint(f"config_filename={str(tmp_path / 'broken.ini')!r}")
    assert "Contracts: 0 kept, 2 broken" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize("word", ["TF_CONFIG", r"tf\.distribute"])
def test_one_file_alone_knows_the_strategy(word: str):
    """TF_CONFIG and TensorFlow's strategies are named in training/collectives.py and nowhere else."""
    assert _files_with(word) == ["pharmclf/training/collectives.py"]


def test_nothing_uses_the_keras_that_ray_replaces():
    """`tf.keras` is legacy Keras on Ray's workers; `import keras` is not."""
    assert _files_with(r"\btf\.keras\b|tensorflow\.keras|tensorflow import keras") == []
