"""Trains a network whose smoothed version can be certified, into a run directory.

    python -m tfmacer.train --flagfile=mnist.flags

The same command again takes up an unfinished run where it was left; of a finished run it says so.
A flag without a value takes the one that was published for the dataset, objective and sigma, or
the objective's own default; flags.txt in the run directory records what was taken.
"""

import contextlib
import copy
import functools
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
from absl import flags

from tfmacer import commandline
from tfmacer.errors import UserError
from tfmacer.guarantee.smoothing import law
from tfmacer.records.runs import RunDirectory, Smoothing, write_atomically
from tfmacer.training.published import (
    published_augmentation,
    published_options,
    published_weight,
)

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from tfmacer.splits import Split
    from tfmacer.training.objectives import Objective
    from tfmacer.training.trainer import SmoothedTrainer

FLAGS = flags.FlagValues()
_string = functools.partial(flags.DEFINE_string, flag_values=FLAGS)
_integer = functools.partial(flags.DEFINE_integer, flag_values=FLAGS)
_float = functools.partial(flags.DEFINE_float, flag_values=FLAGS)
_bool = functools.partial(flags.DEFINE_bool, flag_values=FLAGS)
_enum = functools.partial(flags.DEFINE_enum, flag_values=FLAGS)
_list = functools.partial(flags.DEFINE_list, flag_values=FLAGS)

_string("run_dir", None, "Where everything is written; {FLAG} stands for its value. Required.")
_string("dataset", None, "mnist5k, a TFDS name, folder:DIR or package.module:function. Required.")
_string("data_dir", None, "Where TensorFlow Datasets keeps its data; its own default otherwise.")
_string("network", "lenet", "A network's name, or package.module:function.")
_string("init_from", None, "Run directory or .keras file whose weights to start from.")
_string(
    "objective",
    "macer",
    "gaussian, macer, stability, consistency, smoothadv, smoothadv_consistency (which has the "
    "flags of both) or smoothmix.",
)
_float("sigma", None, "Scale of the noise on pixels in [0, 1]. Required.")
_string("noise_family", "gaussian", "What noise is trained under, and to be certified under.")
_list("noise_params", [], "Its further parameters: NAME=NUMBER,...")
_integer("num_noise", None, "Noisy copies of each image in a step.", 1)
_float("lambda", None, "Weight of the robustness term (smoothmix: its paper's eta).", 0.0)
_enum(
    "lambda_schedule",
    None,
    ["constant", "deferred", "linear"],
    "deferred: 0 until the first rate decay; linear: grows over --lambda_warmup_epochs.",
)
_float("lambda_warmup_epochs", None, "Length of --lambda_schedule=linear.")
_float("gamma", None, "macer: hinge on the difference of the two quantiles.")
_float("beta", None, "macer: inverse temperature of the robustness term.")
_float("eta", None, "consistency: weight of the entropy.")
_enum("consistency_loss", None, ["default", "kl", "mse"], "consistency: form of the term.")
_enum("attack", None, ["pgd", "ddn"], "smoothadv: how adversarial images are looked for.")
_integer("attack_steps", None, "smoothadv, smoothmix: steps of the attack.", 1)
_float("attack_step_size", None, "smoothmix: l2 length of a step of the attack (alpha).")
_float(
    "epsilon",
    None,
    "smoothadv: l2 bound on the attack, for pixels in [0, 1]; smoothmix: on its one-step adversary "
    "in place of the image, 0 for the image.",
)
_float("epsilon_warmup_epochs", None, "Epochs in which epsilon grows from 0.")
_string("augmentation", None, "none, crop, crop_flip or resized_crop_flip.")
_integer("epochs", 90, "Epochs in all.", 1)
_integer("batch_size", 64, "Images in a step.", 1)
_float("learning_rate", 0.01, "Initial learning rate.")
_list("lr_decay_epochs", [], "Epochs after which the learning rate falls to a tenth.")
_float("momentum", 0.9, "Of SGD.", 0.0, 1.0)
_bool("nesterov", False, "Nesterov's form of momentum.")
_float("weight_decay", 1e-4, "L2, on every trainable variable.", 0.0)
_float("clip_norm", None, "Bound on the gradient's global norm; none where not given.")
_integer("seed", 0, "Of weights, data order and noise.", 0)
_bool("deterministic", False, "Use only kernels that repeat bit for bit.")
_integer("checkpoint_every", 1000, "Steps between checkpoints.", 1)
_integer("eval_examples", 1000, "Test images measured after each epoch; 0 for none.", 0)

# What may change when a run is taken up again: nothing here changes what is trained.
FREE = frozenset({"run_dir", "data_dir", "checkpoint_every", "eval_examples"})

# Flags that only some objectives have, and the field of the objective that each sets.
OBJECTIVE_FLAGS = {
    "lambda": "weight",
    "lambda_schedule": "weight",
    "lambda_warmup_epochs": "weight",
    "gamma": "gamma",
    "beta": "beta",
    "eta": "eta",
    "consistency_loss": "form",
    "attack": "attack",
    "attack_steps": "steps",
    "attack_step_size": "step_size",
    "epsilon": "epsilon",
    "epsilon_warmup_epochs": "epsilon",
}
# As Jeong and Shin (NeurIPS 2020, supplementary A.1) and Jeong et al. (NeurIPS 2021) have it.
EPSILON_WARMUP_EPOCHS = 10.0


def _get(name: str) -> Any:
    return FLAGS[name].value


def _main() -> None:
    _check_flags()
    run = RunDirectory(_run_root())
    with _locked(run):
        commandline.load_tensorflow()
        _train(run)


def _check_flags() -> None:
    """Refuses what can be seen to be wrong before anything starts."""
    for name in ("run_dir", "dataset", "sigma"):
        if _get(name) is None:
            raise UserError(f"--{name} must be given")
    positive = ("sigma", "learning_rate", "clip_norm", "gamma", "beta", "lambda_warmup_epochs")
    for name in (*positive, "attack_step_size"):
        value = _get(name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"--{name} must be positive and finite, got {value}")
    for name in ("lambda", "eta", "weight_decay", "epsilon", "epsilon_warmup_epochs"):
        value = _get(name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise UserError(f"--{name} must be 0 or more and finite, got {value}")
    _decay_epochs()
    _noise_params()


def _run_root() -> Path:
    """The run directory's path, with `{flag}` replaced by that flag's value."""
    values = {name: FLAGS[name].value for name in FLAGS}
    try:
        FLAGS["run_dir"].value = _get("run_dir").format_map(values)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"--run_dir={_get('run_dir')}: {error} is no flag") from error
    return Path(_get("run_dir"))


def _decay_epochs() -> list[int]:
    texts = _get("lr_decay_epochs")
    if not all(text.isdecimal() and int(text) for text in texts):
        raise UserError(f"--lr_decay_epochs must be positive integers, got {','.join(texts)!r}")
    return sorted(int(text) for text in texts)


def _noise_params() -> dict[str, float]:
    """The further parameters of the noise family."""
    params: dict[str, float] = {}
    for text in _get("noise_params"):
        name, _, value = text.partition("=")
        try:
            params[name.strip()] = float(value)
        except ValueError as error:
            raise UserError(f"--noise_params must be NAME=NUMBER,..., got {text!r}") from error
    return params


@contextlib.contextmanager
def _locked(run: RunDirectory) -> Iterator[None]:
    """Makes the run directory and keeps other processes from training in it."""
    lock = filelock.FileLock(run.root / ".lock", timeout=0)
    try:
        run.root.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(f"--run_dir={run.root}: another process is training there") from error
    except OSError as error:
        raise UserError(f"--run_dir={run.root} cannot be written: {error}") from error
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        yield


def _train(run: RunDirectory) -> None:
    from tfmacer import datasets
    from tfmacer.training import batches, callbacks, loop

    split = datasets.load_split(_get("dataset"), "train", _get("data_dir"))
    steps = split.total // _get("batch_size")
    if not steps:
        raise UserError(f"--batch_size={_get('batch_size')} exceeds the {split.total} images")
    objective = _objective(steps)
    # Refuses a family or parameter that no certificate could be given for.
    law(
        _get("noise_family"),
        sigma=_get("sigma"),
        params=_noise_params(),
        dimension=math.prod(split.shape),
    )
    batches.check_trainable(split, _augmentation())
    if _is_finished(run):
        print(f"{run.root}: finished already, with {_get('epochs')} epochs")
        return
    trainer = _trainer(split, objective, steps)
    run.smoothing.unlink(missing_ok=True)
    write_atomically(run.flags, FLAGS.flags_into_string())
    manager = loop.checkpoints(trainer, run.checkpoints)
    if loop.restore(manager):
        print(f"{run.root}: going on after step {int(trainer.optimizer.iterations)}")
    with loop.termination() as stop:
        complete = loop.run(
            trainer,
            lambda step: batches.epoch_batches(
                split,
                batch_size=_get("batch_size"),
                seed=_get("seed"),
                start=step,
                augmentation=_augmentation(),
            ),
            epochs=_get("epochs"),
            steps=steps,
            manager=manager,
            checkpoint_every=_get("checkpoint_every"),
            held_out=_held_out(),
            callbacks=[
                callbacks.MetricsFile(run.metrics),
                callbacks.TensorBoard(
                    run.tensorboard,
                    # As many as a step can hold, which has their copies in memory at once.
                    *split.take(range(_get("batch_size"))),
                    batch_size=_get("batch_size"),
                ),
                callbacks.Progress(_get("epochs"), steps),
            ],
            stop=stop,
        )
    if complete:
        _finish(run, trainer.network, split)
        print(f"{run.root}: done")
    else:
        print(f"{run.root}: stopped after step {int(trainer.optimizer.iterations)}, and saved")


def _objective(steps: int) -> "Objective":
    """The objective that the flags describe; sets the flags that were left open."""
    from tfmacer.training import objectives

    name = _get("objective")
    if name not in objectives.OBJECTIVES:
        raise UserError(
            f"--objective must be one of {', '.join(objectives.OBJECTIVES)}, got {name!r}"
        )
    defaults = objectives.options(name)
    for flag, option in OBJECTIVE_FLAGS.items():
        if option not in defaults and _get(flag) is not None:
            raise UserError(f"--{flag} has no meaning for --objective={name}")
    published = published_options(_get("dataset"), name, _get("sigma"))
    values: dict[str, Any] = {"sigma": _get("sigma")} if "sigma" in defaults else {}
    for flag, option in OBJECTIVE_FLAGS.items():
        if option in defaults and option not in ("weight", "epsilon"):
            _fill(flag, published.get(flag, defaults[option]))
            values[option] = _get(flag)
    if "epsilon" in defaults:
        _fill("epsilon", published.get("epsilon", defaults["epsilon"]))
        values["epsilon"] = _epsilon(steps)
    if "weight" in defaults:
        values["weight"] = _weight(name, steps)
    _fill("num_noise", published.get("num_noise", objectives.OBJECTIVES[name][0].num_noise))
    return objectives.compose(name, **values)


def _fill(flag: str, value: Any) -> None:
    """Gives a flag that was left open a value."""
    FLAGS[flag].value = value if _get(flag) is None else _get(flag)


def _epsilon(steps: int) -> Any:
    """The schedule of epsilon; sets the flag of its length."""
    from tfmacer.training import schedules

    _fill("epsilon_warmup_epochs", EPSILON_WARMUP_EPOCHS)
    return schedules.linear(_get("epsilon"), round(_get("epsilon_warmup_epochs") * steps))


def _weight(objective: str, steps: int) -> Any:
    """The schedule of lambda; sets its flags."""
    from tfmacer.training import schedules

    if _get("lambda") is None:
        published = published_weight(_get("dataset"), objective, _get("sigma"))
        _fill("lambda", published.value)
        _fill("lambda_schedule", published.schedule)
        if _get("lambda_schedule") == published.schedule:
            _fill("lambda_warmup_epochs", published.warmup_epochs)
    kind = FLAGS["lambda_schedule"].value = _get("lambda_schedule") or "constant"
    if (kind == "linear") != (_get("lambda_warmup_epochs") is not None):
        raise UserError("--lambda_warmup_epochs goes with --lambda_schedule=linear, and only there")
    if kind == "linear":
        return schedules.linear(_get("lambda"), round(_get("lambda_warmup_epochs") * steps))
    if kind == "constant":
        return schedules.constant(_get("lambda"))
    if not _decay_epochs():
        raise UserError("--lambda_schedule=deferred needs --lr_decay_epochs")
    return schedules.deferred(_get("lambda"), _decay_epochs()[0] * steps)


def _augmentation() -> str:
    FLAGS["augmentation"].value = _get("augmentation") or published_augmentation(_get("dataset"))
    name: str = _get("augmentation")
    return name


def _trainer(split: "Split", objective: "Objective", steps: int) -> "SmoothedTrainer":
    """The network, its optimizer and its trainer."""
    import keras
    import tensorflow as tf

    from tfmacer.training import networks, schedules
    from tfmacer.training.optimizer import SGD
    from tfmacer.training.trainer import SmoothedTrainer

    if _get("deterministic"):
        tf.config.experimental.enable_op_determinism()
    # Layers without a name are numbered from 1, whatever this process has built before: names are
    # part of the network's digest.
    keras.utils.clear_session()
    keras.utils.set_random_seed(_get("seed"))
    network = networks.build(_get("network"), split.dataset, split.shape, split.num_classes)
    if _get("init_from"):
        networks.copy_weights(Path(_get("init_from")), network)
    names = ("sigma", "noise_family", "num_noise", "seed", "clip_norm")
    options = {name: _get(name) for name in names} | {"noise_params": _noise_params()}
    trainer = SmoothedTrainer(network, objective, **options)
    rate = schedules.piecewise(_get("learning_rate"), [e * steps for e in _decay_epochs()])
    options = {name: _get(name) for name in ("momentum", "nesterov", "weight_decay")}
    trainer.compile(optimizer=SGD(rate, **options))
    return trainer


def _is_finished(run: RunDirectory) -> bool:
    """Whether the directory holds this run, finished.

    Raises:
      UserError: it holds another.
    """
    if not run.flags.is_file():
        return False
    previous = copy.deepcopy(FLAGS)
    previous.unparse_flags()
    try:
        previous(["", f"--flagfile={run.flags}"])
    except flags.Error as error:
        raise UserError(f"{run.flags} cannot be read: {error}") from error
    changed = sorted(n for n in set(FLAGS) - FREE if previous[n].value != _get(n))
    longer = changed == ["epochs"] and _get("epochs") > (previous["epochs"].value or 0)
    if changed and not longer:
        raise UserError(
            f"--run_dir={run.root} holds a run of other flags: "
            + "; ".join(f"--{n} was {previous[n].value}, is {_get(n)}" for n in changed)
            + "; give the same ones (--epochs may grow) or another --run_dir"
        )
    return not changed and run.smoothing.is_file()


def _held_out() -> "tf.data.Dataset | None":
    """Batches of test images, evenly spaced; None where there are none."""
    import tensorflow as tf

    from tfmacer import datasets

    name = datasets.held_out_split(_get("dataset"))
    if name is None or not _get("eval_examples"):
        return None
    split = datasets.load_split(_get("dataset"), name, _get("data_dir"))
    every = max(split.total // _get("eval_examples"), 1)
    images, labels = split.take(range(0, split.total, every)[: _get("eval_examples")])
    return tf.data.Dataset.from_tensor_slices((images, labels)).batch(256)


def _finish(run: RunDirectory, network: "keras.Model", split: "Split") -> None:
    """Writes the network and, last, the description that makes the run a finished one."""
    import keras

    from tfmacer.votes.devices import library_versions
    from tfmacer.votes.models import network_digest

    temporary = run.root / ".model.keras"
    network.save(temporary)
    digest = network_digest(temporary, keras.models.load_model(temporary, compile=False))
    temporary.replace(run.model)
    smoothing = Smoothing(
        sigma=_get("sigma"),
        noise_family=_get("noise_family"),
        noise_params=_noise_params(),
        num_classes=split.num_classes,
        input_shape=split.shape,
        dataset=_get("dataset"),
        objective=_get("objective"),
        model_digest=digest,
        versions=library_versions(),
    )
    write_atomically(run.smoothing, smoothing.to_json())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    return commandline.run(_main, FLAGS, argv, name="python -m tfmacer.train", doc=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
