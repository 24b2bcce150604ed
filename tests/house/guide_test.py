"""What docs/guide.md says to type runs, as it stands there."""

import contextlib
import importlib
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import made_logs
import portpicker
import pytest
from source_tree import ROOT

from tfmacer import certify
from tfmacer.guarantee.certificate import check_reachable
from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.smoothing import Gaussian

WITHOUT_TENSORFLOW = ("tfmacer.verify", "tfmacer.merge", "tfmacer.report")
# What a test can spare of a run; later flags win.
LIGHTER = {
    "tfmacer.train": ["--epochs=1", "--num_noise=1", "--eval_examples=10"],
    "tfmacer.certify": ["--n=1000", "--num_examples=4"],
    "tfmacer.falsify": ["--steps=2", "--num_noise=4", "--num_examples=2"],
}
PATIENCE = 300.0


def _blocks(page):
    """Language and text of each fenced block, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def _commands(block):
    """Module and arguments of each `python -m` of a block."""
    lines = block.replace("\\\n", " ").splitlines()
    return [
        (words[2], words[3:]) for words in map(shlex.split, lines) if words[:2] == ["python", "-m"]
    ]


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


def test_plans_can_certify():
    plans = [_certify_flags(words)[0] for module, words in _all_commands() if "certify" in module]
    assert len(plans) > 5
    for rule in (rule for plan in plans for rule in plan.values()):
        check_reachable(rule, Gaussian(0.5))


def test_what_needs_no_tensorflow_runs(tmp_path, monkeypatch, capsys):
    """On made logs in the places where the guide's certify commands put theirs."""
    monkeypatch.chdir(tmp_path)
    ran = set()
    for module, arguments in _all_commands():
        if module == "tfmacer.certify":
            logs, shard = _certify_flags(arguments)
            for path, rule in logs.items():
                plan = Rule(n=2000, bound=rule.bound, stop=rule.stop)
                made_logs.write(path, made_logs.settings(plan, shard=shard))
        elif module in WITHOUT_TENSORFLOW and "--redraw" not in arguments:
            name = module if module != "tfmacer.report" else "tfmacer.report.__main__"
            status = importlib.import_module(name).main(arguments)
            assert status == 0, f"{module} {arguments}: {capsys.readouterr().err}"
            ran.add(module)
    assert ran == set(WITHOUT_TENSORFLOW)


@pytest.mark.slow
def test_all_of_it_runs_in_order(tmp_path):
    """Every command and Python block of the guide, then those of docs/serving.md."""
    ports = {port: str(portpicker.pick_unused_port()) for port in ("8500", "8600")}
    blocks = [*_blocks("docs/guide.md"), *_blocks("docs/serving.md")]
    with contextlib.ExitStack() as servers:
        for language, block in blocks:
            for port, free in ports.items():
                block = block.replace(f":{port}", f":{free}").replace(f"={port}", f"={free}")
            if language == "python" and (name := re.match(r"# (\w+\.py)\n", block)):
                (tmp_path / name[1]).write_text(block)
            elif language == "python":
                _run(tmp_path, "-c", block)
            elif language == "sh":
                for module, arguments in _commands(block):
                    words = ["-m", module, *arguments, *LIGHTER.get(module, [])]
                    if arguments[-1] == "&":
                        words.remove("&")
                        words += ["--metrics_port=0"] if module == "serving.sidecar" else []
                        servers.enter_context(_server(tmp_path, words))
                    else:
                        _run(tmp_path, *words)


def _environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def _run(folder, *words):
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr}"
    # What a block compares comes out true.
    assert "False" not in done.stdout.split(), done.stdout


@contextlib.contextmanager
def _server(folder, words):
    """A server, once it has said `ready`, until the end."""
    with subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        env=_environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        impatient = threading.Timer(PATIENCE, process.kill)
        impatient.start()
        try:
            assert any(line.strip() == "ready" for line in process.stdout), words
            impatient.cancel()
            yield
        finally:
            impatient.cancel()
            process.kill()
