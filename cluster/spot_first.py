"""Spot machines first, on-demand ones where the cloud has no spot capacity: node providers for Ray's cluster launcher.

Use `provider: {type: external, module: spot_first.Aws}` instead of `type: aws`, and `spot_first.Gcp` instead of `gcp`.
All else is Ray's provider. The module must be importable where `ray up` runs and on the head: PYTHONPATH=cluster.

Ray 2.60 does not fall back: among node types that fit equally it uses the one of higher `priority`, and only a machine
that started and never joined lowers it; a launch that the cloud refuses is repeated with the same type.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from ray.autoscaler.tags import TAG_RAY_LAUNCH_REQUEST

logger = logging.getLogger(__name__)

NO_CAPACITY = (
    # EC2: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
    "InsufficientInstanceCapacity",
    "MaxSpotInstanceCountExceeded",
    "SpotMaxPriceTooLow",
    "UnfulfillableCapacity",
    # Compute Engine; pre-emptible GPUs have a separate quota
    "ZONE_RESOURCE_POOL_EXHAUSTED",
    "QUOTA_EXCEEDED",
)
"""Parts of the errors with which a cloud refuses spot machines, but may have them on demand."""


def on_demand(node_config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same machine on demand; None where it is on demand already."""
    if "InstanceMarketOptions" in node_config:
        return {key: value for key, value in node_config.items() if key != "InstanceMarketOptions"}
    scheduling = node_config.get("scheduling", {})
    if scheduling.get("provisioningModel") != "SPOT":
        return None
    kept = {key: scheduling[key] for key in scheduling.keys() - {"provisioningModel", "instanceTerminationAction"}}
    return {**node_config, "scheduling": kept}


def has_no_capacity(error: Exception) -> bool:
    """Whether the cloud has no such spot machine now; False for a mistake in the request."""
    text = f"{getattr(error, 'category', '')} {error}"
    return any(code in text for code in NO_CAPACITY)


def spot_first(base: type) -> type:
    """A subclass of one of Ray's node providers that launches on demand what it cannot get as spot."""

    class SpotFirst(base):
        def create_node(self, node_config: dict[str, Any], tags: dict[str, str], count: int) -> Any:
            plain = on_demand(node_config)
            try:
                return super().create_node(node_config, tags, count)
            except Exception as error:
                if plain is None or not has_no_capacity(error):
                    raise
                logger.warning("no spot capacity, launching on demand: %s", error)
            # of several machines requested at once, Compute Engine may have started some before it refused the others
            request = tags.get(TAG_RAY_LAUNCH_REQUEST)
            started = len(self.non_terminated_nodes({TAG_RAY_LAUNCH_REQUEST: request})) if request and count > 1 else 0
            return super().create_node(plain, tags, count - started) if count > started else {}

    return SpotFirst


def __getattr__(name: str) -> type:
    """`Aws` and `Gcp`, created on access: each needs the libraries of its cloud only."""
    if name == "Aws":
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        return spot_first(AWSNodeProvider)
    if name == "Gcp":
        from ray.autoscaler._private.gcp.node_provider import GCPNodeProvider

        return spot_first(GCPNodeProvider)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
