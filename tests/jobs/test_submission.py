"""Jobs as they are submitted to a cluster: stopped, repeated, on S3, refused; and clusters that are open to others."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from support.programs import SMALL, in_the_middle_of
from support.ray_head import Head, Refused, ask, running_head
from support.s3server import Gateway

from pharmclf import storage
from pharmclf.distributed.cluster_auth import _local_addresses
from pharmclf.training.checkpoint import list_checkpoints

pytestmark = [pytest.mark.ray, pytest.mark.tf]


def test_a_job_without_the_token_is_refused(ray_head: Head) -> None:
    """None and a wrong one: refused, and no job is there; `ray job submit` says what is missing."""
    url, token = f"{ray_head.address}/api/jobs/", ray_head.environment["RAY_AUTH_TOKEN"]
    before = ask(url, token=token)
    for given, status in ((None, 401), ("0" * 64, 403)):
        with pytest.raises(Refused) as refused:
            ask(url, "POST", {"entrypoint": "true"}, given)
        assert refused.value.args[0] == status
    stranger = dataclasses.replace(ray_head, environment=ray_head.environment | {"RAY_AUTH_MODE": "disabled"})
    ended = stranger.job("submit", "--", "true")
    assert ended.returncode != 0
    assert "Missing authentication token" in ended.stdout + ended.stderr
    assert ask(url, token=token) == before


def test_a_submitted_job_ends_with_the_summary(drawn_images: str, tmp_path: Path, ray_head: Head) -> None:
    """`ray job submit --working-dir . -- python jobs/train.py` takes the same flags and prints the summary last.

    Variables that the submission sets and the job would set itself are no conflict, and stay the submission's. A sweep
    without --storage is refused, since its winner would be deleted with the copy of the working directory.
    """
    flags = [f"--data={drawn_images}", f"--storage={tmp_path}", "--name=job", *SMALL]
    flags += ["--phase1.epochs=1", "--phase2.epochs=1"]
    submitted = ray_head.submit("python", "jobs/train.py", *flags, AWS_REGION="eu-west-1", TF_CPP_MIN_LOG_LEVEL="2")
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "\nverdict: " in submitted.stdout
    assert json.loads((tmp_path / "job" / "result.json").read_text())["workers"] == 1
    lost = ray_head.submit("python", "tune/sweep.py", f"--data={drawn_images}", "--name=search", "--trials=2")
    assert "failed with exit code 2" in lost.stdout
    assert re.search(
        r"error: --storage: received /\S+/runs, which is in Ray's copy of the working directory", lost.stdout
    )


@pytest.mark.slow
def test_a_stopped_job_leaves_its_checkpoint_and_goes_on_when_it_is_submitted_again(
    drawn_images: str, tmp_path: Path, ray_head: Head
) -> None:
    """`ray job stop` in the middle of an epoch: the run says what it kept, and loses not one step.

    Meanwhile a second submission of the name is refused; after the end, one says that the run is complete.
    """
    train = ["python", "jobs/train.py", f"--data={drawn_images}", f"--storage={tmp_path}", "--name=run", *SMALL]
    train += ["--phase1.epochs=30", "--stopping.early-patience=30"]  # time enough to be stopped
    ray_head.begin("first", *train)
    ray_head.wait_until("first", (tmp_path / "run" / "lease.json").exists)
    second = ray_head.submit(*train)
    assert second.returncode == 1
    assert "failed with exit code 2" in second.stdout
    assert re.search(r"error: .* is being written by process \d+ on ", second.stdout)
    ray_head.wait_until("first", in_the_middle_of(tmp_path / "run", 0))
    stopped = ray_head.job("stop", "first")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "was stopped" in stopped.stdout
    newest = list_checkpoints(str(tmp_path / "run" / "checkpoints"))[-1]
    assert f"stopped on request; checkpoint {newest.position.label} is written" in ray_head.log("first")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "interrupted"
    resumed = ray_head.submit(*train)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"resumed from {newest.name}" in resumed.stdout
    again = ray_head.submit(*train)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "is complete already" in again.stdout


@pytest.mark.slow
def test_bad_input_fails_the_job_and_is_its_last_line(tmp_path: Path, ray_head: Head) -> None:
    """Ray's state of the job names the exit code; `ray job submit` itself ends with 1."""
    refused = ray_head.submit("python", "jobs/train.py", "--data=/nowhere/at/all", f"--storage={tmp_path}")
    assert refused.returncode == 1
    assert "failed with exit code 2" in refused.stdout
    (name,) = set(re.findall(r"raysubmit_\w+", refused.stdout))
    last = ray_head.log(name).strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "/nowhere/at/all" in last


@pytest.mark.slow
@pytest.mark.s3
def test_a_submitted_run_goes_from_bucket_to_bucket(
    drawn_images: str, bucket: str, gateway: Gateway, ray_head: Head
) -> None:
    """The submission's variables reach driver and workers, its configuration travels, and no secret is printed."""
    storage.upload_folder(Path(drawn_images), f"{bucket}/images")
    flags = [f"--data={bucket}/images", f"--storage={bucket}/runs", "--name=run", "--num-workers=2", *SMALL]
    flags += ["--phase1.epochs=1", "--phase2.epochs=1"]
    variables = gateway.environment()
    assert not set(variables) & set(ray_head.environment)
    config = "--config=pharmclf/presets/lookalikes-quick.yaml"
    ended = ray_head.submit("python", "jobs/train.py", config, *flags, **variables)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert storage.read_json(f"{bucket}/runs/run/result.json")["workers"] == 2
    assert storage.read_json(f"{bucket}/runs/run/run.json")["config"]["augment"]["views"] > 0
    assert variables["AWS_SECRET_ACCESS_KEY"] not in ended.stdout + ended.stderr


@pytest.mark.slow
def test_a_submitted_sweep_ends_with_its_winner(drawn_images: str, tmp_path: Path, ray_head: Head) -> None:
    """Exit code 0, both trials ended, and the winner tested."""
    flags = [f"--data={drawn_images}", f"--storage={tmp_path}", "--name=search", "--trials=2", *SMALL]
    flags += ["--phase1.epochs=2", "--phase2.epochs=2", "--augment.views=2"]
    ended = ray_head.submit("python", "tune/sweep.py", *flags)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(list((tmp_path / "search" / "trials").glob("*/run.json"))) == 2
    assert (tmp_path / "search" / "sweep.parquet").exists()


ASK = (
    "import ray; from pharmclf.distributed.cluster_auth import require_cluster_auth as ask; "
    "ask(ray.init().address_info, False)"
)


@pytest.mark.slow
@pytest.mark.parametrize("dashboard_host", ["0.0.0.0", "127.0.0.1"])
def test_a_cluster_without_tokens_is_refused_and_one_with_them_is_not(
    drawn_images: str, tmp_path: Path, dashboard_host: str
) -> None:
    """By its job server where that listens on all addresses, by its node's agent otherwise; nothing is trained."""
    if not _local_addresses():
        pytest.skip("this machine has no address but 127.0.0.1")
    flags = [f"--data={drawn_images}", f"--storage={tmp_path}", "--name=run", *SMALL]
    door = {"0.0.0.0": "/api/jobs/", "127.0.0.1": "/api/job_agent/"}[dashboard_host]
    with running_head(with_token=False, dashboard_host=dashboard_host) as head:
        refused = head.submit("python", "jobs/train.py", *flags)
        assert refused.returncode == 1
        assert "failed with exit code 2" in refused.stdout
        assert re.search(
            rf"error: cluster: received one that takes jobs from anyone who reaches \S+{door}", refused.stdout
        )
        assert not (tmp_path / "run" / "checkpoints").exists()
    with running_head(with_token=True, dashboard_host=dashboard_host) as head:
        joined = head.submit("python", "-c", ASK)
        assert joined.returncode == 0, joined.stdout + joined.stderr
