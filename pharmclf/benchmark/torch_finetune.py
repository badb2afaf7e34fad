"""Fine-tuning of all of EfficientNet-Lite0 in PyTorch: a program for the environment that `peer_runs` makes.

It imports nothing of this package, and PyTorch by its name, since pharmclf does not depend on it. It reads a `TorchJob`
as JSON from standard input, and writes a line of JSON after each epoch, the fields of an `AccuracyPoint`.

The recipe: Adam, one cycle up to the learning rate, horizontal and vertical flips, quarter turns, batch normalisation
frozen with its statistics, scale and offset; dropout and drop-connect of the published network (0.2 each). Tensors are
channels-last: a step of 8 images at 224 px took 0.73 s of processor time instead of 0.90 s.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps

NETWORK = "efficientnet-lite0"


@dataclass(frozen=True, kw_only=True)
class TorchJob:
    """The images, and the recipe."""

    began: float
    """`time.time()` at the start of the process."""
    weights: str
    """File of the ImageNet weights."""
    paths: Sequence[str]
    labels: Sequence[int]
    """Class number of each path."""
    splits: Mapping[str, Sequence[int]]
    """Indexes of the paths in train, validation and test."""
    num_classes: int
    image_size: int
    """Pixels."""
    batch_size: int
    epochs: int
    learning_rate: float
    """Peak of the cycle."""
    threads: int
    seed: int


def read_images(paths: Sequence[str], side: int) -> np.ndarray:
    """Decode images -> (n, side, side, 3) uint8 RGB."""
    images = np.empty((len(paths), side, side, 3), np.uint8)
    for place, path in enumerate(paths):
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            images[place] = np.asarray(upright.resize((side, side), Image.Resampling.BILINEAR))
    return images


def augment(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn each image by a random quarter turn, and flip it at random in both directions: (n, S, S, 3)."""
    changed = []
    for image, turns, steps in zip(images, rng.integers(4, size=len(images)), rng.choice([-1, 1], (len(images), 2)),
                                   strict=True):  # fmt: skip
        changed.append(np.rot90(image, turns)[:: steps[0], :: steps[1]])
    return np.stack(changed)


def load_network(torch: Any, weights: str, side: int) -> Any:
    """The network with its ImageNet weights and classifier, for images of `side` pixels."""
    networks = importlib.import_module("efficientnet_lite_pytorch")
    network = networks.EfficientNet.from_name(NETWORK, image_size=side)
    network.load_state_dict(torch.load(weights, weights_only=True))
    return network


def to_input(torch: Any, images: np.ndarray) -> Any:
    """(n, S, S, 3) uint8 -> (n, 3, S, S) float32 of (x - 127) / 128, channels last."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().sub_(127).div_(128)


def set_training(torch: Any, network: Any) -> None:
    """Training mode, except for batch normalisation."""
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
            module.requires_grad_(False)


def evaluate(torch: Any, network: Any, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Share of the images that the network predicts right, 0..1, and the mean cross-entropy."""
    network.eval()
    with torch.no_grad():
        parts = [network(to_input(torch, images[first : first + 64])) for first in range(0, len(images), 64)]
    outputs, targets = torch.cat(parts), torch.from_numpy(labels)
    loss = torch.nn.functional.cross_entropy(outputs, targets)
    return float((outputs.argmax(1) == targets).float().mean()), float(loss)


def finetune(job: TorchJob) -> None:
    """Train, and write the accuracies after each epoch; the time of the tests does not count."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    rng, labels = np.random.default_rng(job.seed), np.array(job.labels)
    images = read_images(job.paths, job.image_size)
    network = load_network(torch, job.weights, job.image_size)
    network._fc = torch.nn.Linear(network._fc.in_features, job.num_classes)
    network = network.to(memory_format=torch.channels_last)
    set_training(torch, network)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    adam = torch.optim.Adam(trained, lr=job.learning_rate)
    rows = np.array(job.splits["train"])
    steps = -(-len(rows) // job.batch_size)
    cycle = torch.optim.lr_scheduler.OneCycleLR(adam, job.learning_rate, total_steps=job.epochs * steps)
    tested_s = 0.0
    for _ in range(job.epochs):
        set_training(torch, network)
        order = rng.permutation(rows)
        for first in range(0, len(order), job.batch_size):
            batch = order[first : first + job.batch_size]
            outputs = network(to_input(torch, augment(images[batch], rng)))
            loss = torch.nn.functional.cross_entropy(outputs, torch.from_numpy(labels[batch]))
            adam.zero_grad()
            loss.backward()
            adam.step()
            cycle.step()
        validation, test = (np.array(job.splits[split]) for split in ("validation", "test"))
        val_accuracy, val_loss = evaluate(torch, network, images[validation], labels[validation])
        now = time.time()
        test_accuracy, _ = evaluate(torch, network, images[test], labels[test])
        point = {"val_accuracy": val_accuracy, "val_loss": val_loss, "test_accuracy": test_accuracy}
        sys.stdout.write(json.dumps({"seconds": now - job.began - tested_s, **point}) + "\n")
        tested_s += time.time() - now
        sys.stdout.flush()


if __name__ == "__main__":
    finetune(TorchJob(**json.load(sys.stdin)))
