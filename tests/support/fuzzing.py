"""Many made-up examples of one check: few in `make test`, 20 times as many in `make test-slow`."""

from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis.strategies import SearchStrategy

MANY = 20


def times(count: int) -> pytest.MarkDecorator:
    """Runs a test with this `count`, and marked slow with `MANY` times as much."""
    slow = pytest.param(MANY * count, marks=pytest.mark.slow)
    return pytest.mark.parametrize("count", [count, slow])


def fuzz(strategy: SearchStrategy[Any], count: int, check: Callable[[Any], None]) -> None:
    """Calls `check` with `count` examples of a strategy, the same in every run.

    What a server did with one example depends on those before it, so none is tried again or made
    smaller: the first that fails is shown as it was.
    """
    made = 0

    @hypothesis.settings(
        max_examples=count,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
        database=None,
    )
    @hypothesis.given(strategy)
    def run(example: Any) -> None:
        nonlocal made
        made += 1
        check(example)

    run()
    assert made >= 0.9 * count, f"only {made} examples of {count}"
