"""Benchmark of a sweep: the same trials with a shared feature cache and reused workers, and without."""

from __future__ import annotations

import dataclasses
import statistics
import time
from pathlib import Path

import pandas as pd

from pharmclf import storage
from pharmclf.benchmark.measure import Report
from pharmclf.benchmark.pharmclf_run import local_runs
from pharmclf.config import RunConfig
from pharmclf.core.console import Say
from pharmclf.core.errors import RunError
from pharmclf.tuning.options import SweepOptions
from pharmclf.tuning.sweep import run_sweep
from pharmclf.tuning.sweep_results import TABLE_FILE
from pharmclf.tuning.sweep_start import SWEEP_FILE

_NUM_TRIALS = 6
_NUM_HEADS = 32


def benchmark_sweep(config: RunConfig, space: Path, say: Say) -> Report:
    """Run the same trials with sharing and without, and head-only trials one and `_NUM_HEADS` at a time.

    Args:
        config: of the runs: data, backbone, epochs, `augment.views` (1 or more).

    Returns:
        rows: for each sweep seconds in all, trials, and the median overhead of a trial beyond its training; ratios.
    """
    same = SweepOptions(trials=_NUM_TRIALS, search="random", halving=False)
    plain = dataclasses.replace(same, reuse_workers=False, batch_heads=False)
    with local_runs(config) as config:
        folder = config.storage
        heads = dataclasses.replace(config, phase2=dataclasses.replace(config.phase2, epochs=0))

        def timed(name: str, run: RunConfig, options: SweepOptions) -> Report:
            began = time.perf_counter()
            if code := run_sweep(options, dataclasses.replace(run, name=name), space, lambda _: None):
                raise RunError(f"the sweep ended with exit code {code}")
            seconds = time.perf_counter() - began
            table = pd.read_parquet(f"{folder}/{name}/{TABLE_FILE}")
            result = storage.read_json(f"{folder}/{name}/{SWEEP_FILE}")["result"]
            trials_s, overhead_s = float(table["seconds"].sum()), statistics.median(table["overhead_s"])
            say(
                f"{name:<10} {len(table):>3} trials  in all {seconds:7.1f} s  trials alone {trials_s:7.1f} s  "
                f"overhead {overhead_s:5.2f} s a trial  test accuracy of the best {result['test_accuracy']:.3f}"
            )
            return {
                "sweep": name, "trials": len(table), "seconds": seconds, "trials_s": trials_s, "overhead_s": overhead_s,
                "val_accuracy": float(table["val_accuracy"].max()), "test_accuracy": result["test_accuracy"],
            }  # fmt: skip

        one = timed("one-head", heads, dataclasses.replace(same, trials=1))
        many = timed("heads", heads, dataclasses.replace(same, trials=_NUM_HEADS))
        shared = timed("shared", config, same)
        alone = timed("alone", dataclasses.replace(config, feature_cache="never"), plain)
    ratios = {
        "in all, alone / shared": alone["seconds"] / shared["seconds"],
        f"{_NUM_HEADS} heads / one head, trials alone": many["trials_s"] / one["trials_s"],
    }
    for what, value in ratios.items():
        say(f"{what}: {value:.2f}")
    return {"backbone": config.backbone, "rows": [one, many, shared, alone], "ratios": ratios}
