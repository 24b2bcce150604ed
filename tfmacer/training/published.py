"""What the papers chose by data set, objective and sigma: weights, options and augmentations.

M: Zhai et al., "MACER" (ICLR 2020), sections 5.1 and C. C: Jeong and Shin, "Consistency
Regularization for Certified Robustness of Smoothed Classifiers" (NeurIPS 2020), sections 4 and
supplementary A to B. S: Jeong et al., "SmoothMix" (NeurIPS 2021), as the commands published
with their code have it.
"""

from typing import Any, NamedTuple

from tfmacer.common.errors import UserError


class Weight(NamedTuple):
    """lambda, and how it gets there, as `--lambda_schedule` has it."""

    value: float
    schedule: str = "constant"
    warmup_epochs: float | None = None


Table = dict[tuple[str, str], dict[float, Weight]]

_SMOOTHMIX = Weight(5.0, "by_epoch", 10.0)

# M uses 16 on MNIST at sigma = 1 too; C could not train with it and used 6, nor without deferring.
_MNIST: Table = {
    ("mnist", "macer"): {
        0.25: Weight(16.0, "deferred"),
        0.5: Weight(16.0, "deferred"),
        1.0: Weight(6.0, "deferred"),
    },
    ("mnist", "stability"): {sigma: Weight(2.0) for sigma in (0.25, 0.5, 1.0)},
    ("mnist", "consistency"): {0.25: Weight(10.0), 0.5: Weight(5.0), 1.0: Weight(5.0)},
    ("mnist", "smoothadv_consistency"): {sigma: Weight(1.0) for sigma in (0.25, 0.5, 1.0)},
    ("mnist", "smoothmix"): dict.fromkeys((0.25, 0.5, 1.0), _SMOOTHMIX),
}
_OTHERS: Table = {
    ("cifar10", "macer"): {0.25: Weight(12.0), 0.5: Weight(4.0), 1.0: Weight(12.0, "deferred")},
    ("cifar10", "stability"): {0.25: Weight(2.0), 0.5: Weight(2.0), 1.0: Weight(1.0)},
    ("cifar10", "consistency"): {0.25: Weight(20.0), 0.5: Weight(10.0), 1.0: Weight(10.0)},
    ("cifar10", "smoothadv_consistency"): {0.25: Weight(2.0), 0.5: Weight(1.0), 1.0: Weight(1.0)},
    ("cifar10", "smoothmix"): dict.fromkeys((0.25, 0.5, 1.0), _SMOOTHMIX),
    ("svhn_cropped", "macer"): {0.25: Weight(12.0), 0.5: Weight(12.0)},
    ("imagenet2012", "macer"): {0.25: Weight(6.0), 0.5: Weight(3.0), 1.0: Weight(3.0)},
    ("imagenet2012", "consistency"): {0.5: Weight(5.0), 1.0: Weight(5.0)},
}
# The 5,000 digits are MNIST's.
_MNIST5K: Table = {("mnist5k", objective): table for (_, objective), table in _MNIST.items()}
WEIGHTS: Table = _MNIST | _MNIST5K | _OTHERS


def published_weight(dataset: str, objective: str, sigma: float) -> Weight:
    """The published weight of a configuration.

    Raises:
      UserError: none was published.
    """
    table = WEIGHTS.get((dataset, objective), {})
    if sigma not in table:
        known = ", ".join(str(s) for s in table)
        raise UserError(
            f"--lambda must be given: none is published for --objective={objective} on "
            f"--dataset={dataset} at --sigma={sigma}" + (f" (only at {known})" if known else "")
        )
    return table[sigma]


Options = dict[str, Any]

# The best of Salman et al.'s models (C, supplementary Table 1, whose epsilons are in 256ths), and
# C's own on MNIST: 10 steps of PGD and an epsilon that grows for 10 epochs unless said otherwise,
# which are the objective's defaults.
_SMOOTHADV: dict[str, dict[float, Options]] = {
    "mnist": {sigma: {"epsilon": 1.0, "num_noise": 4} for sigma in (0.25, 0.5, 1.0)},
    "cifar10": {
        0.25: {"epsilon": 255 / 256, "num_noise": 4},
        0.5: {"epsilon": 2.0, "num_noise": 2},
        1.0: {"epsilon": 2.0, "num_noise": 2},
    },
    "imagenet2012": {
        0.5: {"epsilon": 255 / 256, "num_noise": 1, "attack_steps": 1},
        1.0: {"epsilon": 2.0, "num_noise": 1, "attack_steps": 1},
    },
}
# Step size times steps is 8 sigma throughout.
_SMOOTHMIX_OPTIONS: dict[str, dict[float, Options]] = {
    "mnist": {
        sigma: {"num_noise": 4, "attack_steps": steps, "attack_step_size": 1.0}
        for sigma, steps in ((0.25, 2), (0.5, 4), (1.0, 8))
    },
    "cifar10": {
        sigma: {"num_noise": 2, "attack_steps": 4, "attack_step_size": size}
        for sigma, size in ((0.25, 0.5), (0.5, 1.0), (1.0, 2.0))
    },
}
OPTIONS: dict[str, dict[str, dict[float, Options]]] = {
    "macer": {"imagenet2012": {sigma: {"num_noise": 2} for sigma in (0.25, 0.5, 1.0)}},
    "consistency": {"imagenet2012": {1.0: {"eta": 0.1}}},
    "smoothadv": _SMOOTHADV,
    "smoothadv_consistency": _SMOOTHADV,
    "smoothmix": _SMOOTHMIX_OPTIONS,
}


def published_options(dataset: str, objective: str, sigma: float) -> Options:
    """The published values of flags where they are not the objective's own defaults."""
    # The 5,000 digits are MNIST's.
    by_sigma = OPTIONS.get(objective, {}).get("mnist" if dataset == "mnist5k" else dataset, {})
    return by_sigma.get(sigma, {})


# C on CIFAR-10 and ImageNet; M's code on SVHN, which mirrors digits too.
AUGMENTATIONS = {
    "cifar10": "crop_flip",
    "svhn_cropped": "crop_flip",
    "imagenet2012": "resized_crop_flip",
}


def published_augmentation(dataset: str) -> str:
    """The published augmentation of a dataset; `none` where there is none."""
    return AUGMENTATIONS.get(dataset, "none")
