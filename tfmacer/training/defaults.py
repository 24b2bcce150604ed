"""What a run takes where its configuration leaves a field open."""

import dataclasses
from typing import Any

from tfmacer.common.errors import UserError
from tfmacer.training import objectives
from tfmacer.training.config import TrainConfig
from tfmacer.training.flags import fields_of
from tfmacer.training.published import (
    published_augmentation,
    published_options,
    published_weight,
)

# As Jeong and Shin (NeurIPS 2020, supplementary A.1) and Jeong et al. (NeurIPS 2021) have it.
EPSILON_WARMUP_EPOCHS = 10.0


def resolve(config: TrainConfig) -> TrainConfig:
    """The configuration with the published values, or else the defaults, of what it leaves open.

    Raises:
      UserError: the objective is unknown, has no use for a field that is given, or has no
        published weight where none is given.
    """
    name = config.objective
    if name not in objectives.OBJECTIVES:
        known = ", ".join(objectives.OBJECTIVES)
        raise UserError(f"--objective must be one of {known}, got {name!r}")
    options = objectives.options(name)
    published = published_options(config.dataset, name, config.sigma)
    given = {"epsilon_warmup_epochs": EPSILON_WARMUP_EPOCHS} | published
    taken: dict[str, Any] = {
        "num_noise": published.get("num_noise", objectives.OBJECTIVES[name][0].num_noise),
        "augmentation": published_augmentation(config.dataset),
    }
    for field in fields_of(TrainConfig):
        option = field.known.get("option")
        if option in options and option != "weight":
            taken[field.name] = given.get(field.name, options[option])
        elif option not in (None, *options) and getattr(config, field.name) is not None:
            raise UserError(f"--{field.flag_name} has no meaning for --objective={name}")
    if "weight" in options:
        taken |= _weight(config)
    left_open = {key: value for key, value in taken.items() if getattr(config, key) is None}
    found = dataclasses.replace(config, run_dir=str(config.run_directory().root), **left_open)
    _check_schedule(found)
    return found


def _weight(config: TrainConfig) -> dict[str, Any]:
    """The weight and its schedule; the published schedule goes with the published weight."""
    if config.lambda_ is not None:
        return {"lambda_schedule": "constant"}
    published = published_weight(config.dataset, config.objective, config.sigma)
    taken: dict[str, Any] = {"lambda_": published.value, "lambda_schedule": published.schedule}
    if config.lambda_schedule in (None, published.schedule):
        taken["lambda_warmup_epochs"] = published.warmup_epochs
    return taken


def _check_schedule(config: TrainConfig) -> None:
    grows = config.lambda_schedule in ("linear", "by_epoch")
    if grows != (config.lambda_warmup_epochs is not None):
        raise UserError(
            "--lambda_warmup_epochs goes with --lambda_schedule=linear or by_epoch, and only there"
        )
    if config.lambda_schedule == "deferred" and not config.lr_decay_epochs:
        raise UserError("--lambda_schedule=deferred needs --lr_decay_epochs")
