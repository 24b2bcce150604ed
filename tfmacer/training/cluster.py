"""The machines that train together, as the environment variable TF_CONFIG names them."""

import os
from typing import NamedTuple

from tfmacer.common import strict_json
from tfmacer.common.errors import UserError


class Cluster(NamedTuple):
    """How many machines train together, and whether this is the one that writes."""

    workers: int
    chief: bool


def find_cluster(distribution: str) -> Cluster:
    """The machines of TF_CONFIG, or this one alone.

    Args:
      distribution: `TrainConfig.distribution`.

    Raises:
      UserError: TF_CONFIG cannot be read, or names no machines where `multi_worker` needs them.
    """
    if distribution in ("one_device", "mirrored"):
        return Cluster(1, chief=True)
    text = os.environ.get("TF_CONFIG", "")
    try:
        config = strict_json.loads(text) if text else {}
        machines = config.get("cluster", {})
        count = sum(len(addresses) for addresses in machines.values())
        task = (config["task"]["type"], int(config["task"]["index"])) if count else None
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(f"TF_CONFIG={text!r} is no description of a cluster: {error!r}") from error
    if others := set(machines) - {"chief", "worker"}:
        raise UserError(f"TF_CONFIG must name chief and worker tasks only, got {sorted(others)}")
    if distribution == "multi_worker" and not count:
        raise UserError("--distribution=multi_worker needs TF_CONFIG, which names the machines")
    first = ("chief", 0) if machines.get("chief") else ("worker", 0)
    return Cluster(max(count, 1), chief=task in (None, first))
