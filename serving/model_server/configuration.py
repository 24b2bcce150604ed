"""What the embedded server serves: from flags, a `model_config_file`, or a reload request."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tensorflow_serving.config import (
    file_system_storage_path_source_pb2,
    model_server_config_pb2,
)

from serving.model_server.status import invalid

logger = logging.getLogger(__name__)

PLATFORM = "tensorflow"

_Policy = (
    file_system_storage_path_source_pb2.FileSystemStoragePathSourceConfig.ServableVersionPolicy
)


@dataclasses.dataclass(frozen=True)
class Model:
    """One model to serve.

    Attributes:
      name: what requests call it.
      base_path: directory of the numbered version directories.
      policy: the ServableVersionPolicy that chooses among them; empty is the newest one.
      labels: version by label.
    """

    name: str
    base_path: Path
    policy: Any = dataclasses.field(default_factory=_Policy)
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)


def single_model(name: str, base_path: str) -> Any:
    """The ModelServerConfig that the flags `--model_name` and `--model_base_path` stand for."""
    config = model_server_config_pb2.ModelServerConfig()
    config.model_config_list.config.add(name=name, base_path=base_path, model_platform=PLATFORM)
    return config


def read_config_file(path: Path) -> Any:
    """The ModelServerConfig in a text file.

    Raises:
      StatusError: it is not one.
      OSError: it cannot be read.
    """
    try:
        return text_format.Parse(path.read_text(), model_server_config_pb2.ModelServerConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise invalid(f"Error parsing text-format ModelServerConfig in {path}: {error}") from error


def models(config: Any) -> dict[str, Model]:
    """The models of a ModelServerConfig by name; raises StatusError where it contradicts itself."""
    if config.WhichOneof("config") not in (None, "model_config_list"):
        raise invalid("custom_model_config is not supported, only model_config_list")
    found: dict[str, Model] = {}
    for entry in config.model_config_list.config:
        platform = entry.model_platform
        if not platform and entry.model_type == model_server_config_pb2.TENSORFLOW:
            logger.warning("model %s: model_type is deprecated, use model_platform", entry.name)
            platform = PLATFORM
        if not platform:
            raise invalid("Illegal setting neither model_type(deprecated) nor model_platform.")
        if platform != PLATFORM:
            raise invalid(
                f"model_platform of model {entry.name} must be {PLATFORM}, got {platform}"
            )
        if entry.name in found:
            raise invalid(f"Illegal to list model {entry.name} multiple times in config list")
        if not entry.base_path.startswith("/") or "\0" in entry.base_path:
            raise invalid(
                f"Expected model {entry.name} to have an absolute path or URI; "
                f"got base_path()={entry.base_path}"
            )
        found[entry.name] = Model(
            entry.name,
            Path(entry.base_path),
            entry.model_version_policy,
            dict(entry.version_labels),
        )
    return found
