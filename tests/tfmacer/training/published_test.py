"""The papers' choices, and what is said where they made none."""

import pytest

from tfmacer.common.errors import UserError
from tfmacer.training import published
from tfmacer.training.config import TrainConfig
from tfmacer.training.flags import fields_of


@pytest.mark.parametrize(
    ("dataset", "objective", "sigma", "expected"),
    [
        # Zhai et al., section 5.1 and Appendix C.
        ("cifar10", "macer", 0.25, (12.0, "constant")),
        ("cifar10", "macer", 0.5, (4.0, "constant")),
        ("cifar10", "macer", 1.0, (12.0, "deferred")),
        ("imagenet2012", "macer", 1.0, (3.0, "constant")),
        # Jeong and Shin, supplementary B.
        ("mnist", "macer", 0.5, (16.0, "deferred")),
        ("mnist5k", "macer", 1.0, (6.0, "deferred")),
        ("mnist", "consistency", 0.25, (10.0, "constant")),
        ("cifar10", "smoothadv_consistency", 0.25, (2.0, "constant")),
        ("mnist5k", "smoothmix", 1.0, (5.0, "by_epoch")),
    ],
)
def test_weights(dataset, objective, sigma, expected):
    assert published.published_weight(dataset, objective, sigma)[:2] == expected


@pytest.mark.parametrize(
    ("dataset", "sigma", "message"),
    [
        ("cifar10", 0.3, "--sigma=0.3.*only at 0.25, 0.5, 1.0"),
        ("folder:x", 0.25, "--dataset=folder:x"),
    ],
)
def test_no_weight_is_made_up(dataset, sigma, message):
    with pytest.raises(UserError, match=f"--lambda must be given.*{message}"):
        published.published_weight(dataset, "macer", sigma)


@pytest.mark.parametrize(
    ("dataset", "objective", "sigma", "expected"),
    [
        ("cifar10", "smoothadv", 0.5, {"epsilon": 2.0, "num_noise": 2}),
        ("mnist5k", "smoothadv_consistency", 0.5, {"epsilon": 1.0, "num_noise": 4}),
        ("imagenet2012", "consistency", 1.0, {"eta": 0.1}),
        ("imagenet2012", "consistency", 0.5, {}),
        ("svhn_cropped", "smoothadv", 0.25, {}),
        ("cifar10", "gaussian", 0.25, {}),
    ],
)
def test_options(dataset, objective, sigma, expected):
    assert published.published_options(dataset, objective, sigma) == expected


def test_every_published_option_is_a_flag():
    options_of_objectives = {
        field.name for field in fields_of(TrainConfig) if "option" in field.known
    }
    for by_dataset in published.OPTIONS.values():
        for by_sigma in by_dataset.values():
            for options in by_sigma.values():
                assert set(options) <= options_of_objectives | {"num_noise"}


def test_augmentations():
    assert published.published_augmentation("cifar10") == "crop_flip"
    assert published.published_augmentation("svhn_cropped") == "crop_flip"
    assert published.published_augmentation("imagenet2012") == "resized_crop_flip"
    assert published.published_augmentation("mnist") == "none"
