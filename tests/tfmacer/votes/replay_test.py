import dataclasses

import made_audits
import made_logs
import numpy as np
import pytest

from tfmacer.common.errors import UserError
from tfmacer.guarantee.certificate import certify
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.rule import Rule
from tfmacer.records import chain
from tfmacer.records.audit import verify_entry
from tfmacer.records.audit_entries import AuditEntry
from tfmacer.records.locked_table import LockedTable
from tfmacer.records.logs import Log, Record, read_log
from tfmacer.records.sealing import pixels_digest
from tfmacer.records.verification import verify_log
from tfmacer.votes import replay
from tfmacer.votes.replay import replay_from, replay_served
from tfmacer.votes.source import ESTIMATE, SELECT, Votes, row_seed


class Drawing:
    """A source whose draw j of a stream is the j-th of the stream's own generator."""

    def __init__(self, parallelism=3, **smoothing):
        self.smoothing = made_logs.smoothing(**smoothing)
        self.parallelism = parallelism
        self.calls = 0

    def sample(self, images, seeds, offsets, num_samples, *, beta=1.0):
        self.calls += 1
        drawn = [
            self._row(image, seed, int(first), int(n), beta)
            for image, seed, first, n in zip(images, seeds, offsets, num_samples, strict=True)
        ]
        return Votes(*(np.stack(arrays) for arrays in zip(*drawn, strict=True)))

    def logits(self, images):
        return np.stack([np.eye(4, dtype=np.float32)[int(image.sum()) % 4] for image in images])

    def _row(self, image, seed, first, n, beta):
        _, p = made_logs.probabilities(int(image.sum()))
        rng = np.random.default_rng(seed.astype(np.int64) % 2**32)
        draws = rng.choice(4, first + n, p=p)[first:]
        scores = 0.8 * np.eye(4)[draws] + 0.05 * beta
        return np.bincount(draws, minlength=4), scores.sum(0), (scores**2).sum(0)


def image_of(idx):
    return np.full((2, 2, 1), idx / 4, np.float32), made_logs.probabilities(idx)[0]


def drawn_log(path, rule, **others):
    """A log certified from `Drawing`, in one piece for each stage."""
    settings = made_logs.settings(rule, total=8, **others)
    source = Drawing()
    with LockedTable(path, settings) as log:
        for idx in list(log.missing):
            image, label = image_of(idx)
            stages = [
                source.sample(
                    image[np.newaxis],
                    row_seed(settings.seed, stage, idx)[np.newaxis],
                    np.array([0]),
                    np.array([n]),
                    beta=rule.beta,
                ).row(0)
                for stage, n in ((SELECT, rule.n0), (ESTIMATE, rule.n))
            ]
            counts = Counts(
                select_counts=tuple(stages[0].counts.tolist()),
                counts=tuple(stages[1].counts.tolist()),
                n0=rule.n0,
                n=rule.n,
                select_sums=tuple(stages[0].sums.tolist()),
                sums=tuple(stages[1].sums.tolist()),
                square_sums=tuple(stages[1].square_sums.tolist()),
            )
            certificate = certify(counts, rule, settings.classifier.distribution)
            made = Record.of(
                certificate,
                idx=idx,
                label=label,
                clean=idx % 4,
                seconds=0.1,
                pixels_sha256=pixels_digest(image),
            )
            log.append(made)
    return read_log(path)


@pytest.mark.parametrize("parallelism", [1, 3, 50])
@pytest.mark.parametrize("bound", ["clopper_pearson", "bernstein"])
def test_votes_are_drawn_again_from_the_rows_seeds(tmp_path, bound, parallelism):
    log = drawn_log(tmp_path / "log.tsv", Rule(n=2000, bound=bound))
    source = Drawing(parallelism)
    assert verify_log(log, replay_from(source, image_of)) is None
    assert source.calls == 8


def test_streams_longer_than_one_request_are_cut(tmp_path, monkeypatch):
    """Those that select the class, too; and no more are asked for at once than keep it busy."""
    monkeypatch.setattr(replay, "LARGEST_REQUEST", 700)
    log = drawn_log(tmp_path / "log.tsv", Rule(n0=600, n=2000))
    source = Drawing(1)
    sizes = []

    def sample(images, seeds, offsets, num_samples, *, beta=1.0):
        sizes.append(num_samples.tolist())
        return Drawing.sample(source, images, seeds, offsets, num_samples, beta=beta)

    source.sample = sample
    assert verify_log(log, replay_from(source, image_of)) is None
    assert sizes[:3] == [[512, 88], [512, 512], [512, 464]]


def test_votes_of_another_seed_image_or_label_are_told_apart(tmp_path):
    log = drawn_log(tmp_path / "log.tsv", Rule(n=2000))
    other = drawn_log(tmp_path / "other.tsv", Rule(n=2000), seed=77)
    source = Drawing()
    mixed = dataclasses.replace(other, settings=log.settings)
    fixed = [log.settings.sealed(record) for record in mixed.records]
    mixed = dataclasses.replace(mixed, records=tuple(fixed))
    assert verify_log(mixed) is None
    assert "counts is" in verify_log(mixed, replay_from(source, image_of))

    def neighbour(idx):
        return image_of(idx + 1)[0], image_of(idx)[1]

    def mislabelled(idx):
        return image_of(idx)[0], -1

    assert "pixels_sha256 is" in verify_log(log, replay_from(source, neighbour))
    unnamed = dataclasses.replace(log.settings, format_version=1)
    records = [dataclasses.replace(record, pixels_sha256=None) for record in log.records]
    first = Log(log.path, tuple(unnamed.sealed(record) for record in records), unnamed)
    assert verify_log(first, replay_from(source, image_of)) is None
    assert "clean is" in verify_log(first, replay_from(source, neighbour))
    assert "label is" in verify_log(log, replay_from(source, mislabelled))


@pytest.mark.parametrize(
    "other", [{"sigma": 0.25}, {"model_digest": "b" * 64}, {"generator": "philox"}]
)
def test_another_model_is_refused(tmp_path, other):
    log = drawn_log(tmp_path / "log.tsv", Rule(n=2000))
    with pytest.raises(UserError, match=f"the source is another model: its {next(iter(other))}"):
        verify_log(log, replay_from(Drawing(**other), image_of))


def test_a_tie_without_noise_is_no_difference(tmp_path):
    """Whose logits are read beside other images may break a tie of the clean class differently."""
    log = drawn_log(tmp_path / "log.tsv", Rule(n=2000))
    source = Drawing()
    logits = source.logits
    source.logits = lambda images: logits(images) + 1e-5 * np.roll(logits(images), 1) + 7.0
    assert verify_log(log, replay_from(source, image_of)) is None
    tied = 1.0 + 1e-6 * np.arange(4, dtype=np.float32)
    source.logits = lambda images: tied[np.newaxis]
    assert verify_log(log, replay_from(source, image_of)) is None
    source.logits = lambda images: 100 * tied[np.newaxis] + np.arange(4)
    assert "clean is" in verify_log(log, replay_from(source, image_of))


class TestServed:
    """Certificates of an audit log, made of the votes that `Drawing` draws of their noise."""

    RULE = dataclasses.replace(made_audits.RULE, n=500)

    def entry(self, change=lambda fields: fields, *, moved=0):
        """The first entry, its votes moved by some from the class to another."""
        seeds = np.array([[0, 1], [0, 2]], np.int32)
        image = np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1) / np.float32(255)
        starts, draws = np.zeros(2, np.int32), np.array([100, 500], np.int32)
        select, counts = Drawing().sample(np.repeat(image, 2, axis=0), seeds, starts, draws).counts
        top = int(select.argmax())
        counts = counts + moved * (np.eye(4, dtype=int)[(top + 1) % 4] - np.eye(4, dtype=int)[top])
        smoothing = made_logs.smoothing(block_size=64)
        fields = made_audits.fields(
            smoothing=smoothing,
            rule=self.RULE,
            counts=tuple(counts.tolist()),
            select_counts=tuple(select.tolist()),
        )
        line, _ = chain.to_line(change(fields), chain.BEGINNING)
        return AuditEntry.from_line(line)

    @pytest.mark.parametrize("parallelism", [1, 3])
    def test_votes_of_their_noise_are_found_again(self, parallelism):
        again = replay_served(Drawing(parallelism, block_size=64))
        assert verify_entry(self.entry(), again) is None
        forged = self.entry(moved=1)
        assert verify_entry(forged) is None
        assert "drawn again the votes are" in verify_entry(forged, again)

    def test_other_noise_gives_other_votes(self):
        other = self.entry(lambda fields: fields | {"estimate_seed": [7, 7]})
        assert verify_entry(other) is None
        again = replay_served(Drawing(block_size=64))
        assert "drawn again the votes are" in verify_entry(other, again)

    def test_what_cannot_be_drawn_again_is_said(self):
        def without_pixels(fields):
            return {name: value for name, value in fields.items() if name != "pixels_float32"}

        with pytest.raises(UserError, match="the audit log keeps no pixels"):
            replay_served(Drawing(block_size=64))(self.entry(without_pixels))
        with pytest.raises(UserError, match="its sigma is 0.25, not 0.5"):
            replay_served(Drawing(block_size=64, sigma=0.25))(self.entry())


@pytest.mark.parametrize(("n0", "n"), [(2**31, 1000), (100, 2**31), (100, 10**15)])
def test_more_draws_than_a_stream_has_are_not_asked_for(tmp_path, n0, n):
    rule = Rule(n0=n0, n=n, bound="clopper_pearson")
    settings = made_logs.settings(rule, total=1)
    counts = Counts(select_counts=(n0, 0, 0, 0), counts=(n, 0, 0, 0), n0=n0, n=n)
    image, label = image_of(0)
    with LockedTable(tmp_path / "log.tsv", settings) as log:
        log.append(
            Record.of(
                certify(counts, rule, settings.classifier.distribution),
                idx=0,
                label=label,
                clean=0,
                seconds=0.0,
                pixels_sha256=pixels_digest(image),
            )
        )
    with pytest.raises(UserError, match=r"^n0? is \d+, a stream has 2000000000 draws at most"):
        verify_log(read_log(tmp_path / "log.tsv"), replay_from(Drawing(), image_of))
