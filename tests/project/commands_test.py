"""Every command that a page names is run by a test, or is known to be only checked or not run."""

import re
import shlex

import pytest
from source_tree import ROOT

PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
)
PROGRAM = re.compile(
    r"(?:[A-Z_]+=\S+ )?(?:python3?|make|pip|docker|kubectl|curl|tensorboard|source|\.venv/bin/\w+) "
)
GUIDE = "tests/project/guide_test.py"
IN_ORDER = f"{GUIDE}::test_all_of_it_runs_in_order"
README = f"{GUIDE}::test_the_readmes_road_runs_in_order"
PUBLISHED = f"{GUIDE}::test_the_published_configurations_take_a_step"
WHEEL = "tests/project/wheel_test.py"

# What runs a command, apart from Python modules: the command's beginning, and the tests.
RUN_BY = {
    "curl --fail-with-body http://localhost:8080/v1/certify": [IN_ORDER],
    "make api": ["tests/project/api_test.py::test_every_module_has_a_page"],
    "make demo": [f"{GUIDE}::test_the_demonstration_ends_well"],
    "make protos": ["tests/project/protos_test.py::test_stubs_are_fresh"],
    "pip install -c constraints.txt '.[beam]'": [
        f"{WHEEL}::test_extras_install_beside_the_pins",
        f"{WHEEL}::test_installed_alone_it_runs",
    ],
    "pip install -c constraints.txt .": [f"{WHEEL}::test_installed_alone_it_runs"],
    "pip install 'tfmacer[otel]'": [f"{WHEEL}::test_extras_install_beside_the_pins"],
    "python -m apache_beam.runners.worker.worker_pool_main": [
        "tests/project/guide_test.py::test_a_pool_of_workers_listens"
    ],
    "tensorboard --logdir runs": [f"{GUIDE}::test_tensorboard_shows_a_run"],
}
# By whoever runs the tests, or works on the project.
BY_HAND = {
    "make benchmarks",
    "make lint",
    "make setup",
    "make setup constraints",
    "make test",
    "make test-slow",
    "source .venv/bin/activate",
}
# Pages that say at the place that these were not run: the command's beginning, and what is said.
NOT_RUN = {
    ("docs/serving.md", "docker run"): "this command was not run here",
    ("docs/serving.md", 'MODELS="$PWD/models" docker compose'): "the command was not run here",
    ("docs/serving.md", "kubectl create secret"): "not run here on any cluster",
    ("docs/serving.md", "kubectl apply"): "not run here on any cluster",
    ("docs/runbook.md", "kubectl"): "commands of `kubectl` and `docker` were not run here",
    ("docs/runbook.md", "docker compose logs"): "commands of `kubectl` and `docker` were not run",
}
# Measurements: their flags are checked by documents_test.py.
MEASUREMENTS = "docs/results.md"
ONLY_CHECKED = "the tests check their flags and do not run them"


def _text(page):
    """The page, with shell lines that end in a backslash joined."""
    return re.sub(r"\\\n\s*", " ", (ROOT / page).read_text(encoding="utf-8"))


def _fenced(page, languages):
    """Lines of the fenced blocks in these languages."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", _text(page), re.DOTALL | re.MULTILINE)
    return [
        line for language, block in blocks if language in languages for line in block.split("\n")
    ]


def _commands(page):
    """Whether it stands in a block that is run, and each command."""
    prose = re.sub(r"^```.*?^```", "", _text(page), flags=re.DOTALL | re.MULTILINE)
    for line in _fenced(page, ("sh",)):
        if line:
            yield True, line
    for line in [*_fenced(page, ("",)), *re.findall(r"`([^`\n]+)`", prose)]:
        if PROGRAM.match(line):
            yield False, line


def _form(command):
    """The module and the names of the flags of a `python -m`."""
    words = shlex.split(command)
    return words[2], {word.partition("=")[0] for word in words[3:] if word.startswith("--")}


def _typed():
    """The forms of all that the tests type: blocks of two pages, and the README's commands."""
    lines = [*_fenced("docs/guide.md", ("sh",)), *_fenced("docs/serving.md", ("sh",))]
    lines += [command for _, command in _commands("README.md")]
    return [_form(line) for line in lines if line.startswith("python -m ")]


def _is_run(page, in_block, command):
    if any(command.startswith(beginning) for beginning in RUN_BY) or command in BY_HAND:
        return True
    if not command.startswith("python -m "):
        return False
    if in_block and page in ("docs/guide.md", "docs/serving.md"):
        return True
    module, names = _form(command)
    if "--flagfile" in names:
        return page in ("README.md", "docs/guide.md", "docs/architecture.md")  # PUBLISHED, README
    # The same with other names of files.
    return any(module == other and names <= known for other, known in _typed())


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_run_or_said_not_to_be(page):
    text = _text(page)
    for in_block, command in _commands(page):
        if page == MEASUREMENTS:
            assert ONLY_CHECKED in text
            assert command.startswith("python -m ") or command in BY_HAND, command
            continue
        said = [
            remark
            for (where, beginning), remark in NOT_RUN.items()
            if where == page and command.startswith(beginning)
        ]
        assert _is_run(page, in_block, command) or said, f"{page}: nothing runs {command!r}"
        assert all(remark in text for remark in said), f"{page}: {command!r}: {said}"


def test_what_is_listed_is_there():
    """Tests that run commands exist, and every entry is of use."""
    named = {IN_ORDER, README, PUBLISHED, *(test for tests in RUN_BY.values() for test in tests)}
    for name in named:
        file, _, test = name.partition("::")
        assert f"\ndef {test}(" in (ROOT / file).read_text(encoding="utf-8"), name
    commands = {(page, command) for page in PAGES for _, command in _commands(page)}
    for beginning in [*RUN_BY, *BY_HAND]:
        assert any(command.startswith(beginning) for _, command in commands), beginning
    for where, beginning in NOT_RUN:
        assert any(page == where and text.startswith(beginning) for page, text in commands)


def test_a_command_that_nothing_runs_is_seen():
    assert not _is_run("docs/guide.md", False, "kubectl get pods")
    assert not _is_run("docs/security.md", False, "python -m tfmacer.verify --unheard_of LOG.tsv")
    assert _is_run("docs/security.md", False, "python -m tfmacer.verify --redraw LOG.tsv")
