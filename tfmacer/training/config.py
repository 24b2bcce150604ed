"""`TrainConfig`, what a training run is: one frozen value, from the command line or from Python.

Each field is a flag of `tfmacer.train`: its name (without a closing underscore), type, default,
help text and range stand here alone. No TensorFlow.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from absl import flags

from tfmacer.common.errors import UserError
from tfmacer.records.runs import RunDirectory
from tfmacer.training.flags import (
    arguments_in,
    arguments_of,
    described,
    fields_from,
    flag,
    parse,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. `python -m tfmacer.train --help` describes the fields, which are its flags.

    A field that is None takes the value that was published for the dataset, objective and sigma,
    or the objective's own default; flags.txt in the run directory records what was taken.

    Raises:
      UserError: a field of another type or outside its range.
    """

    run_dir: str = dataclasses.field(
        metadata=described(
            "Where everything is written; {FLAG} stands for its value. Required.", free=True
        )
    )
    dataset: str = dataclasses.field(
        metadata=described("mnist5k, a TFDS name, folder:DIR or package.module:function. Required.")
    )
    data_dir: str | None = flag(
        None, "Where TensorFlow Datasets keeps its data; its own default otherwise.", free=True
    )
    train_split: str = flag(
        "train", "Split to train on, e.g. train[:90%] to keep a tenth for choosing."
    )
    network: str = flag("lenet", "A network's name, or package.module:function.")
    import_: tuple[str, ...] = flag(
        (), "Modules to import first: those that register the network's layers."
    )
    init_from: str | None = flag(None, "Run directory or .keras file whose weights to start from.")
    objective: str = flag(
        "macer",
        "gaussian, macer, stability, consistency, smoothadv, smoothadv_consistency (which has "
        "the flags of both) or smoothmix.",
    )
    sigma: float = dataclasses.field(
        metadata=described("Scale of the noise on pixels in [0, 1]. Required.", positive=True)
    )
    noise_family: str = flag(
        "gaussian", "The noise distribution to train under, and to be certified under."
    )
    noise_params: Mapping[str, float] = dataclasses.field(
        default_factory=dict, metadata=described("Its further parameters: NAME=NUMBER,...")
    )
    num_noise: int | None = flag(None, "Noisy copies of each image in a step.", lower_bound=1)
    noise_chunk: int | None = flag(
        None,
        "gaussian, macer, consistency: copies of each image in memory at once, a divisor of "
        "--num_noise; all where not given. One more forward pass, and memory that does not "
        "grow with --num_noise. Batch statistics are then those of a chunk.",
        lower_bound=1,
    )
    lambda_: float | None = flag(
        None,
        "Weight of the robustness term (smoothmix: its paper's eta).",
        lower_bound=0.0,
        option="weight",
    )
    lambda_schedule: Literal["constant", "deferred", "linear", "by_epoch"] | None = flag(
        None,
        "deferred: 0 until the learning rate first falls; linear, by_epoch: grows over "
        "--lambda_warmup_epochs, step by step from 0 or once an epoch from a first share.",
        option="weight",
    )
    lambda_warmup_epochs: float | None = flag(
        None, "Length of --lambda_schedule=linear or by_epoch.", positive=True, option="weight"
    )
    gamma: float | None = flag(
        None, "macer: hinge on the difference of the two quantiles.", positive=True, option="gamma"
    )
    beta: float | None = flag(
        None, "macer: inverse temperature of the robustness term.", positive=True, option="beta"
    )
    eta: float | None = flag(
        None, "consistency: weight of the entropy.", lower_bound=0.0, option="eta"
    )
    consistency_loss: Literal["default", "kl", "mse"] | None = flag(
        None, "consistency: form of the term.", option="form"
    )
    attack: Literal["pgd", "ddn"] | None = flag(
        None, "smoothadv: how adversarial images are searched for.", option="attack"
    )
    attack_code: Literal["salman", "jeong"] | None = flag(
        None,
        "smoothadv: whose code pgd follows. salman: pixels are clipped to [0, 1] before the "
        "change is projected, steps are of full length; jeong: after it, and steps are shorter "
        "the surer the classifier is. Default: salman; of smoothadv_consistency, jeong.",
        option="code",
    )
    attack_steps: int | None = flag(
        None, "smoothadv, smoothmix: steps of the attack.", lower_bound=1, option="steps"
    )
    attack_step_size: float | None = flag(
        None,
        "smoothmix: l2 length of a step of the attack (alpha).",
        positive=True,
        option="step_size",
    )
    epsilon: float | None = flag(
        None,
        "smoothadv: l2 bound on the attack, for pixels in [0, 1]; smoothmix: on its one-step "
        "adversary in place of the image, 0 for the image.",
        lower_bound=0.0,
        option="epsilon",
    )
    epsilon_warmup_epochs: float | None = flag(
        None, "Epochs in which epsilon grows, once in each.", lower_bound=0.0, option="epsilon"
    )
    augmentation: str | None = flag(None, "none, crop, crop_flip or resized_crop_flip.")
    epochs: int = flag(90, "Epochs in all.", lower_bound=1)
    batch_size: int = flag(64, "Images in a step.", lower_bound=1)
    learning_rate: float = flag(0.01, "Initial learning rate.", positive=True)
    lr_decay_epochs: tuple[int, ...] = flag(
        (), "Epochs after which the learning rate falls to a tenth."
    )
    momentum: float = flag(0.9, "Of SGD.", lower_bound=0.0, upper_bound=1.0)
    nesterov: bool = flag(False, "Nesterov's form of momentum.")
    weight_decay: float = flag(0.0001, "L2, on every trainable variable.", lower_bound=0.0)
    clip_norm: float | None = flag(
        None, "Bound on the gradient's global norm; none where not given.", positive=True
    )
    seed: int = flag(0, "Of weights, data order and noise.", lower_bound=0)
    deterministic: bool = flag(False, "Use only kernels that repeat bit for bit.")
    distribution: Literal["auto", "one_device", "mirrored", "multi_worker"] = flag(
        "auto",
        "mirrored: all GPUs of this machine; multi_worker: the machines of the environment "
        "variable TF_CONFIG; auto: the last of these that there is more than one of.",
        free=True,
    )
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = flag(
        "float32", "What the network computes in; noise, losses and weights stay float32."
    )
    jit: bool = flag(
        False,
        "Compile the step with XLA, which draws other noise from the same seed. Slower on CPUs.",
    )
    checkpoint_every: int = flag(1000, "Steps between checkpoints.", lower_bound=1, free=True)
    eval_examples: int = flag(
        1000, "Test images measured after each epoch; 0 for none.", lower_bound=0, free=True
    )
    certify_every: int = flag(
        0,
        "Epochs between certifications of a few test images; 0 for none.",
        lower_bound=0,
        free=True,
    )
    certify_examples: int = flag(200, "How many images that is.", lower_bound=1, free=True)

    def __post_init__(self) -> None:
        """Checks every field, and brings it to its own type."""
        for name, value in fields_from(TrainConfig, self.as_flags()).items():
            object.__setattr__(self, name, value)
        if self.jit and self.deterministic:
            raise UserError("--jit goes without --deterministic: XLA does not promise to repeat")

    @classmethod
    def from_flags(cls, values: flags.FlagValues) -> "TrainConfig":
        """The configuration that parsed flags describe.

        Raises:
          UserError: a flag is missing or out of range.
        """
        return cls(**fields_from(cls, values))

    @classmethod
    def from_text(cls, text: str, origin: Path) -> "TrainConfig":
        """Reads the text of a flags.txt.

        Args:
          text: one flag a line.
          origin: where it stands, for the error message.

        Raises:
          UserError: it cannot be read.
        """
        try:
            return cls.from_flags(parse(cls, arguments_in(text)))
        except (flags.Error, ValueError) as error:  # the latter for a value that a flag has not
            raise UserError(f"{origin}: cannot be read: {error}") from error

    def as_flags(self) -> flags.FlagValues:
        """The flags that say the same.

        Raises:
          UserError: a field has a value that its flag cannot have.
        """
        try:
            return parse(TrainConfig, arguments_of(self))
        except flags.Error as error:
            raise UserError(str(error)) from error

    def run_directory(self) -> RunDirectory:
        """`run_dir`, with `{FLAG}` replaced by the value of that flag.

        Raises:
          UserError: there is no such flag.
        """
        values = self.as_flags()
        try:
            return RunDirectory(Path(self.run_dir.format_map({n: values[n].value for n in values})))
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            raise UserError(f"--run_dir={self.run_dir}: {error} is no flag") from error
