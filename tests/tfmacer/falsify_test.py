"""The command, on a small untrained network: what it writes, resumes, refuses and says."""

import dataclasses

import made_logs
import pytest

from tfmacer import certify, falsify
from tfmacer.records.falsifications import read_falsification
from tfmacer.records.locked_table import LockedTable
from tfmacer.records.logs import read_log, settings_path
from tfmacer.records.runs import RunDirectory
from tfmacer.votes import devices

FAST = ["--steps=4", "--num_noise=8", "--n=1000"]


@pytest.fixture(autouse=True)
def threads_as_they_are(monkeypatch):
    """TensorFlow is already running in the tests' process and keeps its thread counts."""
    monkeypatch.setattr(devices, "use_threads", lambda *_: None)


def run(*flags: object) -> int:
    return falsify.main([str(flag) for flag in flags])


@pytest.fixture(scope="module")
def log(tiny_run, tmp_path_factory):
    """Nine images certified at an alpha so large that the tests stay short."""
    out = tmp_path_factory.mktemp("logs") / "log.tsv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "use_threads", lambda *_: None)
        flags = [f"--run_dir={tiny_run}", f"--out={out}", "--num_examples=9", "--skip=111"]
        assert certify.main([*flags, "--n=1000"]) == 0
    return read_log(out)


def rewritten(log, path, change, **settings):
    """The log with its settings and rows changed and sealed anew."""
    with LockedTable(path, made_logs.changed(log.settings, **settings)) as writer:
        for record in log.records:
            writer.append(change(record))
    return path


def cells(path):
    """Every column but the time."""
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    place = lines[0].index("time")
    return [line[:place] + line[place + 1 :] for line in lines]


def test_certificates_are_attacked_into_a_table_beside_the_log(tiny_run, log, capsys):
    assert run(f"--run_dir={tiny_run}", f"--log={log.path}", *FAST) == 0
    found = read_falsification(log.path.with_name("log.falsified.tsv"))
    certified = [record for record in log.records if record.predict >= 0]
    assert len(certified) >= 5
    for row, record in zip(found.rows, certified, strict=True):
        assert (row.idx, row.label, row.predict, row.radius) == (
            record.idx, record.label, record.predict, record.radius,
        )  # fmt: skip
        # Some are further away than the search goes.
        assert row.attack_radius is None or row.attack_radius > row.radius
        assert row.attack_class != row.predict
    assert sum(row.attack_radius is not None for row in found.rows) >= 4
    printed = capsys.readouterr().out
    assert f"{len(certified)} certificates attacked: pgd, l2, pixels not clipped" in printed
    assert "within the certified radius: 0 flipped; alpha allows 1" in printed
    assert run(f"--run_dir={tiny_run}", f"--log={log.path}", *FAST) == 0
    assert "finished already" in capsys.readouterr().out


def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tiny_run, log, tmp_path, capsys):
    outs = [tmp_path / "whole.tsv", tmp_path / "killed.tsv"]
    command = [f"--run_dir={tiny_run}", f"--log={log.path}", *FAST, "--num_examples=3", "--skip=2"]
    for out in outs:
        assert run(*command, f"--out={out}") == 0
    text = outs[1].read_text()
    outs[1].write_text(text[: text.rindex("\n", 0, -40) - 30])
    assert run(*command, f"--out={outs[1]}") == 0
    assert cells(outs[0]) == cells(outs[1])
    assert len(cells(outs[1])) == 4
    # Chosen by position, and all of those count against alpha.
    settings = read_falsification(outs[1]).settings
    considered = log.records[:5:2]
    assert settings.images == tuple(r.idx for r in considered if r.predict >= 0)
    assert settings.examined == 3
    assert run(*command, f"--out={outs[1]}", "--seed=1") == 1
    assert "made with other settings: seed is 0, not 1" in capsys.readouterr().err


def test_findings_of_other_radii_are_not_taken_up(tiny_run, log, tmp_path, capsys):
    """Sealed again under the same settings, as if a nearer flip had been beyond the radius."""
    command = [f"--run_dir={tiny_run}", f"--log={log.path}", *FAST, "--num_examples=1"]
    assert run(*command, f"--out={tmp_path / 'mine.tsv'}") == 0
    found = read_falsification(tmp_path / "mine.tsv")
    with LockedTable(tmp_path / "theirs.tsv", found.settings) as writer:
        writer.append(dataclasses.replace(found.rows[0], radius=0.001))
    capsys.readouterr()
    assert run(*command, f"--out={tmp_path / 'theirs.tsv'}") == 1
    assert "theirs.tsv: idx 0: label, predict and radius are" in capsys.readouterr().err


def test_false_certificates_are_found_out(tiny_run, log, tmp_path, capsys):
    """Radii set too large by hand, every digest made anew: verify's sums would tell, and so do
    attacks, which know nothing of them.
    """
    planted = rewritten(
        log,
        tmp_path / "planted.tsv",
        lambda record: dataclasses.replace(record, radius=round(record.radius + 1.0, 9)),
    )
    assert run(f"--run_dir={tiny_run}", f"--log={planted}", *FAST) == 1
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error")]
    assert "certificates (" in line
    assert "are false, alpha = 0.001 allows 1: idx " in line
    found = read_falsification(tmp_path / "planted.falsified.tsv")
    assert len(found.within) > found.allowed
    # Asked again, it still fails.
    assert run(f"--run_dir={tiny_run}", f"--log={planted}", *FAST) == 1


def test_one_false_certificate_is_named_though_alpha_allows_it(tiny_run, log, tmp_path, capsys):
    attacked = [record for record in log.records if record.predict >= 0][:3]
    near = min(attacked, key=lambda record: record.radius).idx
    planted = rewritten(
        log,
        tmp_path / "planted.tsv",
        lambda r: dataclasses.replace(r, radius=round(r.radius + 1.0, 9)) if r.idx == near else r,
    )
    assert run(f"--run_dir={tiny_run}", f"--log={planted}", *FAST, "--num_examples=3") == 0
    printed = capsys.readouterr().out
    assert "1 flipped; alpha allows 1" in printed
    assert f"false, as alpha allows: idx {near} (certified" in printed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.5}, "its sigma is 0.5, not 0.25"),
        ({"generator": "philox"}, "its generator is philox, not philox-boxmuller"),
        ({"model_digest": "f" * 64}, "model_digest is ffff"),
        ({"model_digest": "unknown"}, "does not say of which model it is"),
        ({"dataset": None}, "records no dataset: give --dataset"),
        ({"dataset": "os:system", "split": "touch theirs"}, "'os:system'; only mnist5k"),
        ({"dataset": "folder:/"}, "no paths: give --dataset"),
        ({"split": "touch theirs"}, "which is no name of one: give --split"),
        ({"num_examples": 10}, "unfinished: 1 of 10 images have no row"),
    ],
)
def test_a_log_that_is_not_the_runs_is_refused(
    tiny_run, log, tmp_path, monkeypatch, capsys, settings, message
):
    monkeypatch.chdir(tmp_path)
    other = rewritten(log, tmp_path / "other.tsv", lambda record: record, **settings)
    assert run(f"--run_dir={tiny_run}", f"--log={other}", *FAST) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "other.falsified.tsv").exists()
    assert not (tmp_path / "theirs").exists()


def test_a_log_downloads_nothing(tiny_run, log, tmp_path, downloads, capsys):
    other = rewritten(log, tmp_path / "other.tsv", lambda record: record, dataset="cifar10")
    command = [f"--run_dir={tiny_run}", f"--log={other}", *FAST, f"--data_dir={tmp_path}"]
    assert run(*command) == 1
    assert "is not downloaded on its word: give --data_dir, or" in capsys.readouterr().err
    assert not downloads
    assert run(*command, "--dataset=cifar10") == 1
    assert downloads == ["cifar10"]


def test_images_that_a_log_may_not_choose_are_given(tiny_run, log, tmp_path, capsys):
    theirs = {"dataset": "mine:digits", "split": "train test"}
    other = rewritten(log, tmp_path / "other.tsv", lambda record: record, **theirs)
    images = ["--dataset=mnist5k", "--split=test"]
    command = [f"--run_dir={tiny_run}", f"--log={other}", *FAST, "--num_examples=1", *images]
    assert run(*command) == 0
    assert "records 'mine:digits', 'train test'; read are mnist5k, test" in capsys.readouterr().out


def test_other_images_under_the_same_positions_are_refused(tiny_run, log, tmp_path, capsys):
    def relabelled(record):
        return dataclasses.replace(record, label=(record.label + 1) % 10)

    other = rewritten(log, tmp_path / "other.tsv", relabelled)
    assert run(f"--run_dir={tiny_run}", f"--log={other}", *FAST) == 1
    assert "the log is of other images" in capsys.readouterr().err


def test_other_pixels_under_the_same_positions_are_refused(tiny_run, log, tmp_path, capsys):
    other = rewritten(
        log, tmp_path / "other.tsv", lambda r: dataclasses.replace(r, pixels_sha256="0" * 64)
    )
    assert run(f"--run_dir={tiny_run}", f"--log={other}", *FAST) == 1
    assert "was certified with pixels of SHA-256 0000" in capsys.readouterr().err


def test_a_log_of_the_first_version_is_attacked_with_a_warning(tiny_run, log, tmp_path, capsys):
    first = rewritten(log, tmp_path / "first.tsv", lambda record: record, format_version=1)
    assert run(f"--run_dir={tiny_run}", f"--log={first}", *FAST, "--num_examples=2") == 0
    assert "first.tsv: of format version 1, which does not record" in capsys.readouterr().err


def test_findings_that_are_removed_meanwhile_are_no_success(
    tiny_run, log, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "found.tsv"
    append = LockedTable.append

    def removing(writer, row):
        append(writer, row)
        out.unlink(missing_ok=True)

    monkeypatch.setattr(LockedTable, "append", removing)
    flags = [f"--run_dir={tiny_run}", f"--log={log.path}", f"--out={out}", "--num_examples=2"]
    assert run(*flags, *FAST) == 1
    captured = capsys.readouterr()
    assert "found.tsv: was removed" in captured.err
    assert "done" not in captured.out


def test_an_altered_row_is_refused(tiny_run, log, tmp_path, capsys):
    altered = tmp_path / "altered.tsv"
    first = log.records[0]
    changed = dataclasses.replace(first, radius=first.radius + 0.5)
    altered.write_text(
        log.path.read_text().replace(log.settings.to_line(first), log.settings.to_line(changed))
    )
    settings_path(altered).write_text(settings_path(log.path).read_text())
    assert run(f"--run_dir={tiny_run}", f"--log={altered}", *FAST) == 1
    assert "corrupt or was altered" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--log=LOG"], "--run_dir must be given"),
        (["--run_dir=RUN"], "--log must be given"),
        (["--run_dir=RUN", "--log=none.tsv"], "none.tsv: cannot be read"),
        (["--run_dir=none", "--log=LOG"], "none: not a finished run directory"),
        (["--run_dir=RUN", "--log=LOG", "--out=x.csv"], "--out=x.csv: its name ends with .tsv"),
        (["--run_dir=RUN", "--log=LOG", "--alpha=0"], "--alpha must lie between"),
        (["--run_dir=RUN", "--log=LOG", "--steps=0"], "--steps=0"),
        (["--run_dir=RUN", "--log=LOG", "--attack=fgsm"], "attack"),
        (["--run_dir=RUN", "--log=PUBLISHED"], "not a log of tfmacer"),
        (["--run_dir=RUN", "--log=LOG", "--n=9"], "n = 9 is too small to confirm a flip"),
    ],
)
def test_mistakes_are_one_line(tiny_run, log, tmp_path, monkeypatch, capsys, flags, message):
    published = tmp_path / "published.tsv"
    published.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t.5\t1\t1\n")
    names = {"LOG": log.path, "RUN": tiny_run, "PUBLISHED": published}
    flags = [next((f.replace(k, str(v)) for k, v in names.items() if k in f), f) for f in flags]
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert run(*flags) in (1, 2)
    (line,) = [text for text in capsys.readouterr().err.splitlines() if text.startswith("error")]
    assert message in line
    assert list(folder.iterdir()) == []


def test_a_run_whose_network_was_changed_is_refused(tiny_run, log, tmp_path, capsys):
    copy = RunDirectory(tmp_path / "copy")
    copy.root.mkdir()
    copy.model.write_bytes(RunDirectory(tiny_run).model.read_bytes())
    text = RunDirectory(tiny_run).smoothing.read_text()
    smoothing = dataclasses.replace(RunDirectory(tiny_run).read_smoothing(), model_digest="e" * 64)
    assert smoothing.to_json() != text
    copy.smoothing.write_text(smoothing.to_json())
    other = rewritten(log, tmp_path / "log.tsv", lambda r: r, model_digest="e" * 64)
    assert run(f"--run_dir={copy.root}", f"--log={other}", *FAST) == 1
    assert "the network was changed after the run" in capsys.readouterr().err
