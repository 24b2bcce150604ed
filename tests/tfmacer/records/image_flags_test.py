"""A record chooses neither code nor paths."""

import dataclasses

import made_logs
import pytest

from tfmacer.common.errors import UserError
from tfmacer.records.image_flags import ImageFlags
from tfmacer.records.logs import read_log
from tfmacer.records.runs import RunDirectory

NOTHING = ImageFlags(dataset=None, split=None, data_dir=None)


@pytest.mark.parametrize(
    "name",
    [
        "mnist5k",
        "mnist",
        "cifar10:3.0.2",
        "imagenet2012_subset/10pct",
        "emnist/balanced:3.1.0",
        "imagenet_v2/matched-frequency:3.0.0",
    ],
)
def test_names_of_stock_datasets_are_taken(name):
    assert NOTHING.dataset_of(name, origin="LOG", run=None) == name


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "shutil:rmtree",
        "package.module:function",
        "folder:/etc",
        "folder:.",
        "huggingface:mnist",
        "kaggle:someone/mnist",
        "mnist/data_dir=/tmp/theirs",
        "image_folder/root_dir=/tmp/theirs",
        "mnist/../theirs",
        "mnist/..",
        "../mnist",
        "/tmp/mnist",
        "gs://theirs/mnist",
        "mnist:1.0.0\nmore",
        "mnist\n",
        "mnist:test",
        "Mnist",
        "",
    ],
)
def test_whatever_is_code_a_place_or_an_argument_is_refused_naming_the_flag(name):
    with pytest.raises(UserError, match="^LOG: records the dataset .*: give --dataset$") as caught:
        NOTHING.dataset_of(name, origin="LOG", run=None)
    assert "\n" not in str(caught.value)
    given = dataclasses.replace(NOTHING, dataset="mine:digits")
    assert given.dataset_of(name, origin="LOG", run=None) == "mine:digits"


@pytest.mark.parametrize(
    "name", ["test", "train[:90%]", "train[10:20]", "test[-5:]", "train+test", "train[:1%]+test"]
)
def test_names_of_splits_are_taken(name):
    assert NOTHING.split_of(name, origin="LOG") == name


@pytest.mark.parametrize(
    "name",
    ["rm -rf .", "test;ls", "$(ls)", "a/b", "..", "test\n", "`ls`", "", "test[f()]"],
)
def test_a_split_that_is_no_name_is_refused_naming_the_flag(name):
    with pytest.raises(UserError, match="^LOG: records the split .*: give --split$"):
        NOTHING.split_of(name, origin="LOG")
    assert dataclasses.replace(NOTHING, split="test").split_of(name, origin="LOG") == "test"


def test_nothing_recorded_needs_both_flags():
    with pytest.raises(UserError, match="LOG: records no dataset: give --dataset"):
        NOTHING.dataset_of(None, origin="LOG", run=None)
    with pytest.raises(UserError, match="LOG: records no split: give --split"):
        NOTHING.split_of(None, origin="LOG")


def test_the_place_that_a_run_records_is_not_gone_to(tmp_path):
    run = RunDirectory(tmp_path)
    run.flags.write_text("--dataset=mnist\n--data_dir=theirs\n")
    with pytest.raises(UserError, match="the run read mnist from 'theirs'.*: give --data_dir"):
        NOTHING.dataset_of("mnist", origin="RUN", run=run)
    # These digits are nowhere but in the installation.
    assert NOTHING.dataset_of("mnist5k", origin="RUN", run=run) == "mnist5k"
    given = dataclasses.replace(NOTHING, data_dir="mine")
    assert given.dataset_of("mnist", origin="RUN", run=run) == "mnist"
    run.flags.write_bytes(b"--data_dir=\xff\n")
    with pytest.raises(UserError, match="flags.txt: cannot be read: not UTF-8 text"):
        NOTHING.dataset_of("mnist", origin="RUN", run=run)


def test_images_given_for_a_log_that_records_others_are_said(tmp_path, capsys):
    path = tmp_path / "log.tsv"
    made_logs.write(path, made_logs.settings(dataset="os:system", split="ls", total=2))
    log = read_log(path)
    with pytest.raises(UserError, match="records the dataset 'os:system'"):
        NOTHING.of_log(log, run=None)
    given = ImageFlags(dataset="mine:digits", split="test", data_dir=None)
    assert given.of_log(log, run=None) == ("mine:digits", "test")
    assert capsys.readouterr().out == (
        f"{path}: records 'os:system', 'ls'; read are mine:digits, test\n"
    )
    made_logs.write(tmp_path / "same.tsv", made_logs.settings(dataset="mine:digits", split="test"))
    assert given.of_log(read_log(tmp_path / "same.tsv"), run=None) == ("mine:digits", "test")
    assert capsys.readouterr().out == ""
