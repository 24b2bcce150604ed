"""Places are bounded, and handed out in turn."""

import threading
import time

import pytest

from serving.sidecar.limits import Admission, FairSlots, TooManyError

PATIENCE = 30.0


def test_admission_is_bounded_for_each_client_and_in_all() -> None:
    admission = Admission(3, 2)
    with admission.enter("a"), admission.enter("a"):
        with pytest.raises(TooManyError, match="of this client: 2, the limit is 2"):
            admission.enter("a").__enter__()
        with admission.enter("b"):
            with pytest.raises(TooManyError, match="in all: 3, the limit is 3"):
                admission.enter("c").__enter__()
            assert admission.inside() == 3
    assert admission.inside() == 0
    with admission.enter("a"):
        assert admission.inside() == 1


def test_places_come_back_after_an_error() -> None:
    admission = Admission(1, 1)
    for _ in range(3):
        with pytest.raises(ValueError, match="boom"), admission.enter("a"):
            raise ValueError("boom")


def test_admission_remembers_nobody_who_has_left() -> None:
    admission = Admission(1, 1)
    for number in range(10):
        with admission.enter(str(number)):
            pass
    assert not admission._inside


def _queue(slots: FairSlots, client: str, order: list[str]) -> threading.Thread:
    """A thread that waits for a place and notes when it got one."""
    before = slots.waiting()

    def wait() -> None:
        assert slots.acquire(client, PATIENCE)
        order.append(client)

    thread = threading.Thread(target=wait)
    thread.start()
    limit = time.monotonic() + PATIENCE
    while slots.waiting() == before:
        assert time.monotonic() < limit
        time.sleep(0.001)
    return thread


def test_waiting_clients_take_turns() -> None:
    slots = FairSlots(1)
    assert slots.acquire("a", 0)
    order: list[str] = []
    threads = [_queue(slots, client, order) for client in ("a", "a", "a", "a", "b", "c", "b")]
    for done in range(len(threads)):
        slots.release()
        while len(order) == done:
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == ["a", "b", "c", "a", "b", "a", "a"]


def test_a_wait_ends_in_time_and_leaves_no_trace() -> None:
    slots = FairSlots(1)
    assert slots.acquire("a", 0)
    assert not slots.acquire("b", 0.01)
    assert slots.waiting() == 0
    slots.release()
    assert slots.acquire("b", 0)
    slots.release()
    assert slots.acquire("a", 0)


def test_no_place_is_lost_or_made_under_contention() -> None:
    slots, inside, most = FairSlots(3), [0], [0]
    lock = threading.Lock()

    def work(client: str) -> None:
        for _ in range(200):
            if not slots.acquire(client, 0.0005):
                continue
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            with lock:
                inside[0] -= 1
            slots.release()

    threads = [threading.Thread(target=work, args=(str(i % 4),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] <= 3
    assert slots.waiting() == 0
    assert all(slots.acquire("z", 0) for _ in range(3))
    assert not slots.acquire("z", 0)
