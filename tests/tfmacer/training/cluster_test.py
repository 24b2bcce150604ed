"""Who writes, by TF_CONFIG."""

import json

import pytest

from tfmacer.training.cluster import find_cluster


@pytest.mark.parametrize(
    ("cluster", "distribution", "expected"),
    [
        (None, "auto", (1, True)),
        ({"worker": ["a:1", "b:1"]}, "one_device", (1, True)),
        ({"worker": ["a:1", "b:1"]}, "auto", (2, False)),
        ({"chief": ["a:1"], "worker": ["b:1", "c:1"]}, "multi_worker", (3, False)),
    ],
)
def test_who_writes_in_a_cluster(monkeypatch, cluster, distribution, expected):
    """This one is the second worker."""
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if cluster:
        config = {"cluster": cluster, "task": {"type": "worker", "index": 1}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert find_cluster(distribution) == expected
