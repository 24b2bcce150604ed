"""What the papers chose by data set, objective and sigma: weights and augmentations.

M: Zhai et al., "MACER" (ICLR 2020), sections 5.1 and C. C: Jeong and Shin, "Consistency
Regularization for Certified Robustness of Smoothed Classifiers" (NeurIPS 2020), sections 4 and
supplementary A to B.
"""

from typing import NamedTuple

from tfmacer.errors import UserError


class Weight(NamedTuple):
    """lambda, and from when on it is used (`constant` or `deferred` to the first rate drop)."""

    value: float
    schedule: str = "constant"


Table = dict[tuple[str, str], dict[float, Weight]]

# M uses 16 on MNIST at sigma = 1 too; C could not train with it and used 6, nor without deferring.
_MNIST: Table = {
    ("mnist", "macer"): {
        0.25: Weight(16.0, "deferred"),
        0.5: Weight(16.0, "deferred"),
        1.0: Weight(6.0, "deferred"),
    },
    ("mnist", "stability"): {sigma: Weight(2.0) for sigma in (0.25, 0.5, 1.0)},
    ("mnist", "consistency"): {0.25: Weight(10.0), 0.5: Weight(5.0), 1.0: Weight(5.0)},
}
_OTHERS: Table = {
    ("cifar10", "macer"): {0.25: Weight(12.0), 0.5: Weight(4.0), 1.0: Weight(12.0, "deferred")},
    ("cifar10", "stability"): {0.25: Weight(2.0), 0.5: Weight(2.0), 1.0: Weight(1.0)},
    ("cifar10", "consistency"): {0.25: Weight(20.0), 0.5: Weight(10.0), 1.0: Weight(10.0)},
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


# C on CIFAR-10 and ImageNet; M's code on SVHN, where a mirrored digit is no digit.
AUGMENTATIONS = {
    "cifar10": "crop_flip",
    "svhn_cropped": "crop",
    "imagenet2012": "resized_crop_flip",
}


def published_augmentation(dataset: str) -> str:
    """The published augmentation of a dataset; `none` where there is none."""
    return AUGMENTATIONS.get(dataset, "none")
