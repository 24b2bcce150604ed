"""The page's JavaScript shows numbers and text as Python does; by Node, where there is one."""

import json
import math
import shutil
import subprocess
from pathlib import Path

import pytest
from shown import ROUNDED, VISIBLE

import serving.console

SCRIPT = Path(serving.console.__file__).parent / "shown.js"


def _answers(expression, vectors):
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs Node; tests/serving/console/browser_test.py asks a browser the same")
    program = f"""
        import {{ down, up, visible }} from {json.dumps(SCRIPT.as_uri())};
        const special = {{ inf: Infinity, "-inf": -Infinity, nan: NaN, "-0.0": -0 }};
        const number = (text) => special[text] ?? Number(text);
        const vectors = {json.dumps(vectors)};
        console.log(JSON.stringify(vectors.map({expression})));
    """
    done = subprocess.run(
        [node, "--input-type=module", "--no-warnings", "-"],
        input=program,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)


def test_numbers():
    vectors = [[repr(value), digits, times] for value, digits, times, _, _ in ROUNDED]
    found = _answers("([x, d, t]) => [down(number(x), d, t), up(number(x), d, t)]", vectors)
    assert found == [[low, high] for *_, low, high in ROUNDED]


def test_numbers_around_all_of_four_digits():
    """Where floor(r * 1e4) / 1e4 went wrong: floats next to decimals."""
    values = [
        near
        for units in range(0, 20_000, 7)
        for value in [units / 10_000]
        for near in (math.nextafter(value, -1), value, math.nextafter(value, 9))
    ]
    from tfmacer.common.decimals import down, up

    found = _answers("(x) => [down(number(x), 4), up(number(x), 4)]", list(map(repr, values)))
    assert found == [[down(value, 4), up(value, 4)] for value in values]


def test_text():
    assert _answers("(x) => visible(x)", [text for text, _ in VISIBLE]) == [
        shown for _, shown in VISIBLE
    ]
