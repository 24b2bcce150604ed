"""The objectives by name: losses composed with views of a batch.

A new one is one class, a frozen dataclass whose fields are its options, and one line in
`OBJECTIVES`. A flag of its own is one field of `TrainConfig`.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import tensorflow as tf

from tfmacer.attacks import adversarial
from tfmacer.attacks.adversarial import Network
from tfmacer.common.errors import UserError
from tfmacer.training.losses import (
    consistency_distance,
    consistency_divergence,
    cross_entropy,
    macer_robustness,
    mixed_divergence,
    prediction_entropy,
    smoothed_cross_entropy,
    stability,
)
from tfmacer.training.objective import Batch, Losses, Objective, Views, noisy_views
from tfmacer.training.schedules import Schedule


@dataclasses.dataclass(frozen=True)
class Gaussian(Objective):
    """Cross-entropy under noise (Cohen et al., ICML 2019), averaged over the copies."""

    num_noise: ClassVar[int] = 1

    def losses(self, logits: tf.Tensor, batch: Batch) -> Losses:
        """Classification only."""
        classification = cross_entropy(logits, batch.labels)
        return Losses(classification, tf.zeros_like(classification), logits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Macer(Objective):
    """MACER (Zhai et al., ICLR 2020, Algorithm 1).

    Attributes:
      sigma: scale of the noise; > 0.
      weight: lambda; a number, 0 or more, or a schedule of the step.
      gamma: hinge on xi; > 0.
      beta: inverse temperature of the robustness term (the classification term's is 1); > 0.
    """

    num_noise: ClassVar[int] = 16

    sigma: float
    weight: float | Schedule = 12.0
    gamma: float = 8.0
    beta: float = 16.0

    def losses(self, logits: tf.Tensor, batch: Batch) -> Losses:
        """Equation 17."""
        classification = smoothed_cross_entropy(logits, batch.labels)
        robustness = macer_robustness(
            logits, batch.labels, sigma=self.sigma, gamma=self.gamma, beta=self.beta
        )
        return Losses(classification, self.weight_at(batch.step) * robustness, logits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stability(Objective):
    """Stability training (Li et al., NeurIPS 2019) as Jeong and Shin's code runs it.

    Attributes:
      weight: lambda; a number, 0 or more, or a schedule of the step.
    """

    num_noise: ClassVar[int] = 1

    weight: float | Schedule = 2.0

    def views(self, network: Network, batch: Batch) -> Views:
        """The clean image first, then its noisy copies."""
        return batch.images[:, tf.newaxis], noisy_views(batch)

    def losses(self, logits: tf.Tensor, batch: Batch) -> Losses:
        """Cross-entropy of the clean image, and `stability`."""
        clean, noisy = logits[:, :1], logits[:, 1:]
        robustness = self.weight_at(batch.step) * stability(clean, noisy)
        return Losses(cross_entropy(clean, batch.labels), robustness, noisy)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency(Objective):
    """Consistency regularisation of Gaussian training (Jeong and Shin, NeurIPS 2020).

    Attributes:
      weight: lambda; a number, 0 or more, or a schedule of the step.
      eta: weight of the entropy, which only the default form has; 0 or more.
      form: `default`: equation 7, which their supplementary Table 4 calls cross-entropy;
        `kl` and `mse`: equation 13.
    """

    num_noise: ClassVar[int] = 2

    weight: float | Schedule = 10.0
    eta: float = 0.5
    form: str = "default"

    def losses(self, logits: tf.Tensor, batch: Batch) -> Losses:
        """Cross-entropy under noise, and the regularisation."""
        distance = consistency_distance if self.form == "mse" else consistency_divergence
        robustness = self.weight_at(batch.step) * distance(logits)
        if self.form == "default":
            robustness += self.eta * prediction_entropy(logits)
        return Losses(cross_entropy(logits, batch.labels), robustness, logits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmoothAdv(Objective):
    """SmoothAdv (Salman et al., NeurIPS 2019): another objective, on attacked images.

    The noise that the attack sees is the noise that the objective sees. With `Gaussian` it is
    Salman et al.'s, with `Consistency` that of Jeong and Shin (NeurIPS 2020, section 4).

    Attributes:
      objective: the loss of attacked images; one that sees noisy copies.
      attack: `pgd` or `ddn`.
      code: whose code `pgd` follows: `salman` (Salman et al.) or `jeong` (Jeong and Shin), see
        `adversarial.pgd`. `ddn` is `salman`'s.
      steps: of the attack; each passes the copies forward and backward.
      epsilon: bound on the l2 norm of the change, in units of pixels in [0, 1]; a number, 0 or
        more, or a schedule of the step.
    """

    num_noise: ClassVar[int] = 4

    objective: Objective = Gaussian()
    attack: str = "pgd"
    code: str = "salman"
    steps: int = 10
    epsilon: float | Schedule = 1.0

    def __post_init__(self) -> None:
        """Refuses an attack that neither code has."""
        if (self.attack, self.code) not in ATTACKS:
            known = ", ".join(f"{attack} of {code}" for attack, code in ATTACKS)
            raise UserError(f"the attack must be {known}, got {self.attack} of {self.code}")

    def views(self, network: Network, batch: Batch) -> Views:
        """The objective's views of the attacked images."""
        found = ATTACKS[self.attack, self.code](
            network,
            batch.images,
            batch.labels,
            batch.noise,
            epsilon=self.epsilon_at(batch.step),
            steps=self.steps,
            # Another one than the batch's, from which the objective may draw.
            seed=tf.random.experimental.stateless_fold_in(batch.seed, 1, alg="philox"),
        )
        return self.objective.views(network, batch._replace(images=found))

    def losses(self, logits: tf.Tensor, batch: Batch) -> Losses:
        """The objective's."""
        return self.objective.losses(logits, batch)

    def weight_at(self, step: tf.Tensor) -> tf.Tensor:
        """The objective's."""
        return self.objective.weight_at(step)


ATTACKS: dict[tuple[str, str], Any] = {
    ("pgd", "salman"): functools.partial(adversarial.pgd, clip_first=True),
    ("pgd", "jeong"): functools.partial(adversarial.pgd, damped=True),
    ("ddn", "salman"): adversarial.ddn,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmoothMix(Objective):
    """SmoothMix (Jeong et al., NeurIPS 2021, Algorithm 1).

    Attributes:
      weight: eta; a number, 0 or more, or a schedule of the step.
      steps: of the search for an adversary (T); 1 or more.
      step_size: of one of them (alpha), in units of pixels in [0, 1]; > 0.
      epsilon: how far the first step may take what stands in for the image itself: 0 for the
        image, `step_size` for the paper's one-step adversary; a number or a schedule of the step.
    """

    num_noise: ClassVar[int] = 4

    weight: float | Schedule = 5.0
    steps: int = 4
    step_size: float = 1.0
    epsilon: float | Schedule = 0.0

    def views(self, network: Network, batch: Batch) -> Views:
        """The images under noise, then those mixed with their adversaries under the same."""
        _, labels, noise, step, _ = batch
        shared: dict[str, Any] = {"labels": labels, "noise": noise, "step_size": self.step_size}
        first = adversarial.ascend(network, batch.images, **shared, steps=1)
        far = adversarial.ascend(network, first, **shared, steps=self.steps - 1)
        near = adversarial.project(first, batch.images, self.epsilon_at(step))
        share = tf.reshape(_share(batch), [-1] + [1] * (near.shape.rank - 1))
        mixed = near + share * (far - near)
        return tuple(noisy_views(batch._replace(images=images)) for images in (near, mixed))

    def losses(self, logits: tf.Tensor, batch: Batch) -> Losses:
        """Cross-entropy of the images, and `mixed_divergence`."""
        plain, mixed = tf.split(logits, 2, axis=1)
        divergence = mixed_divergence(plain, mixed, batch.labels, _share(batch))
        robustness = self.weight_at(batch.step) * divergence
        return Losses(cross_entropy(plain, batch.labels), robustness, plain)


def _share(batch: Batch) -> tf.Tensor:
    """The adversary's share of each mixed image, uniform in [0, 1/2): `[B]`."""
    shape = tf.shape(batch.labels)
    return tf.random.stateless_uniform(shape, batch.seed, maxval=0.5, alg="philox")


# The parts of each name, outermost first.
OBJECTIVES: dict[str, tuple[Any, ...]] = {
    "gaussian": (Gaussian,),
    "macer": (Macer,),
    "stability": (Stability,),
    "consistency": (Consistency,),
    "smoothadv": (SmoothAdv, Gaussian),
    "smoothadv_consistency": (SmoothAdv, Consistency),
    "smoothmix": (SmoothMix,),
}
# Where a composition has another default than its parts: each follows the code that its published
# rows were trained by.
DEFAULTS: dict[str, dict[str, Any]] = {"smoothadv_consistency": {"code": "jeong"}}


def options(name: str) -> dict[str, Any]:
    """The options of all parts of a registered objective, with their defaults."""
    found = {
        field.name: field.default
        for part in OBJECTIVES[name]
        for field in dataclasses.fields(part)
        if field.name != "objective"
    }
    return found | DEFAULTS.get(name, {})


def compose(name: str, **values: Any) -> Objective:
    """Makes a registered objective, each option going to the part that has it.

    Raises:
      TypeError: no part has it.
    """
    if unknown := set(values) - set(options(name)):
        raise TypeError(f"{name} has no {', '.join(sorted(unknown))}")
    values = DEFAULTS.get(name, {}) | values
    held: dict[str, Any] = {}
    for part in reversed(OBJECTIVES[name]):
        own = {field.name for field in dataclasses.fields(part)}
        made = part(**{key: values[key] for key in own & set(values)}, **held)
        held = {"objective": made}
    objective: Objective = held["objective"]
    return objective
