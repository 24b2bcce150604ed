"""The flags of `tfmacer.train`: what they may be, what they mean together, what they default to.

A flag without a value takes the one that was published for the dataset, objective and sigma, or
the objective's own default.
"""

import copy
import functools
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from tfmacer.common import commandline, strict_json
from tfmacer.common.errors import UserError
from tfmacer.records.runs import RunDirectory, read_text
from tfmacer.training.published import (
    published_augmentation,
    published_options,
    published_weight,
)

if TYPE_CHECKING:
    from tfmacer.training.objectives import Objective

FLAGS: flags.FlagValues = flags.FlagValues()
_string = functools.partial(flags.DEFINE_string, flag_values=FLAGS)
_integer = functools.partial(flags.DEFINE_integer, flag_values=FLAGS)
_float = functools.partial(flags.DEFINE_float, flag_values=FLAGS)
_bool = functools.partial(flags.DEFINE_bool, flag_values=FLAGS)
_enum = functools.partial(flags.DEFINE_enum, flag_values=FLAGS)
_list = functools.partial(flags.DEFINE_list, flag_values=FLAGS)

_string("run_dir", None, "Where everything is written; {FLAG} stands for its value. Required.")
_string("dataset", None, "mnist5k, a TFDS name, folder:DIR or package.module:function. Required.")
_string("data_dir", None, "Where TensorFlow Datasets keeps its data; its own default otherwise.")
_string("train_split", "train", "Split to train on, e.g. train[:90%] to keep a tenth for choosing.")
_string("network", "lenet", "A network's name, or package.module:function.")
commandline.define_import(FLAGS)
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
_integer(
    "noise_chunk",
    None,
    "gaussian, macer, consistency: copies of each image in memory at once, a divisor of "
    "--num_noise; all where not given. One more forward pass, and memory that does not grow with "
    "--num_noise. Batch statistics are then those of a chunk.",
    1,
)
_float("lambda", None, "Weight of the robustness term (smoothmix: its paper's eta).", 0.0)
_enum(
    "lambda_schedule",
    None,
    ["constant", "deferred", "linear", "by_epoch"],
    "deferred: 0 until the first rate decay; linear, by_epoch: grows over --lambda_warmup_epochs, "
    "step by step from 0 or once an epoch from a first share.",
)
_float("lambda_warmup_epochs", None, "Length of --lambda_schedule=linear or by_epoch.")
_float("gamma", None, "macer: hinge on the difference of the two quantiles.")
_float("beta", None, "macer: inverse temperature of the robustness term.")
_float("eta", None, "consistency: weight of the entropy.")
_enum("consistency_loss", None, ["default", "kl", "mse"], "consistency: form of the term.")
_enum("attack", None, ["pgd", "ddn"], "smoothadv: how adversarial images are looked for.")
_enum(
    "attack_code",
    None,
    ["salman", "jeong"],
    "smoothadv: whose code pgd follows. salman: pixels are clipped to [0, 1] before the change is "
    "projected, steps are of full length; jeong: after it, and steps are shorter the surer an "
    "image is. Default: salman; of smoothadv_consistency, jeong.",
)
_integer("attack_steps", None, "smoothadv, smoothmix: steps of the attack.", 1)
_float("attack_step_size", None, "smoothmix: l2 length of a step of the attack (alpha).")
_float(
    "epsilon",
    None,
    "smoothadv: l2 bound on the attack, for pixels in [0, 1]; smoothmix: on its one-step adversary "
    "in place of the image, 0 for the image.",
)
_float("epsilon_warmup_epochs", None, "Epochs in which epsilon grows, once in each.")
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
_enum(
    "distribution",
    "auto",
    ["auto", "one_device", "mirrored", "multi_worker"],
    "mirrored: all GPUs of this machine; multi_worker: the machines of the environment variable "
    "TF_CONFIG; auto: the last of these that there is more than one of.",
)
_enum(
    "precision",
    "float32",
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "What the network computes in; noise, losses and weights stay float32. Part of the network.",
)
_bool(
    "jit",
    False,
    "Compile the step with XLA, which draws other noise from the same seed. Slower on CPUs.",
)
_integer("checkpoint_every", 1000, "Steps between checkpoints.", 1)
_integer("eval_examples", 1000, "Test images measured after each epoch; 0 for none.", 0)
_integer("certify_every", 0, "Epochs between certifications of a few test images; 0 for none.", 0)
_integer("certify_examples", 200, "How many images that is.", 1)

# What may change when a run is taken up again: nothing here changes what is trained. On another
# number of devices the checkpoint itself is refused.
FREE = frozenset(
    {
        "run_dir",
        "data_dir",
        "checkpoint_every",
        "eval_examples",
        "certify_every",
        "certify_examples",
        "distribution",
    }
)

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
    "attack_code": "code",
    "attack_steps": "steps",
    "attack_step_size": "step_size",
    "epsilon": "epsilon",
    "epsilon_warmup_epochs": "epsilon",
}
# As Jeong and Shin (NeurIPS 2020, supplementary A.1) and Jeong et al. (NeurIPS 2021) have it.
EPSILON_WARMUP_EPOCHS = 10.0


class Cluster(NamedTuple):
    """How many machines train together, and whether this is the one that writes."""

    workers: int
    chief: bool


def get(name: str) -> Any:
    """A flag's value."""
    return FLAGS[name].value


def check() -> None:
    """Refuses what can be seen to be wrong before anything starts."""
    for name in ("run_dir", "dataset", "sigma"):
        if get(name) is None:
            raise UserError(f"--{name} must be given")
    positive = ("sigma", "learning_rate", "clip_norm", "gamma", "beta", "lambda_warmup_epochs")
    for name in (*positive, "attack_step_size"):
        value = get(name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"--{name} must be positive and finite, got {value}")
    for name in ("lambda", "eta", "weight_decay", "epsilon", "epsilon_warmup_epochs"):
        value = get(name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise UserError(f"--{name} must be 0 or more and finite, got {value}")
    if get("jit") and get("deterministic"):
        raise UserError("--jit goes without --deterministic: XLA does not promise to repeat")
    decay_epochs()
    noise_params()
    cluster()


def run_root() -> Path:
    """The run directory's path, with `{flag}` replaced by that flag's value."""
    values = {name: FLAGS[name].value for name in FLAGS}
    try:
        FLAGS["run_dir"].value = get("run_dir").format_map(values)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"--run_dir={get('run_dir')}: {error} is no flag") from error
    return Path(get("run_dir"))


def decay_epochs() -> list[int]:
    """Epochs after which the learning rate falls, in order."""
    texts = get("lr_decay_epochs")
    if not all(text.isdecimal() and int(text) for text in texts):
        raise UserError(f"--lr_decay_epochs must be positive integers, got {','.join(texts)!r}")
    return sorted(int(text) for text in texts)


def noise_params() -> dict[str, float]:
    """The further parameters of the noise family."""
    params: dict[str, float] = {}
    for text in get("noise_params"):
        name, _, value = text.partition("=")
        try:
            params[name.strip()] = float(value)
        except ValueError as error:
            raise UserError(f"--noise_params must be NAME=NUMBER,..., got {text!r}") from error
    return params


def cluster() -> Cluster:
    """The machines that train together, by the environment variable TF_CONFIG.

    Raises:
      UserError: it cannot be read, or names none where `--distribution` asks for them.
    """
    if get("distribution") in ("one_device", "mirrored"):
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
    if get("distribution") == "multi_worker" and not count:
        raise UserError("--distribution=multi_worker needs TF_CONFIG, which names the machines")
    first = ("chief", 0) if machines.get("chief") else ("worker", 0)
    return Cluster(max(count, 1), chief=task in (None, first))


def objective(steps: int) -> "Objective":
    """The objective that the flags describe; sets the flags that were left open."""
    from tfmacer.training import objectives

    name = get("objective")
    if name not in objectives.OBJECTIVES:
        raise UserError(
            f"--objective must be one of {', '.join(objectives.OBJECTIVES)}, got {name!r}"
        )
    defaults = objectives.options(name)
    for flag, option in OBJECTIVE_FLAGS.items():
        if option not in defaults and get(flag) is not None:
            raise UserError(f"--{flag} has no meaning for --objective={name}")
    published = published_options(get("dataset"), name, get("sigma"))
    values: dict[str, Any] = {"sigma": get("sigma")} if "sigma" in defaults else {}
    for flag, option in OBJECTIVE_FLAGS.items():
        if option in defaults and option not in ("weight", "epsilon"):
            _fill(flag, published.get(flag, defaults[option]))
            values[option] = get(flag)
    if "epsilon" in defaults:
        _fill("epsilon", published.get("epsilon", defaults["epsilon"]))
        values["epsilon"] = _epsilon(steps)
    if "weight" in defaults:
        values["weight"] = _weight(name, steps)
    _fill("num_noise", published.get("num_noise", objectives.OBJECTIVES[name][0].num_noise))
    return objectives.compose(name, **values)


def _fill(flag: str, value: Any) -> None:
    """Gives a flag that was left open a value."""
    FLAGS[flag].value = value if get(flag) is None else get(flag)


def _epsilon(steps: int) -> Any:
    """The schedule of epsilon; sets the flag of its length."""
    from tfmacer.training import schedules

    _fill("epsilon_warmup_epochs", EPSILON_WARMUP_EPOCHS)
    return schedules.by_epoch(get("epsilon"), get("epsilon_warmup_epochs"), steps)


def _weight(objective: str, steps: int) -> Any:
    """The schedule of lambda; sets its flags."""
    from tfmacer.training import schedules

    if get("lambda") is None:
        published = published_weight(get("dataset"), objective, get("sigma"))
        _fill("lambda", published.value)
        _fill("lambda_schedule", published.schedule)
        if get("lambda_schedule") == published.schedule:
            _fill("lambda_warmup_epochs", published.warmup_epochs)
    kind = FLAGS["lambda_schedule"].value = get("lambda_schedule") or "constant"
    length = get("lambda_warmup_epochs")
    if (kind in ("linear", "by_epoch")) != (length is not None):
        raise UserError(
            "--lambda_warmup_epochs goes with --lambda_schedule=linear or by_epoch, and only there"
        )
    if kind == "linear":
        return schedules.linear(get("lambda"), round(length * steps))
    if kind == "by_epoch":
        return schedules.by_epoch(get("lambda"), length, steps)
    if kind == "constant":
        return schedules.constant(get("lambda"))
    if not decay_epochs():
        raise UserError("--lambda_schedule=deferred needs --lr_decay_epochs")
    return schedules.deferred(get("lambda"), decay_epochs()[0] * steps)


def augmentation() -> str:
    """The name of the augmentation; sets the flag where it was left open."""
    FLAGS["augmentation"].value = get("augmentation") or published_augmentation(get("dataset"))
    name: str = get("augmentation")
    return name


def is_finished(run: RunDirectory) -> bool:
    """Whether the directory holds this run, finished.

    Raises:
      UserError: it holds another, or one of which it cannot be told.
    """
    if not run.flags.is_file():
        if run.smoothing.exists() or run.checkpoints.exists():
            raise UserError(
                f"--run_dir={run.root} holds a run without {run.flags.name}, which says of what "
                "flags; give another --run_dir"
            )
        return False
    same = is_same(read_text(run.flags), run.flags)
    return same and run.smoothing.is_file()


def is_same(text: str, origin: Path) -> bool:
    """Whether a run was started with these flags, and not with fewer epochs.

    Args:
      text: the flags that it was started with, as `flags_into_string` writes them.
      origin: where it stands.

    Raises:
      UserError: the flags are others, or cannot be read.
    """
    previous = copy.deepcopy(FLAGS)
    previous.unparse_flags()
    lines = [line.strip() for line in text.splitlines()]
    try:
        if included := [line for line in lines if line.lstrip("-").startswith("flagfile")]:
            raise flags.Error(f"{included[0]!r} leads to another file")
        previous(["", *(line for line in lines if line and not line.startswith("#"))])
    except flags.Error as error:
        raise UserError(f"{origin}: cannot be read: {error}") from error
    changed = sorted(n for n in set(FLAGS) - FREE if previous[n].value != get(n))
    longer = changed == ["epochs"] and get("epochs") > (previous["epochs"].value or 0)
    if changed and not longer:
        raise UserError(
            f"{origin} is of a run of other flags: "
            + "; ".join(f"--{n} was {previous[n].value}, is {get(n)}" for n in changed)
            + "; give the same ones (--epochs may grow) or another --run_dir"
        )
    return not changed
