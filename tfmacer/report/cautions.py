"""What a reader of a report must know before comparing its runs."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from tfmacer.common.errors import UserError
from tfmacer.common.text import one_line
from tfmacer.records.falsifications import Falsification
from tfmacer.records.verification import verify_log
from tfmacer.report.comparison import same_split
from tfmacer.report.copies import other_pixels, repetitions
from tfmacer.report.summary import NORMS, Run

# Settings whose difference makes results incomparable, as a reader knows them.
_COMPARED = ("dataset", "split", "n", "n0", "alpha", "sigma", "noise_family", "noise_params",
             "bound", "bilateral", "stop", "precision")  # fmt: skip
_FEW_IMAGES = 10_000


def warnings(runs: Sequence[Run]) -> list[str]:
    """What a reader of the report must know before comparing."""
    both_norms = any(run.converted for run in runs)
    runs = [run for run in runs if not run.converted]
    texts: dict[str, list[str]] = {}
    for each in repetitions(runs):
        text = (
            f"repeats {each.of.name} on {each.images:,} images (the same rows, or the same draws): "
            "no further seed, and not compared with it"
        )
        texts.setdefault(text, []).append(each.run.name)
    for first, second in itertools.combinations(runs, 2):
        if other_pixels(first, second) and same_split(first, second):
            text = f"other pixels than {first.name} under the same idx: not compared with it"
            texts.setdefault(text, []).append(second.name)
    for run in runs:
        for text in _run_warnings(run):
            texts.setdefault(text, []).append(run.name)
    found = [
        f"{', '.join(names) if len(names) < max(len(runs), 2) else 'all runs'}: {text}"
        for text, names in texts.items()
    ]
    by_norm = {norm: [r.name for r in runs if r.norm == norm] for norm in ("l2", "linf")}
    if all(by_norm.values()):
        found.append(
            f"radii are in two norms and shown apart: {NORMS['linf']} in "
            f"{', '.join(by_norm['linf'])}, {NORMS['l2']} in {', '.join(by_norm['l2'])}; "
            + ("" if both_norms else "with --linf ")
            + "the latter are shown over sqrt(d) as well, which makes them comparable"
        )
    differing = [text for field in _COMPARED if (text := _values(runs, field))]
    if differing:
        found.append(f"compare with care: the runs differ in {'; '.join(differing)}")
    return [one_line(text) for text in found]


def _values(runs: Sequence[Run], field: str) -> str:
    """The values of a setting, each with the first run that has it; empty where all agree."""
    first: dict[str, str] = {}
    for run in runs:
        if run.settings is not None:
            first.setdefault(str(run.settings.fields()[field]), run.name)
    listed = ", ".join(f"{value} ({name})" for value, name in first.items())
    return f"{field}: {listed}" if len(first) > 1 else ""


def _run_warnings(run: Run) -> Iterator[str]:
    settings = run.settings
    if settings is None:
        yield (
            "log of another project: its settings are unknown, its radii are taken to be l2 and "
            "may have been rounded up to three digits"
        )
        if len(run.idx) > 1 and len(run.idx) < _FEW_IMAGES and np.all(np.diff(run.idx) == 1):
            yield (
                f"{len(run.idx)} contiguous images (idx {run.idx[0]} to {run.idx[-1]}): a "
                "contiguous part of a test set can be easier or harder than the whole"
            )
    else:
        yield from settings.warnings
        if missing := run.log.unfinished:
            yield f"unfinished: {missing}"
    try:
        run.log.check()
        # A table is for tfmacer.verify to make.
        computed = settings is not None and not settings.classifier.distribution.tabulated
        if wrong := verify_log(run.log) if computed else None:
            yield f"does not follow from its votes: {wrong}"
    except UserError as error:
        yield f"altered: {error}"
    for attack in run.attacks:
        yield from _attack_warnings(attack)
    unlabelled = len(run.log.records) - len(run.idx)
    if unlabelled:
        yield f"{unlabelled} images without a true label are left out of accuracy and ACR"


def _attack_warnings(attack: Falsification) -> Iterator[str]:
    if len(attack.within) > attack.allowed:
        yield (
            f"false certificates: {len(attack.within)} of {len(attack.rows)} attacked were flipped "
            f"within their radius, alpha allows {attack.allowed}"
        )
    if missing := attack.unfinished:
        yield f"unfinished: {attack.path.name}: {missing}"
