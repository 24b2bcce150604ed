"""The rows that `benchmarks.reproduce` computes, as data: what is trained, what is certified.

A: MNIST by the published schedule of 90 epochs. B: its sixth part, 15 epochs with every decay and
warm-up scaled alike, for the order of the methods. initial: rows of B with initial weights drawn as
the papers' code draws them, beside those whose weights were drawn after Glorot. macer and
consistency: the papers' studies of hyperparameters, on mnist5k. clip: the choice of MACER's
clipping on a validation split. soft: Soft-RS beside Hard-RS. families: networks of Table B's
schedule on other noise. cost: time and memory of training. cifar: ResNet-20 on CIFAR-10. Flags that
are not here are those of mnist.flags and cifar.flags.
"""

import dataclasses
import math
from collections.abc import Sequence

SIGMAS = (0.5, 0.25, 1.0)

# Images spread evenly over the 10,000 of a test set; 1,000 are in mnist5k's.
CERTIFY_500 = ("--num_examples=500", "--skip=20", "--n=100000")
CERTIFY_2000 = ("--num_examples=2000", "--skip=5", "--n=10000")
CERTIFY_STUDY = ("--num_examples=500", "--skip=2", "--n=10000")
CERTIFY_SOFT = ("--num_examples=500", "--skip=20", "--n=10000")
CERTIFY_VALIDATION = ("--split=train[50000:]", "--num_examples=500", "--skip=20", "--n=2000")
CERTIFY_CIFAR = ("--num_examples=100", "--skip=100", "--n=10000")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """One network and how it is trained.

    Attributes:
      flagfile: the published configuration.
      dataset: as `--dataset`.
      network: as `--network`.
      objective: as `--objective`.
      sigma: as `--sigma`.
      epochs: as `--epochs`.
      variant: what tells it from another training with the same of all these.
      flags: further flags.
    """

    flagfile: str = "mnist.flags"
    dataset: str = "mnist"
    network: str = "lenet"
    objective: str
    sigma: float
    epochs: int = 90
    variant: str = ""
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """DATASET_NETWORK_OBJECTIVE[-VARIANT]_SIGMA_EPOCHS."""
        return self.named(self.variant)

    def named(self, variant: str) -> str:
        """The name with another variant."""
        objective = f"{self.objective}-{variant}" if variant else self.objective
        return f"{self.dataset}_{self.network}_{objective}_{self.sigma}_{self.epochs}"

    def arguments(self, run_dir: str) -> list[str]:
        """The flags of `tfmacer.train`."""
        return [
            f"--flagfile={self.flagfile}",
            f"--run_dir={run_dir}",
            f"--dataset={self.dataset}",
            f"--network={self.network}",
            f"--objective={self.objective}",
            f"--sigma={self.sigma}",
            f"--epochs={self.epochs}",
            *self.flags,
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One result: a log, or the cost of a training.

    Attributes:
      training: of the network.
      certify: flags of `tfmacer.certify`; empty for the cost of the training alone.
      variant: what tells its log from another one of the same network.
    """

    training: Training
    certify: tuple[str, ...] = ()
    variant: str = ""

    @property
    def name(self) -> str:
        """Stem of its file; the network's name, with the log's variant after the network's own."""
        parts = (self.training.variant, self.variant)
        return self.training.named("-".join(part for part in parts if part))


# The authors' code splits a batch of 256 into as many steps as the objective has noisy copies.
_SMALLER = {"consistency": 128, "smoothmix": 64, "smoothadv": 64, "smoothadv_consistency": 64}


def batch(objective: str) -> tuple[str, ...]:
    """The flag of the batch size, where it is not the 256 of the papers' text."""
    return (f"--batch_size={_SMALLER[objective]}",) if objective in _SMALLER else ()


def published(objective: str, sigma: float) -> Training:
    """A network of MNIST by the published schedule."""
    return Training(objective=objective, sigma=sigma, flags=batch(objective))


def short(objective: str, sigma: float, variant: str = "", flags: Sequence[str] = ()) -> Training:
    """A network of MNIST by a sixth of the published schedule."""
    return Training(
        objective=objective,
        sigma=sigma,
        epochs=15,
        variant=variant,
        flags=("--lr_decay_epochs=5,10", *batch(objective), *flags),
    )


def table_a() -> list[Row]:
    """The published 90 epochs; at n = 100,000 where the papers' ACR is to be met."""
    first = [published(objective, 0.5) for objective in ("gaussian", "consistency")]
    others = [published("stability", 0.5)]
    others += [published(o, s) for o in ("gaussian", "consistency") for s in (0.25, 1.0)]
    return [
        *(Row(training=training, certify=CERTIFY_500) for training in first),
        # As Table B, to stand beside it.
        *(Row(training=t, certify=CERTIFY_2000, variant="n10000") for t in (*first, *others)),
    ]


def clipped(epochs: float) -> tuple[str, ...]:
    """Flags of our MACER, the choice of table `clip`: lambda grows over a sixth of the epochs."""
    return (
        "--lambda_schedule=linear",
        f"--lambda_warmup_epochs={epochs / 6:g}",
        "--clip_norm=5",
    )


def table_b() -> list[Row]:
    """The order of the methods at 15 epochs; MACER as published and with clipped gradients."""
    trainings = []
    for sigma in SIGMAS:
        trainings += [
            short("gaussian", sigma),
            short("macer", sigma, "linear-clip5", clipped(15)),
            short("macer", sigma),
            short("consistency", sigma),
        ]
    # Warm-ups of 10 epochs in 90.
    grow = "--epsilon_warmup_epochs=1.6667"
    trainings += [
        short("smoothmix", 0.5, flags=["--lambda_warmup_epochs=1.6667", grow]),
        short("smoothadv", 0.5, flags=[grow]),
        short("smoothadv_consistency", 0.5, flags=[grow]),
        short("macer", 0.5, "clip1", ["--clip_norm=1"]),
        Training(objective="macer", sigma=0.5, variant="linear-clip5", flags=clipped(90)),
    ]
    return [Row(training=training, certify=CERTIFY_2000) for training in trainings]


def initial() -> list[Row]:
    """Table B's Gaussian training, under a name of its own: its rows there were drawn otherwise."""
    return [
        Row(training=short("gaussian", sigma, "pytorch"), certify=CERTIFY_2000) for sigma in SIGMAS
    ]


def study(objective: str, sigma: float, variant: str, *flags: str) -> Row:
    """A network of mnist5k: 1,860 steps of 64 images."""
    training = Training(
        dataset="mnist5k",
        objective=objective,
        sigma=sigma,
        epochs=30,
        variant=variant,
        flags=("--batch_size=64", "--lr_decay_epochs=10,20", *flags),
    )
    return Row(training=training, certify=CERTIFY_STUDY)


def macer(
    variant: str,
    *,
    num_noise: int = 16,
    weight: float = 16,
    gamma: float = 8,
    beta: float = 16,
    clip: float | None = None,
) -> Row:
    """One row of MACER's study; `weight` is lambda, which MNIST needs deferred where it is 16."""
    flags = [f"--num_noise={num_noise}", f"--lambda={weight:g}", "--lambda_schedule=deferred"]
    flags += [f"--gamma={gamma:g}", f"--beta={beta:g}"]
    flags += [f"--clip_norm={clip:g}"] if clip else []
    return study("macer", 0.5, variant, *flags)


def macer_study() -> list[Row]:
    """MACER's Figure 3 and Tables 10 to 13, and clipping against lambda."""
    return [
        macer(""),
        *(macer(f"k{k}", num_noise=k) for k in (1, 4)),
        *(macer(f"lambda{weight}", weight=weight) for weight in (0, 1, 4)),
        *(macer(f"gamma{gamma}", gamma=gamma) for gamma in (2, 4, 16)),
        *(macer(f"beta{beta}", beta=beta) for beta in (1, 4, 64)),
        *(
            macer(f"clip{clip:g}-lambda{weight}", clip=clip, weight=weight)
            for clip in (0.5, 1, 5)
            for weight in (1, 4, 16)
        ),
    ]


def clip() -> list[Row]:
    """The choice of MACER's clipping and schedule, on training images that were kept back.

    A fifth of Table B's schedule.
    """
    kept = ("--train_split=train[:50000]", "--eval_examples=0", "--lr_decay_epochs=1,2")
    sixth = ("--lambda_warmup_epochs=0.5",)
    choices: list[tuple[str, float | None, tuple[str, ...]]] = [
        ("deferred", None, ()),
        ("deferred", 10, ()),
        ("linear", 5, sixth),
        ("linear", 1, sixth),
        ("constant", 1, ()),
    ]
    rows = [("gaussian", "validation", kept)]
    for schedule, norm, more in choices:
        flags = (*kept, f"--lambda_schedule={schedule}", *more)
        flags += (f"--clip_norm={norm}",) if norm else ()
        rows.append(("macer", f"validation-{schedule}-clip{norm or 'off'}", flags))
    return [
        Row(
            training=Training(objective=o, sigma=0.5, epochs=3, variant=variant, flags=flags),
            certify=CERTIFY_VALIDATION,
        )
        for o, variant, flags in rows
    ]


def consistency(
    variant: str, sigma: float = 1.0, *, num_noise: int = 2, weight: int = 5, form: str = "default"
) -> Row:
    """One row of the study of consistency; `weight` is lambda."""
    flags = [f"--num_noise={num_noise}", f"--lambda={weight}", f"--consistency_loss={form}"]
    return study("consistency", sigma, variant, *flags)


def consistency_study() -> list[Row]:
    """The consistency paper's Tables S4 (loss), S5 (m) and S6 (lambda, Gaussian for 0)."""
    forms = [(form, weight) for form in ("mse", "kl") for weight in (5, 20, 50)]
    return [
        study("gaussian", 1.0, ""),
        *(consistency("", sigma) for sigma in (1.0, 0.5, 0.25)),
        *(consistency(f"{form}-lambda{w}", form=form, weight=w) for form, w in forms),
        *(consistency(f"m{m}", sigma, num_noise=m) for m in (4, 8) for sigma in (1.0, 0.5, 0.25)),
        *(consistency(f"lambda{weight}", weight=weight) for weight in (1, 10, 15, 20, 25, 30, 50)),
    ]


def soft() -> list[Row]:
    """MACER's Figure 4 on networks of tables A and B: Hard-RS, then Soft-RS as beta grows."""
    trainings = [
        published("gaussian", 0.5),
        published("consistency", 0.5),
        short("macer", 0.5, "linear-clip5", clipped(15)),
    ]
    bounds: dict[str, tuple[str, ...]] = {"hard": ("--bound=clopper_pearson",)}
    bounds |= {f"soft{b}": ("--bound=bernstein", f"--beta={b}") for b in (1, 4, 16, 64)}
    return [
        Row(training=training, certify=(*CERTIFY_SOFT, *flags), variant=variant)
        for training in trainings
        for variant, flags in bounds.items()
    ]


def family(name: str, k: int, scale: float) -> Training:
    """A network trained on noise of another family, whose length is that of a Gaussian's `scale`.

    The paper's sigma, sqrt((d - 1) / (d - 1 - k)) times the Gaussian's, gives both the same most
    likely length.
    """
    sigma = round(scale * math.sqrt(783 / (783 - k)), 4)
    flags = [f"--noise_family={name}", f"--noise_params=k={k}"]
    return short("gaussian", sigma, f"{name}-k{k}", flags)


def families() -> list[Row]:
    """In kind of Tables 1 and 3 of Filling the Soap Bubbles, on MNIST."""
    trainings = [
        short("gaussian", 0.5),
        *(family("generalized_gaussian", k, 0.5) for k in (100, 400)),
        *(family("mixed_norm", k, 0.5) for k in (10, 50)),
    ]
    return [Row(training=t, certify=CERTIFY_SOFT, variant="n10000") for t in trainings]


def cost() -> list[Row]:
    """Two epochs of each method; the second one is timed, without what the first one builds."""
    objectives = ("gaussian", "stability", "consistency", "macer", "smoothmix", "smoothadv",
                  "smoothadv_consistency")  # fmt: skip
    trainings = [
        Training(objective=o, sigma=0.5, epochs=2, flags=("--eval_examples=0", *batch(o)))
        for o in objectives
    ]
    return [Row(training=training) for training in trainings]


def cifar() -> list[Row]:
    """A few epochs of ResNet-20, with Jeong and Shin's optimizer and decays scaled to them."""
    optimizer = ("--learning_rate=0.1", "--batch_size=256", "--nesterov", "--weight_decay=0.0001")
    return [
        Row(
            training=Training(
                flagfile="cifar.flags",
                dataset="cifar10",
                network="resnet20",
                objective=objective,
                sigma=0.5,
                epochs=6,
                flags=(*optimizer, "--lr_decay_epochs=2,4", *batch(objective)),
            ),
            certify=CERTIFY_CIFAR,
        )
        for objective in ("gaussian", "consistency")
    ]


TABLES = {
    "A": table_a(),
    "B": table_b(),
    "initial": initial(),
    "macer": macer_study(),
    "consistency": consistency_study(),
    "clip": clip(),
    "soft": soft(),
    "families": families(),
    "cost": cost(),
    "cifar": cifar(),
}
