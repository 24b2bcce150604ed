"""Links, commands and flags in the documentation exist, and its figures are those of the code."""

import ast
import copy
import importlib
import re
import shlex

import pytest
import source_tree
from absl import flags
from source_tree import ROOT

from tfmacer.guarantee.bounds import BOUNDS
from tfmacer.guarantee.certificate import largest_radius, round_down
from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.stopping import looks
from tfmacer.noise.families import DISTRIBUTIONS
from tfmacer.noise.gaussian.distribution import Gaussian
from tfmacer.records.rows import SOFT_COLUMNS

PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
)
FLAG_FILES = sorted(path.name for path in ROOT.glob("*.flags"))
COMMAND = re.compile(r"python3? -m ((?:tfmacer|export|serving|benchmarks)[\w.]*)([^`|\n]*)")


def _text(page):
    """The page, with shell lines that end in a backslash joined."""
    return re.sub(r"\\\n\s*", " ", (ROOT / page).read_text(encoding="utf-8"))


def _commands():
    """Each `python -m MODULE ...` of the pages and the flag files."""
    for page in [*PAGES, *FLAG_FILES]:
        for module, rest in COMMAND.findall(_text(page)):
            yield page, module.rstrip("."), rest


def _command_modules():
    """Every command that has flags: `-m` names it."""
    return {
        module.name.removesuffix(".__main__"): (ROOT / module.path).read_text(encoding="utf-8")
        for module in source_tree.modules().values()
        if module.path.parts[0] in ("tfmacer", "export", "serving")
        and "\nmain = commandline.command(" in (ROOT / module.path).read_text(encoding="utf-8")
    }


def _flag_values(module):
    """The flags of a command, as if nothing had been parsed."""
    loaded = importlib.import_module(module)
    if not hasattr(loaded, "FLAGS"):
        loaded = importlib.import_module(f"{module}.__main__")
    values = copy.deepcopy(loaded.FLAGS)
    values.unparse_flags()
    return values


def _words(rest):
    """Arguments as a shell splits them; a remark follows after two spaces."""
    return [word for word in shlex.split(re.split(r"\s{2,}", rest.strip())[0]) if word != "&"]


@pytest.mark.parametrize("page", PAGES)
def test_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", _text(page)):
        file, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {_anchor(heading) for heading in headings}, f"{page}: {target}"


def _anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):", _text("Makefile"), re.MULTILINE))
    for line in re.findall(r"(?:^|`)make ([a-z][a-z -]*)", _text(page), re.MULTILINE):
        assert set(line.split()) <= targets, f"{page}: make {line}"


def test_commands_are_accepted(monkeypatch):
    """Flags exist, have values of their type and range, and none that is required is missing."""
    monkeypatch.chdir(ROOT)
    commands = list(_commands())
    assert {"tfmacer.train", "tfmacer.certify"} <= {module for _, module, _ in commands}
    sources = _command_modules()
    for page, module, rest in commands:
        values = _flag_values(module)
        if not rest.strip():
            continue  # only named
        try:
            arguments = values([module, *_words(rest)])[1:]
        except flags.Error as error:
            pytest.fail(f"{page}: python -m {module}{rest}: {error}")
        takes_arguments = ", arguments=" in sources.get(module, "")
        assert takes_arguments or not arguments, f"{page}: {module} takes no {arguments}"


@pytest.mark.parametrize("page", PAGES)
def test_flags_named_in_prose_exist(page):
    modules = {*_command_modules(), *(module for where, module, _ in _commands() if where == page)}
    known = {name for module in modules for name in _flag_values(module)} | {"help", "flagfile"}
    for span in re.findall(r"`(--[^`]*)`", _text(page)):
        for flag in re.findall(r"--(\w+)", span):
            assert flag in known or flag.removeprefix("no") in known, f"{page}: `{span}`"


@pytest.mark.parametrize("module", ["serving.model_server", "serving.sidecar", "serving.client"])
def test_the_serving_page_names_every_flag(module):
    text = _text("docs/serving.md")
    missing = {
        flag for flag in _flag_values(module) if not re.search(rf"--(no)?{flag}\b", text)
    } - {"help"}
    assert missing == set()


@pytest.mark.parametrize("file", FLAG_FILES)
def test_flag_files_are_flags_of_train(file):
    """Every line sets a flag that exists, to a value that is accepted."""
    from tfmacer import train

    values = train.FLAGS
    values.unparse_flags()
    values(["train", f"--flagfile={ROOT / file}"])
    assert values.run_dir


def test_flag_files_named_exist():
    named = {file for page in PAGES for file in re.findall(r"\b(\w+\.flags)\b", _text(page))}
    assert named <= set(FLAG_FILES)


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_compile(page):
    for block in re.findall(r"```python\n(.*?)```", _text(page), re.DOTALL):
        compile(block, page, "exec")


def test_every_command_is_documented():
    text = " ".join(_text(page) for page in [*PAGES, "Makefile"])
    assert {name for name in _command_modules() if f"-m {name}" not in text} == set()


def _registered(path, name):
    """Keys of a module's dictionary, from its source: TensorFlow need not be loaded for them."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(getattr(target, "id", None) == name for target in targets):
            return [ast.literal_eval(key) for key in node.value.keys]
    raise AssertionError(f"{path} has no {name}")


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("docs/method.md", list(BOUNDS)),
        ("docs/method.md", list(DISTRIBUTIONS)),
        ("docs/guide.md", list(DISTRIBUTIONS)),
        ("docs/method.md", _registered("tfmacer/training/objectives.py", "OBJECTIVES")),
        ("docs/guide.md", _registered("tfmacer/training/objectives.py", "OBJECTIVES")),
        ("docs/guide.md", _registered("tfmacer/training/networks.py", "NETWORKS")),
        ("docs/guide.md", list(SOFT_COLUMNS)),
    ],
)
def test_pages_name_all_there_are(page, names):
    text = _text(page)
    assert names
    assert [name for name in names if f"`{name}`" not in text] == []


def test_the_largest_radii_are_as_written():
    rows = re.findall(r"^\| `(\w+)`((?: \| \d\.\d{3}){4}) \|$", _text("docs/method.md"), re.M)
    assert {name for name, _ in rows} == set(BOUNDS)
    for bound, cells in rows:
        rules = [Rule(n=10**power, bound=bound) for power in (3, 4, 5, 6)]
        radii = [round_down(largest_radius(rule, Gaussian(1.0, 784)), 3) for rule in rules]
        assert [float(cell) for cell in cells.split(" | ")[1:]] == radii


def test_the_looks_are_as_written():
    schedule = looks(100_000, 256)
    ends = [", ".join(map(str, part)) for part in (schedule[:6], schedule[-2:])]
    text = f"there are {len(schedule)}: {ends[0]}, ..., {ends[1]}."
    assert text in _text("docs/method.md")
