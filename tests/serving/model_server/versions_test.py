"""The life of versions: load before unload, drain, retries, failures that stay listed."""

import threading
from pathlib import Path

import grpc
import pytest

from serving.model_server.status import StatusError, invalid
from serving.model_server.versions import LoadPolicy, State, Versions

PATIENCE = 30.0


class FakeServable:
    """Counts how often it was closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.closed = 0

    def close(self) -> None:
        self.closed += 1


class Loader:
    """Loads fakes; a version named in `broken` fails as often as its number says."""

    def __init__(self) -> None:
        self.loaded: list[FakeServable] = []
        self.order: list[str] = []
        self.broken: dict[str, int] = {}
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, path: Path) -> FakeServable:
        self.gate.wait(PATIENCE)
        self.order.append(path.name)
        if self.broken.get(path.name, 0) > 0:
            self.broken[path.name] -= 1
            raise invalid(f"{path.name} is broken")
        self.loaded.append(FakeServable(path))
        return self.loaded[-1]


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def versions(loader: Loader):
    made = Versions("m", LoadPolicy(loader, 0, 0.0))  # type: ignore[arg-type]
    yield made
    made.stop()


def _paths(*numbers: int) -> dict[int, Path]:
    return {number: Path(str(number)) for number in numbers}


def _wait_states(versions: Versions, expected: dict[int, State]) -> None:
    """Waits until the versions are in these states, and fails if they never are."""

    def reached() -> bool:
        return {s.version: s.state for s in versions.statuses()} == expected

    with versions._changed:
        assert versions._changed.wait_for(reached, PATIENCE), versions.statuses()


def test_the_highest_is_loaded_first_and_served_by_default(versions, loader) -> None:
    versions.aspire(_paths(1, 3, 2))
    _wait_states(versions, dict.fromkeys((1, 2, 3), State.AVAILABLE))
    assert loader.order == ["3", "2", "1"]
    with versions.use(None) as (number, _):
        assert number == 3
    with versions.use(2) as (number, servable):
        assert (number, servable.path) == (2, Path("2"))
    assert [status.version for status in versions.statuses()] == [3, 2, 1]


@pytest.mark.parametrize("asked", [0, 4])
def test_what_is_not_available_is_not_found(versions, asked) -> None:
    versions.aspire(_paths(3))
    assert versions.wait_available(PATIENCE)
    with (
        pytest.raises(
            StatusError, match=rf"Servable not found for request: Specific\(m, {asked}\)"
        ),
        versions.use(asked),
    ):
        pass


def test_the_old_version_answers_until_the_new_one_can(versions, loader) -> None:
    versions.aspire(_paths(1))
    assert versions.wait_available(PATIENCE)
    loader.gate.clear()
    versions.aspire(_paths(2))
    _wait_states(versions, {1: State.AVAILABLE, 2: State.LOADING})
    with versions.use(None) as (number, _):
        assert number == 1
    loader.gate.set()
    _wait_states(versions, {1: State.END, 2: State.AVAILABLE})
    assert loader.loaded[0].closed == 1


def test_the_old_version_stays_when_the_new_one_fails(versions, loader) -> None:
    versions.aspire(_paths(1))
    assert versions.wait_available(PATIENCE)
    loader.broken["2"] = 1
    versions.aspire(_paths(2))
    _wait_states(versions, {1: State.AVAILABLE, 2: State.END})
    failed = versions.statuses()[0]
    assert str(failed.error) == "2 is broken"
    assert loader.loaded[0].closed == 0


def test_a_failed_version_is_tried_again_only_after_it_was_gone(versions, loader) -> None:
    loader.broken["2"] = 1
    versions.aspire(_paths(2))
    _wait_states(versions, {2: State.END})
    versions.aspire(_paths(1, 2))
    _wait_states(versions, {1: State.AVAILABLE, 2: State.END})
    assert loader.order == ["2", "1"]
    versions.aspire(_paths(1))
    versions.aspire(_paths(1, 2))
    _wait_states(versions, {1: State.AVAILABLE, 2: State.AVAILABLE})


def test_retries(loader) -> None:
    loader.broken["1"] = 2
    versions = Versions("m", LoadPolicy(loader, 2, 0.0))
    versions.aspire(_paths(1))
    assert versions.wait_available(PATIENCE)
    assert loader.order == ["1", "1", "1"]
    versions.stop()


def test_what_is_refused_for_good_is_refused_once(caplog) -> None:
    def refuse(path: Path) -> FakeServable:
        raise StatusError(grpc.StatusCode.FAILED_PRECONDITION, f"{path} writes", final=True)

    # Hours between attempts: whoever waited for one would not get far.
    versions = Versions("m", LoadPolicy(refuse, 5, 3600.0))  # type: ignore[arg-type]
    versions.aspire(_paths(1))
    assert not versions.wait_available(PATIENCE)
    versions.aspire(_paths(1, 2))
    _wait_states(versions, {1: State.END, 2: State.END})
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert lines == [f"loading m version {n} failed (attempt 1): {n} writes" for n in (1, 2)]
    versions.stop()


def test_waiting_ends_when_every_version_has_failed(versions, loader) -> None:
    loader.broken["1"] = 1
    versions.aspire(_paths(1))
    assert not versions.wait_available(PATIENCE)


def test_an_unloaded_version_is_closed_after_its_last_call(versions, loader) -> None:
    versions.aspire(_paths(1))
    assert versions.wait_available(PATIENCE)
    with versions.use(1):
        versions.aspire({})
        _wait_states(versions, {1: State.UNLOADING})
        assert loader.loaded[0].closed == 0
        with pytest.raises(StatusError), versions.use(1):
            pass
    _wait_states(versions, {1: State.END})
    assert loader.loaded[0].closed == 1


def test_a_surprising_error_ends_the_version_not_the_server(versions, loader, monkeypatch) -> None:
    def explode(path: Path) -> FakeServable:
        raise MemoryError("no room")

    monkeypatch.setattr(versions, "_policy", LoadPolicy(explode, 0, 0.0))
    versions.aspire(_paths(1))
    _wait_states(versions, {1: State.END})
    assert "MemoryError: no room" in str(versions.statuses()[0].error)


def test_nothing_more_is_loaded_after_the_stop(loader) -> None:
    versions = Versions("m", LoadPolicy(loader, 0, 0.0))  # type: ignore[arg-type]
    loader.gate.clear()
    versions.aspire(_paths(1, 2, 3))
    with versions._changed:
        assert versions._changed.wait_for(lambda: len(versions.statuses()) == 3, PATIENCE)
    assert not versions.stop(timeout=0)
    loader.gate.set()
    assert versions.stop(PATIENCE)
    assert loader.order == ["3"]
    assert {status.state for status in versions.statuses()} == {State.END}


def test_stopping_unloads_everything(loader) -> None:
    versions = Versions("m", LoadPolicy(loader, 0, 0.0))
    versions.aspire(_paths(1, 2))
    _wait_states(versions, {1: State.AVAILABLE, 2: State.AVAILABLE})
    versions.stop()
    assert [servable.closed for servable in loader.loaded] == [1, 1]
