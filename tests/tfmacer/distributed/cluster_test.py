"""Certification and training over hosts with addresses of their own, one of which is lost.

The hosts are network namespaces of this machine; they share its file system, as hosts of a
cluster share a network drive.
"""

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hosts import HERE, MISSING, hosts
from small_training import MODULE

from tfmacer.records.logs import read_log

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(MISSING), reason=MISSING or "hosts can be made"),
]

ROOT = Path(__file__).parents[3]
# Beam's pool starts its workers as `python`, whatever Python it runs in itself.
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
}
POOL_PORT, JOB_PORT, SCHEDULER_PORT, TRAINING_PORT = 50000, 8099, 8786, 5000
PATIENCE = 400.0
# Longer than a worker takes to load TensorFlow and to certify its first block.
TIMEOUT = 60
# Eight blocks of 16 images.
PLAN = ["--num_examples=128", "--skip=7", "--n=6000", "--seed=9"]


@pytest.fixture
def pair():
    with hosts(2) as made:
        yield made


def wait_for(condition, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE} seconds"
        time.sleep(0.1)


def listens(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


class Balancer:
    """One address for the worker pools of all hosts, which it hands out in turn."""

    def __init__(self, addresses: list[str]) -> None:
        self._turns = itertools.cycle(addresses)
        self._server = socket.create_server((HERE, 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                for address in itertools.islice(self._turns, 2):
                    with contextlib.suppress(OSError):
                        pool = socket.create_connection((address, POOL_PORT), timeout=2)
                        pool.settimeout(None)
                        for ends in ((client, pool), (pool, client)):
                            threading.Thread(target=self._copy, args=ends, daemon=True).start()
                        break

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._server.close()


@contextlib.contextmanager
def job_service(log: Path):
    """Beam's job service on this machine."""
    command = [sys.executable, str(ROOT / "tests/support/job_service.py"), HERE, str(JOB_PORT)]
    with log.open("a") as file:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=file, stderr=file)
        try:
            wait_for(lambda: listens(HERE, JOB_PORT), "the job service")
            yield
        finally:
            process.kill()
            process.wait()


def start_pools(made, tmp_path: Path) -> None:
    for host in made:
        with (tmp_path / f"{host.name}.log").open("a") as file:
            host.start(
                *("-m", "apache_beam.runners.worker.worker_pool_main"),
                f"--service_port={POOL_PORT}",
                env=ENVIRONMENT,
                stdout=file,
                stderr=file,
            )
    for host in made:
        wait_for(lambda host=host: listens(host.address, POOL_PORT), f"the pool of {host.name}")


def portable(pools: int) -> list[str]:
    """How to reach the job service, and by it the worker pools."""
    options = {
        "job_endpoint": f"{HERE}:{JOB_PORT}",
        "environment_type": "EXTERNAL",
        "environment_config": f"{HERE}:{pools}",
    }
    flags = [f"--pipeline_option={name}={value}" for name, value in options.items()]
    return ["--runner=portable", f"--part_timeout={TIMEOUT}", *flags]


def certification(run_dir: Path, out: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "tfmacer.certify", f"--run_dir={run_dir}", f"--out={out}"),
            *PLAN,
            *("--worker_threads=1", *flags),
        ],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def parts(out: Path) -> list[Path]:
    return list(out.with_name(f"{out.name}.parts").glob("*-*.json"))


def workers(out: Path) -> set[str]:
    """Names of the hosts that have made a part."""
    return {json.loads(part.read_text())["worker"].partition(":")[0] for part in parts(out)}


def rows(path: Path) -> list[list[str]]:
    """Every column but `time`, sorted by idx."""
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    time_column = lines[0].index("time")
    kept = [line[:time_column] + line[time_column + 1 :] for line in lines]
    return [kept[0], *sorted(kept[1:], key=lambda line: int(line[0]))]


@pytest.fixture(scope="module")
def alone(tiny_run, tmp_path_factory) -> Path:
    """The log of one machine."""
    out = tmp_path_factory.mktemp("alone") / "log.tsv"
    command = [sys.executable, "-m", "tfmacer.certify", f"--run_dir={tiny_run}", f"--out={out}"]
    subprocess.run([*command, *PLAN], env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    return out


def test_hosts_that_are_lost_change_nothing(pair, tiny_run, alone, tmp_path):
    """One is killed and comes back, the other is cut off: the runner itself notices neither."""
    out = tmp_path / "log.tsv"
    with job_service(tmp_path / "service.log"):
        start_pools(pair, tmp_path)
        balancer = Balancer([host.address for host in pair])
        command = certification(tiny_run, out, *portable(balancer.port))
        wait_for(lambda: len(parts(out)) >= 2, "two parts")
        pair[0].kill()
        before = len(parts(out))
        start_pools(pair[:1], tmp_path)
        wait_for(lambda: len(parts(out)) > before + 1, "parts of the next attempt")
        pair[1].cut_off()
        _, error = command.communicate(timeout=PATIENCE)
        balancer.close()
    assert command.returncode == 0, error[-3000:]
    assert f"no part appeared within --part_timeout={TIMEOUT} seconds" in error
    assert rows(out) == rows(alone)
    assert read_log(out).settings.rule == read_log(alone).settings.rule


def test_both_hosts_take_part(pair, tiny_run, alone, tmp_path):
    out = tmp_path / "log.tsv"
    seen = set()
    with job_service(tmp_path / "service.log"):
        start_pools(pair, tmp_path)
        balancer = Balancer([host.address for host in pair])
        command = certification(tiny_run, out, *portable(balancer.port))
        while command.poll() is None:
            seen |= workers(out)
            time.sleep(0.1)
        _, error = command.communicate()
        balancer.close()
    assert command.returncode == 0, error[-3000:]
    assert seen == {host.name for host in pair}
    assert rows(out) == rows(alone)


def test_a_killed_worker_of_dask_changes_nothing(pair, tiny_run, alone, tmp_path):
    out = tmp_path / "log.tsv"
    address = f"tcp://{HERE}:{SCHEDULER_PORT}"
    with (tmp_path / "scheduler.log").open("w") as file:
        command = ["-m", "distributed.cli.dask_scheduler", f"--host={address}", "--no-dashboard"]
        scheduler = subprocess.Popen(
            [sys.executable, *command], env=ENVIRONMENT, stdout=file, stderr=file
        )
        try:
            wait_for(lambda: listens(HERE, SCHEDULER_PORT), "the scheduler")
            for host in pair:
                host.start(
                    *("-m", "distributed.cli.dask_worker", address, "--nthreads=1"),
                    *("--no-dashboard", f"--local-directory={tmp_path}"),
                    env=ENVIRONMENT,
                    stdout=file,
                    stderr=file,
                )
            option = f"--pipeline_option=dask_client_address={address}"
            command = certification(tiny_run, out, "--runner=dask", option)
            wait_for(lambda: len(workers(out)) == 2, "parts of both workers")
            pair[0].kill()
            _, error = command.communicate(timeout=PATIENCE)
        finally:
            scheduler.kill()
            scheduler.wait()
    assert command.returncode == 0, error[-3000:]
    assert rows(out) == rows(alone)


def start_training(made, folder: Path, *flags: str) -> list[subprocess.Popen[str]]:
    cluster = {"worker": [f"{host.address}:{TRAINING_PORT}" for host in made]}
    processes = []
    for index, host in enumerate(made):
        config = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        environment = ENVIRONMENT | {
            "PYTHONPATH": f"{ROOT}:{folder}",
            "TF_CONFIG": json.dumps(config),
        }
        processes.append(
            host.start(
                *("-m", "tfmacer.train", "--dataset=my_parts:digits"),
                *("--network=my_parts:network", "--sigma=0.25", "--lambda=1", "--num_noise=2"),
                *("--batch_size=10", "--checkpoint_every=3", "--epochs=12", *flags),
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    return processes


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    answers = [process.communicate(timeout=PATIENCE) for process in processes]
    for process, (_, error) in zip(processes, answers, strict=True):
        assert process.returncode == 0, error[-3000:]
    return [output for output, _ in answers]


def curve(run: Path) -> list[str]:
    metrics = run / "metrics.csv"
    if not metrics.is_file():
        return []
    return [row.rpartition(",")[0] for row in metrics.read_text().splitlines()]


def test_a_host_killed_in_training_changes_nothing(pair, tmp_path):
    (tmp_path / "my_parts.py").write_text(MODULE)
    whole, run = tmp_path / "whole", tmp_path / "run"
    finish(start_training(pair, tmp_path, f"--run_dir={whole}"))
    processes = start_training(pair, tmp_path, f"--run_dir={run}")
    wait_for(lambda: len(curve(run)) > 3, "three epochs")
    pair[1].kill()
    # TensorFlow's coordination service ends the hosts that are left.
    _, error = processes[0].communicate(timeout=PATIENCE)
    assert processes[0].returncode != 0, error[-3000:]
    assert not (run / "smoothing.json").exists()
    said = finish(start_training(pair, tmp_path, f"--run_dir={run}"))
    assert "going on after step" in said[0]
    assert curve(run) == curve(whole)
    # The digest in it is that of the weights.
    assert (run / "smoothing.json").read_text() == (whole / "smoothing.json").read_text()
