"""How workers exchange tensors: read from the traced graph, so that it is proved without GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support.ray_head import free_port

_TRACE = """
import json, os, sys
from typing import Any
import tensorflow as tf
from pharmclf.training.collectives import Workers, exchange_options

found = []
for has_gpu in (False, True):
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=exchange_options(has_gpu))
    for dtype in ("float32", "bfloat16"):
        workers = Workers(strategy, 0, 2, gradient_dtype=dtype)
        shapes = [tf.TensorSpec((3, 3)), tf.TensorSpec((5,)), tf.TensorSpec((4,))]

        def exchange(*tensors):
            *gradients, sums = (tf.identity(tensor) for tensor in tensors)
            return workers.all_reduce_gradients(gradients, sums)

        traced = tf.function(lambda *tensors: workers.run(exchange, *tensors), autograph=False)
        graph = traced.get_concrete_function(*shapes).graph
        gradients, sums = traced.get_concrete_function(*shapes).structured_outputs
        assert [tensor.dtype for tensor in (*gradients, sums)] == [tf.float32] * 3
        exchanges = [operation for operation in graph.get_operations() if "CollectiveReduce" in operation.type]
        found.append([
            (operation.get_attr("communication_hint").decode(), operation.inputs[0].dtype.name)
            for operation in exchanges
        ])
print(json.dumps(found))
"""


@pytest.mark.tf
def test_workers_with_gpus_exchange_by_nccl_and_others_in_a_ring() -> None:
    """The hint of each exchange; bfloat16 halves the gradients, and leaves the sums of the metrics exact."""
    cluster = {"worker": [f"127.0.0.1:{free_port()}" for _ in range(2)]}
    command, roots = [sys.executable, "-c", _TRACE], os.pathsep.join(sys.path)
    chief, other = (
        os.environ
        | {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})}
        | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": roots}
        for rank in range(2)
    )
    with subprocess.Popen(command, env=other, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            traced = subprocess.run(command, env=chief, capture_output=True, text=True, timeout=400)
        finally:
            process.kill()
    assert traced.returncode == 0, traced.stderr
    ring, rounded_ring, nccl, rounded_nccl = json.loads(traced.stdout.splitlines()[-1])
    assert (ring, nccl) == ([["ring", "float32"]], [["nccl", "float32"]])
    assert rounded_ring == [["ring", "bfloat16"], ["ring", "float32"]]
    assert rounded_nccl == [["nccl", "bfloat16"], ["nccl", "float32"]]
