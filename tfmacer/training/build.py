"""What a training run is made of, from its resolved configuration."""

from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tfmacer.common.errors import UserError
from tfmacer.data import datasets
from tfmacer.data.splits import Split
from tfmacer.records.runs import RunDirectory, Smoothing
from tfmacer.training import (
    batches,
    callbacks,
    distribution,
    networks,
    objectives,
    precision,
    schedules,
)
from tfmacer.training.config import TrainConfig
from tfmacer.training.flags import fields_of
from tfmacer.training.objective import Objective
from tfmacer.training.optimizer import SGD
from tfmacer.training.schedules import Schedule
from tfmacer.training.trainer import SmoothedTrainer
from tfmacer.votes.devices import library_versions


def objective(config: TrainConfig, steps: int) -> Objective:
    """The objective, its schedules in steps.

    Args:
      config: resolved.
      steps: per epoch.
    """
    options = objectives.options(config.objective)
    values: dict[str, Any] = {
        field.known["option"]: getattr(config, field.name)
        for field in fields_of(TrainConfig)
        if field.known.get("option") in options
    }
    if "sigma" in options:
        values["sigma"] = config.sigma
    if "epsilon" in options:
        length = config.epsilon_warmup_epochs
        assert config.epsilon is not None
        assert length is not None
        values["epsilon"] = schedules.by_epoch(config.epsilon, length, steps)
    if "weight" in options:
        values["weight"] = _weight(config, steps)
    return objectives.compose(config.objective, **values)


def _weight(config: TrainConfig, steps: int) -> Schedule:
    value, length = config.lambda_, config.lambda_warmup_epochs
    assert value is not None
    if config.lambda_schedule == "deferred":
        return schedules.deferred(value, min(config.lr_decay_epochs) * steps)
    if length is None:
        return schedules.constant(value)
    if config.lambda_schedule == "linear":
        return schedules.linear(value, round(length * steps))
    return schedules.by_epoch(value, length, steps)


def trainer(
    config: TrainConfig, split: Split, steps: int, strategy: tf.distribute.Strategy
) -> SmoothedTrainer:
    """The network, its optimizer and its trainer.

    Args:
      config: resolved.
      split: the training images.
      steps: per epoch.
      strategy: whose devices train.
    """
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    # Layers without a name are numbered from 1, whatever this process has built before: names are
    # part of the network's digest.
    keras.utils.clear_session()
    keras.utils.set_random_seed(config.seed)
    names = ("sigma", "noise_family", "noise_params", "num_noise", "noise_chunk", "seed")
    boundaries = [epoch * steps for epoch in sorted(config.lr_decay_epochs)]
    with strategy.scope():
        with precision.policy(config.precision):
            network = networks.build(config.network, split.dataset, split.shape, split.num_classes)
        if config.init_from:
            networks.copy_weights(Path(config.init_from), network)
        made = SmoothedTrainer(
            network,
            objective(config, steps),
            clip_norm=config.clip_norm,
            **{name: getattr(config, name) for name in names},
        )
        optimizer = SGD(
            schedules.piecewise(config.learning_rate, boundaries),
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
        made.compile(optimizer=optimizer, jit_compile=config.jit)
    return made


def epochs(config: TrainConfig, split: Split) -> distribution.Batches:
    """Gives a share of the batches from a step to the end of its epoch."""
    assert config.augmentation is not None
    options: dict[str, Any] = {"batch_size": config.batch_size, "seed": config.seed}
    options["augmentation"] = config.augmentation
    return lambda step, share: batches.epoch_batches(split, **options, start=step, share=share)


def held_out(config: TrainConfig) -> Split | None:
    """The test images; None where there are none, or none are asked for.

    Raises:
      UserError: images are to be certified and there are none.
    """
    name = datasets.held_out_split(config.dataset)
    if name is None and config.certify_every:
        raise UserError(f"--certify_every: --dataset={config.dataset} has no test images")
    if name is None or not (config.eval_examples or config.certify_every):
        return None
    return datasets.load_split(config.dataset, name, config.data_dir)


def evaluated(config: TrainConfig, test: Split | None) -> tf.data.Dataset | None:
    """Batches of test images; None for none."""
    if test is None or not config.eval_examples:
        return None
    return tf.data.Dataset.from_tensor_slices(_spread(test, config.eval_examples)).batch(256)


def listeners(
    config: TrainConfig, run: RunDirectory, split: Split, test: Split | None, steps: int
) -> list[keras.callbacks.Callback]:
    """The callbacks of a run; those that measure come before those that write."""
    found: list[keras.callbacks.Callback] = []
    if test is not None and config.certify_every:
        images, labels = _spread(test, config.certify_examples)
        described = smoothing(config, split, "in training")
        found.append(callbacks.Certify(images, labels, described, every=config.certify_every))
    size = config.batch_size
    watched = split.take(range(min(size, split.total)))
    return [
        *found,
        callbacks.MetricsFile(run.metrics),
        callbacks.TensorBoard(run.tensorboard, *watched, batch_size=size),
        callbacks.Progress(config.epochs, steps),
    ]


def smoothing(config: TrainConfig, split: Split, digest: str) -> Smoothing:
    """What a certificate must know of the network."""
    names = ("sigma", "noise_family", "noise_params", "dataset", "objective", "precision")
    return Smoothing(
        **{name: getattr(config, name) for name in names},
        num_classes=split.num_classes,
        input_shape=split.shape,
        model_digest=digest,
        versions=library_versions(),
    )


def _spread(split: Split, count: int) -> tuple[Any, Any]:
    """Images and labels of a split, evenly spaced."""
    every = max(split.total // count, 1)
    return split.take(range(0, split.total, every)[:count])
