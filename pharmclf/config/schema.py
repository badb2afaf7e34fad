"""The settings of one run: frozen dataclasses, with every cross-check in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from pharmclf.config.fields import check_ranges, setting
from pharmclf.config.parsing import (
    check_image_sizes,
    check_location,
    check_name,
    expand_home,
    has_credentials,
    parse_data_sets,
    parse_microbatch,
    parse_workers,
)
from pharmclf.config.sections import (
    AugmentConfig,
    DemoConfig,
    HeadConfig,
    OptimizerConfig,
    PhaseConfig,
    SplitConfig,
    StoppingConfig,
)
from pharmclf.core.errors import ConfigError
from pharmclf.core.units import format_examples, parse_duration, parse_share

DEMO = "demo"

BackboneName = Literal[
    "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "resnet50", "resnet101", "resnet50v2", "vgg16",
    "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_b0",
    "efficientnet_v2_s", "efficientnet_v2_m", "densenet121", "inception_v3", "xception", "convnext_tiny",
    "convnext_small", "convnext_base",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what a run does. What is not given here or on the command line has these defaults."""

    data: str = setting(DEMO, affects_result=False)
    """Folder or s3:// prefix of class folders, a CSV or Parquet list (path, label[, group, split]), or "demo"."""
    labels: str = ""
    """A CSV or Parquet list (path, label) of corrected labels, such as a run's suspects.csv; the label "drop" leaves an
    image out. Empty: none."""
    storage: str = setting("runs", affects_result=False, per_head=True)
    """Folder or s3:// prefix that holds runs; must be shared by all nodes of a cluster."""
    label_level: int = setting(0, "number of folders", -20, 20)
    """Which folder is the label: 1 is the first below data (folders of splits do not count), 2 the next; -1 the folder
    that holds the image, -2 the one above. 0: found where it is clear."""
    name: str = setting("", affects_result=False, per_head=True)
    """Name of the run, the folder below storage. The same name again resumes. Empty: named after the data."""
    num_workers: str = setting("auto", affects_result=False, per_head=True)
    """N: Ray Train workers, an accelerator each; MIN-MAX: as many as there are; 0: this process; auto: what fits."""
    backbone: BackboneName = "efficientnet_lite0"
    """The pretrained network; `pharmclf train --backbone list` compares them."""
    weights: str = setting("imagenet", affects_result=False)
    """imagenet, none (random), or a file: .weights.h5, .keras or the .h5 of keras.applications."""
    init_from: str = setting("", affects_result=False)
    """A finished run's folder or a saved model: training starts from its weights, with those of its head for labels
    that both know. Learning rates stay as given: for a few epochs, give a tenth. Empty: from `weights`."""
    seed: int = setting(0, "number", 0, 2**31 - 1)
    """Decides split, order, augmentation, initial head and dropout."""
    image_size: int = setting(224, "side in pixels", 32, 2048)
    """Side of the square that images are resized to, in pixels."""
    crop: Literal["auto", "off"] = "off"
    """auto: look at the product that the pretrained network finds in an image, where that helps; off: at all of it."""
    batch_size: int = setting(64, "number of images", 1, 65536)
    """Global batch, whatever the number of workers. auto: it stays what it is, and microbatch is auto."""
    microbatch: str = setting("whole", affects_result=False, per_head=True)
    """N: most images that a device computes at once, with the steps of the whole batch; whole: a worker's share of the
    batch; auto: the most that fit, found by trying before the start."""
    unfreeze_blocks: int = setting(2, "number of blocks", 0, per_head=True)
    """Blocks of the backbone, counted from the top, that phase 2 trains."""
    max_invalid: str = setting("20%", affects_result=False)
    """Largest share of quarantined images that the run accepts, as 1% or 0.01."""
    min_images: int = setting(3, "number of images", 1, 1_000_000)
    """Classes with fewer different images (copies count once) are left out by name, unless a list divides them."""
    precision: Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"] = "auto"
    """auto: mixed_bfloat16 or mixed_float16 where the GPU has fast units for it, float32 elsewhere."""
    all_reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format in which several workers exchange gradients. bfloat16: half the bytes, rounded to 8 bits."""
    xla: bool = setting(False, affects_result=False)
    """Compile the training step with XLA."""
    deterministic: bool = True
    """Same steps bit for bit at every run on the same hardware; some GPU kernels are slower for it."""
    checkpoint_interval_s: float = setting(300.0, "number of seconds", 0, affects_result=False, per_head=True)
    """Seconds between checkpoints inside an epoch; the end of an epoch always writes one. 0: only there."""
    num_checkpoints_to_keep: int = setting(2, "number", 1, affects_result=False, per_head=True)
    """Number of newest checkpoints that are kept, besides the best of each phase."""
    feature_cache: Literal["auto", "always", "never"] = setting("auto", affects_result=False, per_head=True)
    """Compute the features of the frozen blocks once, and keep them. auto: where it saves time."""
    feature_cache_dtype: Literal["float16", "float32"] = setting("float16", affects_result=False)
    """Number format of cached features."""
    image_cache: Literal["auto", "on", "off"] = setting("auto", affects_result=False, per_head=True)
    """Keep decoded images on each node's local disk. auto: where reading them is ten times as fast as decoding."""
    time_budget: str = ""
    """Time for all of a run, as 30m or 2h: each phase is shortened after its first epoch if it would take too long.
    Empty: no limit."""
    folds: int = setting(0, "number of folds", 0, 100)
    """Train so many more models first, each without one part of all images, and score every image by the model that has
    not seen it; 2 or more. 0: none."""
    max_failures: int = setting(3, "number", 0, affects_result=False, per_head=True)
    """Worker crashes, node losses and hung steps after which the run restarts from its newest checkpoint."""
    node_timeout: str = setting("10m", affects_result=False, per_head=True)
    """How long to wait for the nodes that the workers need, at the start and after a loss: 90s, 10m, 2h."""
    accelerator: Literal["auto", "gpu", "cpu"] = setting("auto", affects_result=False)
    """auto: a GPU for each worker where the cluster has some. gpu: wait until it has. cpu: train without."""
    step_timeout_s: float = setting(600.0, "number of seconds", 0, affects_result=False, per_head=True)
    """Seconds without a step after which the workers are considered hung, and restarted. 0: never."""
    monitor_interval_s: float = setting(5.0, "number of seconds", 0, 3600, affects_result=False, per_head=True)
    """Seconds between readings of GPUs, processors, memory, disks and network on every node. 0: none."""
    allow_unauthenticated_cluster: bool = setting(False, affects_result=False, per_head=True)
    """Join a cluster whose job server takes jobs from anyone who reaches it."""
    skip_checks: bool = setting(False, affects_result=False, per_head=True)
    """Leave out the short checks of machines and storage before the start (`pharmclf doctor` has them all)."""
    price_per_hour: float = setting(0.0, "price", 0, affects_result=False, per_head=True)
    """Price of the machines for an hour, in any currency; of a sweep, of the whole cluster. 0: unknown."""
    eval_data: tuple[str, ...] = setting((), affects_result=False, per_head=True)
    """NAME=DIR or NAME=s3://…: images from another source, evaluated besides the test split; may be repeated."""
    unknown: tuple[str, ...] = setting((), affects_result=False, per_head=True)
    """NAME=DIR or NAME=s3://…: images of products that the model does not know, of which it should answer none; may be
    repeated."""
    target_error: str = setting("1%", affects_result=False, per_head=True)
    """Share of wrong answers, at most, among images that the model does not send to manual review, as 1% or 0.01."""
    tensorboard: bool = setting(True, affects_result=False, per_head=True)
    """Write TensorBoard logs into the run's folder, where tensorboardX is installed."""
    mlflow: str = setting("", affects_result=False, per_head=True)
    """MLflow server that the run is logged to: http://HOST:PORT, or sqlite:///FILE on one machine. Empty: none."""
    split: SplitConfig = field(default_factory=SplitConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    phase1: PhaseConfig = field(default_factory=PhaseConfig)
    phase2: PhaseConfig = field(default_factory=lambda: PhaseConfig(epochs=30, learning_rate=1e-5))
    stopping: StoppingConfig = field(default_factory=StoppingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    demo: DemoConfig = field(default_factory=DemoConfig)

    def __post_init__(self) -> None:
        for name in ("data", "labels", "storage", "weights", "init_from"):
            object.__setattr__(self, name, expand_home(getattr(self, name)))
        for name in ("eval_data", "unknown"):
            object.__setattr__(self, name, tuple(map(expand_home, getattr(self, name))))
        _check(self)

    @property
    def run_name(self) -> str:
        """The name given, or one made of the last part of the data's path."""
        if self.name:
            return self.name
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", self.data.rstrip("/").rsplit("/", 1)[-1]).strip("-.")
        return stem or "run"

    @property
    def max_invalid_share(self) -> float:
        """`max_invalid` as a number in 0..1."""
        return parse_share(self.max_invalid, "max_invalid")

    @property
    def target_error_share(self) -> float:
        """`target_error` as a number in 0..1."""
        return parse_share(self.target_error, "target_error")

    @property
    def eval_locations(self) -> dict[str, str]:
        """`eval_data` as name -> location."""
        return parse_data_sets(self.eval_data)

    @property
    def unknown_locations(self) -> dict[str, str]:
        """`unknown` as name -> location."""
        return parse_data_sets(self.unknown, "unknown")

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers; (0, 0) trains in the calling process; `distributed.cluster` chooses for auto."""
        return parse_workers(self.num_workers)

    @property
    def node_timeout_s(self) -> float:
        """`node_timeout` in seconds."""
        return parse_duration(self.node_timeout, "node_timeout", plain_seconds=True)

    @property
    def time_budget_s(self) -> float:
        """`time_budget` in seconds; 0: no limit."""
        return parse_duration(self.time_budget, "time_budget", plain_seconds=True) if self.time_budget else 0.0

    @property
    def microbatch_rows(self) -> int | None:
        """`microbatch` as a number; 0: a worker's whole share; None: to be found."""
        return parse_microbatch(self.microbatch)

    @property
    def views(self) -> int:
        """Different augmentations of a training image; 0: one per epoch; without augmentation 1."""
        return self.augment.views if self.augment.is_enabled else 1


def _check(config: RunConfig) -> None:
    """Every check over the fields of a run, each with what was received, what is expected and the remedy."""
    parse_share(config.max_invalid, "max_invalid")
    if not 0 < config.target_error_share < 1:
        text = "expected a share above 0 and below 1. Write it as 1% or 0.01"
        raise ConfigError(f"target_error: received {config.target_error!r}, {text}")
    twice = parse_data_sets(config.eval_data).keys() & parse_data_sets(config.unknown, "unknown").keys()
    if twice:
        names = format_examples(sorted(twice))
        raise ConfigError(f"unknown: received {names}, which eval_data has too. Give each set another name")
    parse_workers(config.num_workers)
    parse_microbatch(config.microbatch)
    parse_duration(config.node_timeout, "node_timeout", plain_seconds=True)
    if config.time_budget and not config.time_budget_s:
        raise ConfigError(f"time_budget: received {config.time_budget!r}, expected a time above 0, as 30m or 2h")
    if config.folds == 1:
        raise ConfigError("folds: received 1, expected 0, or 2 or more parts of the images")
    if config.folds and config.time_budget:
        raise ConfigError(
            "time_budget: received one with folds, whose models train as long as the run's. Give one of both"
        )
    check_name(config.name)
    for field_name in ("data", "labels", "storage", "weights", "init_from"):
        check_location(field_name, getattr(config, field_name))
    if has_credentials(config.mlflow):
        raise ConfigError(
            "mlflow: received a URI with credentials in it, expected http://HOST:PORT. Give them by "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    check_ranges(config)
    if any(units < 1 for units in config.head.dense):
        raise ConfigError(f"head.dense: received {list(config.head.dense)}, expected layers of 1 unit or more")
    if config.feature_cache == "always" and config.views == 0:
        raise ConfigError(
            "feature_cache: received always with augment.views 0, where every epoch sees new images and nothing "
            "would be used twice. Give --augment.views 2 or more, or --feature-cache auto"
        )
    if config.phase1.epochs + config.phase2.epochs == 0:
        raise ConfigError("phase1.epochs and phase2.epochs: both are 0. Give at least one phase an epoch")
    for name, phase in (("phase1", config.phase1), ("phase2", config.phase2)):
        is_last = name == "phase2" or config.phase2.epochs == 0
        check_image_sizes(phase.image_size, phase.epochs, f"{name}.image_size", config.image_size, is_last=is_last)
