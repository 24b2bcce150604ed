"""The operator's audit log: which noise is behind which certificate.

One JSON object a line, appended after the answer has left, so that nobody who can read the log
knows the noise of a certificate before it is given.
"""

import base64
import dataclasses
import datetime
import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from serving.certifier.requests import Image
from tfmacer.errors import UserError
from tfmacer.guarantee.certificate import Certificate
from tfmacer.guarantee.rule import Rule
from tfmacer.votes.driver import Task
from tfmacer.votes.endpoint import ServedModel

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """Everything that is needed to draw a certificate again."""

    certificate_id: str
    request_id: str
    client: str
    image: Image
    model: ServedModel
    rule: Rule
    task: Task
    certificate: Certificate

    def to_json(self, *, pixels: bool) -> str:
        """One line.

        Args:
          pixels: whether to keep the image itself (base64 of float32, little-endian, row-major);
            without it only its digest is kept, and drawing again needs the image from elsewhere.
        """
        rule = dataclasses.asdict(self.rule) | {"stop": str(self.rule.stop)}
        record: dict[str, Any] = {
            "certificate_id": self.certificate_id,
            "time": datetime.datetime.now(datetime.UTC).isoformat(),
            "request_id": self.request_id,
            "client": self.client,
            "pixels_sha256": self.image.sha256,
            "shape": list(self.image.values.shape),
            "model": {
                "name": self.model.name,
                "version": self.model.version,
                "smoothing": dataclasses.asdict(self.model.smoothing),
            },
            "rule": rule,
            "select_seed": np.asarray(self.task.select_seed).tolist(),
            "estimate_seed": np.asarray(self.task.estimate_seed).tolist(),
            "certificate": dataclasses.asdict(self.certificate),
        }
        if pixels:
            little = self.image.values.astype("<f4").tobytes()
            record["pixels_float32"] = base64.b64encode(little).decode()
        return json.dumps(record)


class AuditLog:
    """Appends entries to a file. Thread-safe."""

    def __init__(
        self, path: Path, *, pixels: bool, on_failure: Callable[[], None] = lambda: None
    ) -> None:
        """Opens the file for appending.

        Args:
          path: the file.
          pixels: whether to keep the images themselves.
          on_failure: called when an entry could not be written; the answer has left by then.

        Raises:
          UserError: it cannot be.
        """
        try:
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by `close`)
        except OSError as error:
            raise UserError(f"--audit_log={path}: cannot be written: {error.strerror}") from error
        path.chmod(0o600)
        self._pixels = pixels
        self._on_failure = on_failure
        self._lock = threading.Lock()

    def after(self, context: grpc.ServicerContext, entry: Entry) -> None:
        """Appends the entry once the call has ended."""
        if not context.add_callback(lambda: self._append(entry)):
            self._append(entry)  # it has ended already

    def close(self) -> None:
        """Closes the file; every call must have ended."""
        with self._lock:
            self._file.close()

    def _append(self, entry: Entry) -> None:
        line = entry.to_json(pixels=self._pixels)
        try:
            with self._lock:
                self._file.write(line + "\n")
                self._file.flush()
        except (OSError, ValueError) as error:  # a full disk; a call that outlived the drain
            logger.error("certificate %s is not in the audit log: %s", entry.certificate_id, error)
            self._on_failure()
