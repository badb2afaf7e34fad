"""The sections of a run's settings, each a frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pharmclf.config.fields import setting


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The images that `data: demo` draws."""

    images_per_class: int = setting(100, "number", 5, 1_000_000)
    """Images drawn for each of the ten products."""


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How rows are divided; stratified, and near duplicates stay together."""

    test: float = setting(0.2, "share", 0.01, 0.9)
    """Share of all rows in the test split."""
    validation: float = setting(0.2, "share", 0.01, 0.9)
    """Share of the remaining rows in the validation split."""
    ignore_folders: bool = False
    """Draw the splits also where folders such as train, valid and test give them."""


PIXEL_CHANGES = ("brightness", "contrast", "color", "blur", "noise", "erase")
"""Settings of `augment` that change values of pixels; at 0 none does."""


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random transforms of the training images; validation and test images are never augmented."""

    rotation_deg: float = setting(20.0, "angle in degrees", 0, 180)
    """Rotation, uniform in ± this many degrees."""
    shift: float = setting(0.2, "share", 0, 1)
    """Shift along each axis, uniform in ± this share of the side."""
    shear: float = setting(0.2, "factor", 0, 1)
    """Horizontal shear, uniform in ± this factor."""
    zoom: float = setting(0.2, "factor", 0, 0.9)
    """Zoom of each axis, uniform in 1 ± this factor."""
    horizontal_flip: bool = True
    """Mirror left-right with probability 1/2."""
    vertical_flip: bool = False
    """Mirror top-bottom with probability 1/2."""
    brightness: float = setting(0.0, "factor", 0, 0.9)
    """Brightness, multiplied by a factor uniform in 1 ± this."""
    contrast: float = setting(0.0, "factor", 0, 0.9)
    """Contrast about medium grey, multiplied by a factor uniform in 1 ± this."""
    color: float = setting(0.0, "factor", 0, 0.9)
    """Coloured light: red, green and blue are each multiplied by a factor uniform in 1 ± this."""
    blur: float = setting(0.0, "share of the side", 0, 0.1)
    """Gaussian blur of every second image, of a standard deviation up to this share of the side."""
    noise: float = setting(0.0, "number of levels", 0, 128)
    """Noise of a standard deviation up to this many of the 255 levels."""
    erase: float = setting(0.0, "share of the area", 0, 0.9)
    """A grey rectangle in every second image, of up to this share of the area."""
    fill: Literal["nearest", "reflect", "constant"] = "reflect"
    """How pixels beyond the edge of a moved image are filled."""
    views: int = setting(0, "number", 0, 10_000)
    """Different augmentations of an image: epoch e sees view e mod views. 0: a new one every epoch."""

    @property
    def is_enabled(self) -> bool:
        """Whether any transform changes an image."""
        ranges = (self.rotation_deg, self.shift, self.shear, self.zoom)
        return any(ranges) or self.horizontal_flip or self.vertical_flip or self.changes_pixels

    @property
    def changes_pixels(self) -> bool:
        """Whether any transform changes values of pixels besides moving them."""
        return any(getattr(self, name) for name in PIXEL_CHANGES)


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """The classifier on the pooled features of the backbone."""

    dense: tuple[int, ...] = (512, 256)
    """Units of the hidden ReLU layers, each followed by dropout. Empty: one linear layer behind the dropout."""
    dropout: float = setting(0.3, "share", 0, 0.95, per_head=True)
    """Share of the units that are dropped in training."""


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """One phase of training."""

    epochs: int = setting(20, "number", 0, 100_000)
    """Epochs at most; early stopping may end the phase before. 0 leaves the phase out."""
    learning_rate: float = setting(1e-4, "rate", 0, per_head=True)
    """Learning rate, the peak of it with a cosine schedule."""
    schedule: Literal["constant", "cosine"] = setting("constant", per_head=True)
    """constant: halved on a plateau (see `stopping`). cosine: linear warm-up, then half a cosine down to the floor."""
    warmup: float = setting(0.1, "share", 0, 1, per_head=True)
    """Share of the phase's steps that warm up linearly (cosine schedule only)."""
    image_size: str = ""
    """Sizes of the training images, in pixels: 128x10-full trains 10 epochs at 128, the others at the model's size;
    128-128-full two thirds of the epochs at 128. Empty: always the model's size."""


@dataclass(frozen=True, kw_only=True)
class StoppingConfig:
    """When a phase ends early and when its learning rate falls."""

    early_patience: int = setting(5, "number of epochs", 0, per_head=True)
    """Epochs without a better validation accuracy before the phase ends. 0: never."""
    plateau_patience: int = setting(3, "number of epochs", 0, per_head=True)
    """Epochs without a lower validation loss before the learning rate falls (constant schedule only). 0: never."""
    plateau_factor: float = setting(0.5, "factor", 0.001, 1, per_head=True)
    """The learning rate is multiplied by this on a plateau."""
    learning_rate_floor: float = setting(1e-7, "rate", 0, 1, per_head=True)
    """The learning rate never falls below this."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The loss and the optimizer, which is Adam."""

    weight_decay: float = setting(0.0, "factor", 0, 1, per_head=True)
    """Decoupled weight decay (AdamW). 0: plain Adam."""
    clip_norm: float = setting(0.0, "norm", 0, per_head=True)
    """Gradients are scaled down to this global norm. 0: never."""
    label_smoothing: float = setting(0.0, "share", 0, 0.9, per_head=True)
    """Share of the target's probability that is spread over all classes."""
    class_weights: Literal["off", "auto"] = "off"
    """auto: a row weighs rows / (classes x rows of its class), so that rare products count as much as common ones."""
