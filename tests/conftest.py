"""Which tests run, and how hypothesis draws."""

import hypothesis
import pytest

TARGETS = {
    "slow": "takes minutes",
    "browser": "needs Chromium",
    "bazel": "needs Bazel",
    "clients": "needs an environment of its own",
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
