"""Links, targets, commands and flags named in the pages exist."""

import importlib
import re

import pytest
import source_tree
from source_tree import ROOT

PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
)
FLAG_FILES = sorted(path.name for path in ROOT.glob("*.flags"))
COMMAND = re.compile(r"python3? -m ((?:tfmacer|export|serving)[\w.]*)([^`|\n]*)")


def _text(page):
    """The page, with shell lines that end in a backslash joined."""
    return (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")


def _commands():
    """Each `python -m MODULE ...` of the pages and the flag files."""
    for page in [*PAGES, *FLAG_FILES]:
        for module, rest in COMMAND.findall(_text(page)):
            yield page, module.rstrip("."), rest


def _flag_values(module):
    """The flags of a command."""
    loaded = importlib.import_module(module)
    return getattr(loaded, "FLAGS", None) or importlib.import_module(f"{module}.__main__").FLAGS


def test_readme_is_one_screen():
    assert len(_text("README.md").splitlines()) <= 60


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
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


def test_commands_and_their_flags_exist():
    commands = list(_commands())
    assert {"tfmacer.train", "tfmacer.certify"} <= {module for _, module, _ in commands}
    for page, module, rest in commands:
        known = set(_flag_values(module)) | {"flagfile", "help"}
        for flag in re.findall(r"--(\w+)", rest):
            positive = flag.removeprefix("no")
            assert flag in known or positive in known, f"{page}: {module} has no --{flag}"


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
    """A module with flags of its own is a command."""
    commands = {
        module.name.removesuffix(".__main__")
        for module in source_tree.modules().values()
        if module.path.parts[0] in ("tfmacer", "export", "serving")
        and "\nFLAGS = " in (ROOT / module.path).read_text(encoding="utf-8")
    }
    text = " ".join(_text(page) for page in [*PAGES, "Makefile"])
    assert {name for name in commands if f"-m {name}" not in text} == set()
