"""The commands of the documentation run as written."""

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import made_logs
import portpicker
import pytest
from shell import PATIENCE, Shell, lines_of
from source_tree import ROOT

from tfmacer import certify
from tfmacer.guarantee.certificate import check_reachable
from tfmacer.guarantee.rule import Rule
from tfmacer.noise.gaussian.distribution import Gaussian

WITHOUT_TENSORFLOW = ("tfmacer.verify", "tfmacer.merge", "tfmacer.report")


def _blocks(page):
    """Language and text of each fenced block, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def _commands(block):
    """Module and arguments of each `python -m` of a block."""
    lines = map(shlex.split, lines_of(block))
    return [(words[2], words[3:]) for words in lines if words[:2] == ["python", "-m"]]


def _all_commands():
    return [
        command
        for language, block in _blocks("docs/guide.md")
        if language == "sh"
        for command in _commands(block)
    ]


def _certify_flags(arguments):
    """The flags of a certify command: rule of each log, and shard."""
    values = certify.FLAGS
    values.unparse_flags()
    values(["certify", *arguments])
    stop = values.stop
    names = values.bound or ["clopper_pearson" if stop == "fixed" else "alpha_spending"]
    rules = [
        Rule(n0=values.n0, n=values.n, alpha=values.alpha, bound=name, stop=stop) for name in names
    ]
    out = Path(values.out)
    paths = [out, *(out.with_name(f"{out.stem}.{name}.tsv") for name in names[1:])]
    return dict(zip(paths, rules, strict=True)), values.shard


def test_the_flags_of_certify_can_certify_something():
    plans = [_certify_flags(words)[0] for module, words in _all_commands() if "certify" in module]
    assert len(plans) > 5
    for rule in (rule for plan in plans for rule in plan.values()):
        check_reachable(rule, Gaussian(0.5, 784))


def test_what_needs_no_tensorflow_runs(tmp_path, monkeypatch, capsys):
    """On generated logs under the names that the guide's certify commands give theirs."""
    monkeypatch.chdir(tmp_path)
    ran = set()
    for module, arguments in _all_commands():
        if module == "tfmacer.certify":
            logs, shard = _certify_flags(arguments)
            for path, rule in logs.items():
                plan = Rule(n=2000, bound=rule.bound, stop=rule.stop)
                made_logs.write(path, made_logs.settings(plan, shard=shard))
        elif module in WITHOUT_TENSORFLOW and "--replay" not in arguments:
            name = module if module != "tfmacer.report" else "tfmacer.report.__main__"
            status = importlib.import_module(name).main(arguments)
            assert status == 0, f"{module} {arguments}: {capsys.readouterr().err}"
            ran.add(module)
    assert ran == set(WITHOUT_TENSORFLOW)


@pytest.mark.slow
def test_guide_and_serving_page_run_in_order(tmp_path):
    """Every command and Python block of the guide, then those of docs/serving.md."""
    ports = {port: str(portpicker.pick_unused_port()) for port in ("8500", "8600", "8080")}
    blocks = [*_blocks("docs/guide.md"), *_blocks("docs/serving.md")]
    with Shell(tmp_path) as shell:
        for language, block in blocks:
            for port, free in ports.items():
                block = re.sub(rf"([:=]){port}\b", rf"\g<1>{free}", block)
            if language == "python" and (name := re.match(r"# (\w+\.py)\n", block)):
                (tmp_path / name[1]).write_text(block)
            elif language == "python":
                shell.run("-c", block)
            elif language == "sh":
                for line in lines_of(block):
                    shell.type(line)


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_order(tmp_path):
    """The commands of the README other than `make`, each on the output of those before it."""
    shutil.copy(ROOT / "mnist.flags", tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"`(python -m [^`]*)`", text)
    assert [line.split()[2] for line in lines] == [
        "tfmacer.train", "tfmacer.certify", "tfmacer.verify", "tfmacer.falsify",
        "tfmacer.report", "export.saved_model",
    ]  # fmt: skip
    with Shell(tmp_path) as shell:
        for line in lines:
            shell.type(line + (" --dataset=mnist5k" if "tfmacer.train" in line else ""))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "shape", "classes"),
    [
        ("--flagfile=mnist.flags --objective=gaussian", (28, 28, 1), 10),
        ("--flagfile=cifar.flags --sigma=0.5", (32, 32, 3), 10),
        ("--flagfile=svhn.flags", (32, 32, 3), 10),
        ("--flagfile=imagenet.flags", (224, 224, 3), 1000),
    ],
)
def test_the_published_configurations_take_a_step(tmp_path, command, shape, classes):
    """As the guide names them, on two images of noise in place of the dataset."""
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    assert f"`python -m tfmacer.train {command}`" in guide
    (tmp_path / "noise.py").write_text(
        "import numpy as np\n"
        "def images(split):\n"
        "    draws = np.random.default_rng(0)\n"
        f"    return draws.random((2, *{shape}), np.float32), np.array([0, {classes - 1}])\n"
    )
    words = shlex.split(command.replace("=", f"={ROOT}/", 1))
    few = ["--dataset=noise:images", "--batch_size=2", "--epochs=1", "--num_noise=1"]
    few += ["--lr_decay_epochs=", "--eval_examples=1", "--run_dir=run"]
    # Published weights are for the dataset; Gaussian training has none.
    few += [] if "gaussian" in command else ["--lambda=1"]
    Shell(tmp_path).run("-m", "tfmacer.train", *words, *few)
    assert (tmp_path / "run" / "model.keras").is_file()


@pytest.mark.slow
def test_the_demo_ends_with_ok(tmp_path):
    assert "demo: OK" in Shell(tmp_path).run("-m", "tfmacer.demo").splitlines()


@pytest.mark.slow
def test_tensorboard_shows_a_run(tmp_path):
    """`tensorboard --logdir runs`, with what a run writes there."""
    shell = Shell(tmp_path)
    shell.type(
        "python -m tfmacer.train --run_dir=runs/a --dataset=mnist5k --network=lenet"
        " --objective=gaussian --sigma=0.5"
    )
    shown = shell.run("-m", "tensorboard.main", "--inspect", "--logdir", "runs")
    assert "scalars" in shown


@pytest.mark.slow
def test_a_pool_of_workers_listens(tmp_path):
    port = portpicker.pick_unused_port()
    words = ["-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
    with subprocess.Popen([sys.executable, *words], cwd=tmp_path) as pool:
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                grpc.channel_ready_future(channel).result(PATIENCE)
        finally:
            pool.kill()
