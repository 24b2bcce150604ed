"""Which versions a model should have, from the directories below its base path."""

import logging
import re
from pathlib import Path

from serving.model_server.configuration import Model

logger = logging.getLogger(__name__)

# What absl::SimpleAtoi takes for a number: a sign and leading zeros are fine, `v1`, `1.0` are not.
_NUMBER = re.compile(r"\s*[+-]?\d+\s*", re.ASCII)


class Discovery:
    """Looks below base paths; says each oddity once, not at every look."""

    def __init__(self) -> None:
        self._said: dict[str, list[str]] = {}

    def aspired(self, model: Model) -> dict[int, Path] | None:
        """Version directories that the model's policy asks for; None for an unreadable base path.

        A numeric directory counts as soon as it is there, complete or not: writers must rename a
        finished directory into place.
        """
        oddities: list[str] = []
        try:
            children = sorted(model.base_path.iterdir(), key=lambda child: child.name)
        except OSError as error:
            oddities.append(f"base path cannot be read: {error}")
            chosen = None
        else:
            chosen = _chosen(model, _numbered(children, oddities), oddities)
        for oddity in oddities:
            if oddity not in self._said.get(model.name, ()):
                logger.warning("model %s: %s", model.name, oddity)
        self._said[model.name] = oddities
        return chosen


def _numbered(children: list[Path], oddities: list[str]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for child in children:
        if not _NUMBER.fullmatch(child.name) or not child.is_dir():
            continue
        version = int(child.name)
        if not 0 <= version < 2**63:
            continue
        if version in found:
            oddities.append(f"{found[version].name} and {child.name} are both {version}")
        found[version] = child
    return found


def _chosen(model: Model, found: dict[int, Path], oddities: list[str]) -> dict[int, Path]:
    if not found:
        oddities.append(f"no versions found under {model.base_path}")
    choice = model.policy.WhichOneof("policy_choice")
    if choice == "all":
        return found
    if choice == "specific":
        wanted = set(model.policy.specific.versions)
        oddities += [f"version {version} is not there" for version in sorted(wanted - set(found))]
        return {version: found[version] for version in wanted & set(found)}
    count = model.policy.latest.num_versions or 1
    return {version: found[version] for version in sorted(found)[-count:]}
