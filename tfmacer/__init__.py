"""tfmacer: certified-robust image classifiers for TensorFlow.

The public names load when they are first used, so that `import tfmacer` brings in no TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tfmacer.version import __version__

if TYPE_CHECKING:
    from tfmacer.certification.images import certify_images as certify_images
    from tfmacer.training.config import TrainConfig as TrainConfig
    from tfmacer.training.run import train_run as train_run
    from tfmacer.training.trainer import SmoothedTrainer as SmoothedTrainer

_HOMES = {
    "SmoothedTrainer": "tfmacer.training.trainer",
    "TrainConfig": "tfmacer.training.config",
    "certify_images": "tfmacer.certification.images",
    "train_run": "tfmacer.training.run",
}

__all__ = ["SmoothedTrainer", "TrainConfig", "__version__", "certify_images", "train_run"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tfmacer' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
