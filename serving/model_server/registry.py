"""All models that are served: configured, polled on disk, and looked up for each request."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import grpc

from serving.model_server.configuration import Model, models
from serving.model_server.discovery import Discovery
from serving.model_server.servable import Servable
from serving.model_server.status import StatusError, invalid
from serving.model_server.versions import LoadPolicy, Versions, VersionStatus, not_found
from tfmacer.common.text import cut

logger = logging.getLogger(__name__)

# Between two polls of `wanted`.
_LOOK_SECONDS = 0.2


class Registry:
    """The serving state. Thread-safe."""

    def __init__(
        self,
        policy: LoadPolicy,
        *,
        poll_seconds: float = 1.0,
        versions_always_present: bool = False,
        labels_for_unavailable: bool = False,
    ) -> None:
        """Serves nothing yet. With `poll_seconds` 0, only `configure` reads base paths."""
        self._policy = policy
        self._poll_seconds = poll_seconds
        self._versions_always_present = versions_always_present
        self._labels_for_unavailable = labels_for_unavailable
        self._models: dict[str, Model] = {}
        self._versions: dict[str, Versions] = {}
        self._lock = threading.RLock()
        self._discovery = Discovery()
        self._stopped = threading.Event()
        self._poller = threading.Thread(target=self._poll, name="poll", daemon=True)

    def start(self) -> None:
        """Starts looking for new versions on disk."""
        if self._poll_seconds > 0:
            self._poller.start()

    def configure(
        self,
        config: Any,
        *,
        timeout: float | None = None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        """Applies a ModelServerConfig: models that it does not name are unloaded, new ones loaded.

        Args:
          config: the configuration.
          timeout: seconds to wait until the models that go are unloaded and each other has a
            version available; None for as long as it takes a version to appear on disk.
          wanted: polled while waiting; once it returns False, the wait ends.

        Raises:
          StatusError: the configuration is wrong, a label names a version that is not available,
            or a model has no version that loads, or none in time.
        """
        listed = models(config)
        with self._lock:
            self._check_labels(listed)
            gone = self._replace(listed)
            served = [self._versions[name] for name in listed]
        limit = math.inf if timeout is None else time.monotonic() + timeout
        _end(gone, limit, wanted)
        self._look()
        _wait(served, limit, wanted)

    def stop(self, timeout: float | None = None) -> None:
        """Unloads everything, after the calls under way.

        Args:
          timeout: seconds to wait for each model, one of whose versions may be loading; None for
            as long as it takes.
        """
        self._stopped.set()
        if self._poller.is_alive():
            self._poller.join()
        with self._lock:
            gone = self._replace({})
        for versions in gone:
            versions.stop(timeout)

    @contextmanager
    def use(self, model_spec: Any) -> Iterator[tuple[int, Servable]]:
        """Holds the version that a ModelSpec names, and yields it with its number.

        Raises:
          StatusError: it names none, or one that is not available.
        """
        if not model_spec.name:
            raise invalid("ModelSpec has no name specified.")
        with ExitStack() as stack:
            # Held before another configuration can replace them.
            with self._lock:
                versions = self._versions.get(model_spec.name)
                number = self._number(model_spec)
                if versions is None:
                    raise not_found(model_spec.name, number)
                held = stack.enter_context(versions.use(number))
            yield held

    def serves(self, name: str) -> bool:
        """Whether a model of this name is configured."""
        with self._lock:
            return name in self._versions

    def statuses(self, model_spec: Any) -> list[VersionStatus]:
        """All versions of a model, or the one that the spec names by number; labels do not count.

        Raises:
          StatusError: NOT_FOUND.
        """
        name = cut(model_spec.name)
        with self._lock:
            versions = self._versions.get(model_spec.name)
            found = versions.statuses() if versions is not None else []
        if model_spec.HasField("version"):
            number = model_spec.version.value
            found = [status for status in found if status.version == number]
            text = f"Could not find version {number} of model {name}"
        else:
            text = f"Could not find any versions of model {name}"
        if not found:
            raise StatusError(grpc.StatusCode.NOT_FOUND, text)
        return found

    def _number(self, model_spec: Any) -> int | None:
        choice = model_spec.WhichOneof("version_choice")
        if choice == "version":
            return int(model_spec.version.value)
        if choice is None:
            return None
        model = self._models.get(model_spec.name)
        if model is None or model_spec.version_label not in model.labels:
            raise invalid(f"Unrecognized servable version label: {cut(model_spec.version_label)}")
        return model.labels[model_spec.version_label]

    def _check_labels(self, wanted: dict[str, Model]) -> None:
        for name, model in wanted.items():
            served = self._versions.get(name)
            known = self._models[name].labels if name in self._models else {}
            for label, version in model.labels.items():
                if served is not None and served.available(version):
                    continue
                if self._labels_for_unavailable and known.get(label) in (None, version):
                    continue
                flag = "; --allow_version_labels_for_unavailable_models lets a new label name it"
                raise StatusError(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f"Request to assign label to version {version} of model {name}, "
                    "which is not currently available for inference"
                    + ("" if self._labels_for_unavailable else flag),
                )

    def _replace(self, wanted: dict[str, Model]) -> list[Versions]:
        """Applies a configuration; returns what is to be stopped."""
        gone = []
        for name in list(self._versions):
            if name not in wanted:
                gone.append(self._versions.pop(name))
        for name, model in wanted.items():
            if (served := self._versions.get(name)) is None:
                self._versions[name] = Versions(name, self._policy)
            elif model.base_path != self._models[name].base_path:
                self._versions[name] = Versions(name, self._policy, predecessor=served.give_way())
        self._models = wanted
        return gone

    def _poll(self) -> None:
        while not self._stopped.wait(self._poll_seconds):
            self._look()

    def _look(self) -> None:
        with self._lock:
            current = list(self._models.values())
        for model in current:
            found = self._discovery.aspired(model)
            if found is None or (not found and self._versions_always_present):
                continue
            with self._lock:
                if self._models.get(model.name) is model:
                    self._versions[model.name].aspire(found)


def _end(gone: list[Versions], limit: float, wanted: Callable[[], bool]) -> None:
    """Unloads; what a load or a call holds longer than somebody waits ends by itself."""
    for versions in gone:
        versions.stop(timeout=0)
    for versions in gone:
        while wanted() and (remaining := limit - time.monotonic()) > 0:
            if versions.stop(min(remaining, _LOOK_SECONDS)):
                break


def _wait(served: list[Versions], limit: float, wanted: Callable[[], bool]) -> None:
    """Returns when each has a version; the time limit is for all of them together."""
    failed = []
    for versions in served:
        available = False
        while not available and wanted() and (remaining := limit - time.monotonic()) > 0:
            available = versions.wait_available(min(remaining, _LOOK_SECONDS))
            if not available and versions.settled():
                break
        if not available:
            failed.append(versions)
    if not failed:
        return
    reasons = ", ".join(
        f"{{name: {versions.name} version: {status.version}}} due to error: {status.error}"
        for versions in failed
        for status in versions.failures()
    )
    raise StatusError(
        grpc.StatusCode.UNKNOWN,
        f"{len(failed)} servable(s) did not become available: {{{reasons}}}",
    )
