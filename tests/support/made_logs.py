"""Logs of a classifier that does not exist: votes drawn from known class probabilities."""

import dataclasses
from pathlib import Path

import numpy as np
from scipy import special

from tfmacer.guarantee.certificate import certify, decided
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.rule import Rule
from tfmacer.records.attack_rows import Attacked, AttackSettings
from tfmacer.records.falsifications import (
    Falsification,
    attacked_log,
    falsification_path,
    read_falsification,
)
from tfmacer.records.locked_table import LockedTable
from tfmacer.records.logs import Log, LogSettings, Record, read_log
from tfmacer.records.runs import SmoothedClassifier, Smoothing
from tfmacer.records.sealing import pixels_digest, seal
from tfmacer.records.settings import Selection

CLASSES = 4


def smoothing(**others) -> Smoothing:
    made = {"sigma": 0.5, "num_classes": CLASSES, "input_shape": (2, 2, 1),
            "model_digest": "a" * 64}  # fmt: skip
    return Smoothing(**(made | others))


def settings(rule: Rule | None = None, *, total: int = 40, **others) -> LogSettings:
    """Settings of a log; others are fields of them, of their classifier or of their images."""
    known, selected = (
        {field.name: others.pop(field.name) for field in dataclasses.fields(kind)
         if field.name in others}
        for kind in (SmoothedClassifier, Selection)
    )  # fmt: skip
    images = Selection(**({"dataset": "digits", "split": "test", "total": total} | selected))
    environment = {"device": "CPU", "intra_op_threads": 1, "versions": {"numpy": "2"}}
    defaults = {"seed": 3, "environment": environment}
    return LogSettings.of(smoothing(**known), rule or Rule(n=2000), images, **(defaults | others))


def changed(settings: LogSettings, **fields) -> LogSettings:
    """The same with other values of what stands in the file, by the names that it has there."""
    return LogSettings.from_json(seal(settings.fields() | fields), origin="changed")


def pixels(idx: int) -> np.ndarray:
    """The image at a position."""
    return np.full((2, 2, 1), (idx % 256) / 255, np.float32)


def probabilities(idx: int, shift: float = 0.0) -> tuple[int, np.ndarray]:
    """Label of an image and the class probabilities of its noisy copies."""
    rng = np.random.default_rng(idx)
    label = int(rng.integers(CLASSES))
    own = special.ndtr(rng.normal(1.3 + shift, 1.0))
    return label, np.insert(rng.dirichlet(np.ones(CLASSES - 1)) * (1 - own), label, own)


def record(settings: LogSettings, idx: int, *, shift: float = 0.0, label: int | None = None):
    """One image certified with the settings' rule, stopping where it says."""
    true, p = probabilities(idx, shift)
    rule = settings.rule
    rng = np.random.default_rng([settings.seed, idx])
    select = rng.choice(CLASSES, rule.n0, p=p)
    draws = rng.choice(CLASSES, rule.n, p=p)
    for n in rule.looks:
        counts = _counts(select, draws[:n], rule)
        if decided(counts, rule, settings.classifier.distribution):
            break
    return Record.of(
        certify(counts, rule, settings.classifier.distribution),
        idx=idx,
        label=true if label is None else label,
        clean=true if idx % 10 else (true + 1) % CLASSES,
        seconds=0.25 + idx / 1000,
        pixels_sha256=pixels_digest(pixels(idx)),
        name=f"class {true}/{idx}.png" if idx % 2 else None,
    )


def _counts(select: np.ndarray, draws: np.ndarray, rule: Rule) -> Counts:
    def votes(sample):
        return tuple(np.bincount(sample, minlength=CLASSES).tolist())

    def scores(sample):
        return 0.8 * np.eye(CLASSES)[sample] + 0.2 / CLASSES

    soft = {
        "select_sums": tuple(scores(select).sum(0).tolist()),
        "sums": tuple(scores(draws).sum(0).tolist()),
        "square_sums": tuple((scores(draws) ** 2).sum(0).tolist()),
    }
    return Counts(
        select_counts=votes(select),
        counts=votes(draws),
        n0=rule.n0,
        n=len(draws),
        **(soft if rule.soft else {}),
    )


def write(
    path: Path, settings: LogSettings, *, shift: float = 0.0, images: int | None = None
) -> Log:
    """Writes the log's first `images` missing rows, all of them by default."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with LockedTable(path, settings) as log:
        for idx in list(log.missing)[:images]:
            log.append(record(settings, idx, shift=shift))
    return read_log(path)


def write_attacks(log: Log, path: Path | None = None, *, false: int = 0, **others) -> Falsification:
    """What an attack might have found on a log's certificates; the first `false` within."""
    certified = [each for each in log.records if each.predict >= 0]
    plan = {
        "examined": len(log.records), "images": tuple(each.idx for each in certified),
        "attack": "pgd", "steps": 20, "num_noise": 32, "n": 2000, "alpha": 0.001, "clip": False,
        "seed": 0,
    }  # fmt: skip
    settings = AttackSettings(**(attacked_log(log) | plan | others))
    path = path or falsification_path(log.path)
    with LockedTable(path, settings) as writer:
        for place, each in enumerate(certified):
            rng = np.random.default_rng(each.idx)
            factor = 0.8 if place < false else 1 + rng.gamma(2.0, 0.15)
            lost = place >= false and place % 10 == 9
            writer.append(
                Attacked(
                    idx=each.idx, label=each.label, predict=each.predict, radius=each.radius,
                    flipped_within=factor < 1,
                    attack_radius=None if lost else round(each.radius * factor + 1e-9, 9),
                    attack_class=-1 if lost else (each.predict + 1) % CLASSES,
                    searched=round(2 * each.radius + 0.1, 9), tests=12, seconds=0.5,
                )
            )  # fmt: skip
    return read_falsification(path)
