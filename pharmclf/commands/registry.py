"""The commands of `pharmclf`; a module is imported when its command is called."""

from __future__ import annotations

import importlib
from types import ModuleType

COMMANDS = {
    "train": "train and test a classifier of product images",
    "sweep": "search learning rates, dropout and unfreeze depth",
    "predict": "predict the images of a folder, bucket or list into a table",
    "serve": "answer for images over HTTP, with a page for people",
    "evaluate": "test a saved model on labelled images",
    "export": "write SavedModel, ONNX, TFLite or OpenVINO, verified by running it",
    "fetch-best": "copy the best model out of a storage, verified",
    "status": "show where runs and sweeps are",
    "doctor": "check machines, storage and data before a run",
    "benchmark": "measure the speed of each part on this machine",
    "prepare": "list, check and split a data set without training",
    "cache": "list and delete cached features",
}
"""Name of each command, and what it does."""


def load_command(name: str) -> ModuleType:
    """Import the module of a command, which has a parser PARSER and a function main(arguments) -> exit code.

    `arguments` are the flags behind the name of the command; None: those of this process.

    Args:
        name: one of COMMANDS.
    """
    return importlib.import_module(f"pharmclf.commands.{name.replace('-', '_')}")
