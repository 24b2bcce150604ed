"""Mixed load from 16 clients at once: no failure but declared refusals, and flat memory."""

import collections
import time

import pytest

from benchmarks.load import BUSY, EXPECTED, Memory, load, tell

CLIENTS = 16
MEBIBYTE = 2**20
# Growth allowed over the second half, in bytes a second: in a short run servers still take what
# they need to work at all, in a long one 6 MiB a minute would be a leak of 3 KiB a call.
FLAT = {10: 4 * MEBIBYTE, 300: 0.1 * MEBIBYTE}


@pytest.mark.parametrize("seconds", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_no_failure_and_flat_memory(stack, seconds, capsys):
    processes = {name: process.pid for name, process in stack.processes.items()}
    with Memory(processes) as memory:
        results = load(stack.address("8600"), seconds=seconds, clients=CLIENTS)
    with capsys.disabled():
        if seconds > 60:
            print("\n", *tell(results, memory, list(processes)), sep="\n")
    wrong = collections.Counter(
        (result.kind, result.outcome) for result in results if not result.expected
    )
    assert not wrong
    ended = {(result.kind, result.outcome) for result in results}
    assert {kind for kind, _ in ended} == set(EXPECTED), "some kind of call was never made"
    assert {"OK", "CANCELLED", BUSY} <= {outcome for _, outcome in ended}
    for name in processes:
        assert memory.slope(name) < FLAT[seconds], name
    _wait_until_idle(stack)
    stack.check_alive()


def _wait_until_idle(stack):
    """Nothing stays behind: no call is counted as under way, nothing waits for the backend."""
    limit = time.monotonic() + 30
    while True:
        metrics = stack.metrics()
        left = [metrics["tfmacer_certify_inflight"], metrics["tfmacer_backend_queue"]]
        if left == [0, 0]:
            return
        assert time.monotonic() < limit, left
        time.sleep(0.1)


def test_the_slope_sees_a_leak():
    memory = Memory({})
    memory._times = [0.5 * i for i in range(100)]
    memory._bytes = {"leaks": [i * MEBIBYTE for i in range(100)], "steps": [50] * 80 + [90] * 20}
    assert memory.slope("leaks") == pytest.approx(2 * MEBIBYTE)
    assert memory.slope("steps") == 0
    assert memory.ends("leaks") == (0, 99 * MEBIBYTE)
