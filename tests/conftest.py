"""Which tests run and in which process, on how many threads, and how hypothesis draws."""

import os

import filelock
import hypothesis
import pytest

# Votes depend on the threads inside one operation; the commands that draw them use one.
os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
os.environ["TF_NUM_INTEROP_THREADS"] = "2"

TARGETS = {
    "slow": "takes minutes",
    "browser": "needs Chromium",
    "bazel": "needs Bazel",
    "clients": "needs an environment of its own",
    "cluster": "needs root, for network namespaces",
}

# The same examples in every run, and no deadline: the machine may be busy.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser):
    parser.addoption(
        "--run",
        action="append",
        choices=sorted(TARGETS),
        default=[],
        help="run the tests of this marker as well; `make test-MARKER` passes it",
    )


def pytest_collection_modifyitems(config, items):
    wanted = set(config.getoption("--run"))
    for item in items:
        marked = [name for name in TARGETS if item.get_closest_marker(name)]
        if marked and not wanted & set(marked):
            reason = f"{TARGETS[marked[0]]}: make test-{marked[0]}"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One process runs a module, and all modules of tests/serving/load, which share two servers."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            module = nodeid.partition("::")[0]
            return "load" if module.startswith("tests/serving/load/") else module

    return ByModule(config, log) if config.getvalue("dist") == "loadscope" else None


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """Makes a folder that all processes of a run read: `once(name, make)` calls `make(folder)`.

    The first that asks for the name makes it, the others wait; nobody may change it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name, make):
        folder = shared / name
        with filelock.FileLock(shared / f"{name}.lock"):
            if not folder.exists():
                unfinished = shared / f"{name}.unfinished"
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(folder)
        return folder

    return made


@pytest.fixture(scope="session")
def small_export(once):
    """The version directory of the classifier of tests/support/small_exports.py."""
    from small_exports import write_small_export

    return once("small_export", lambda folder: write_small_export(folder / "1")) / "1"
