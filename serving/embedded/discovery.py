"""Which versions a model should have, from the directories below its base path."""

import logging
import re
from pathlib import Path

from serving.embedded.configuration import Model

logger = logging.getLogger(__name__)

# What absl::SimpleAtoi takes for a number: a sign and leading zeros are fine, `v1`, `1.0` are not.
_NUMBER = re.compile(r"\s*[+-]?\d+\s*")


def aspired_versions(model: Model) -> dict[int, Path] | None:
    """Version directories that the model's policy asks for; None where the path cannot be read.

    A numeric directory counts as soon as it is there, complete or not: writers must rename a
    finished directory into place.
    """
    try:
        children = sorted(model.base_path.iterdir(), key=lambda child: child.name)
    except OSError as error:
        logger.warning("base path of model %s cannot be read: %s", model.name, error)
        return None
    found: dict[int, Path] = {}
    for child in children:
        if not _NUMBER.fullmatch(child.name) or not child.is_dir():
            continue
        version = int(child.name)
        if version < 0:
            continue
        if version in found:
            logger.warning(
                "model %s: %s and %s are both %d", model.name, found[version], child, version
            )
        found[version] = child
    if not found:
        logger.warning("no versions of model %s found under %s", model.name, model.base_path)
    return _chosen(model, found)


def _chosen(model: Model, found: dict[int, Path]) -> dict[int, Path]:
    choice = model.policy.WhichOneof("policy_choice")
    if choice == "all":
        return found
    if choice == "specific":
        for version in set(model.policy.specific.versions) - set(found):
            logger.warning("model %s: version %d is not there", model.name, version)
        return {v: path for v, path in found.items() if v in model.policy.specific.versions}
    count = model.policy.latest.num_versions or 1
    return {version: found[version] for version in sorted(found)[-count:]}
