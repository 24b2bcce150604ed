import errno
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import grpc
import pytest
from absl import flags
from processes import ROOT
from recording_proxy import proxied

from tfmacer.common import commandline
from tfmacer.common.errors import Notice, UserError


@pytest.fixture
def values():
    values = flags.FlagValues()
    flags.DEFINE_integer("count", 1, "How many.", flag_values=values, lower_bound=1)
    flags.DEFINE_bool("loud", False, "Whether.", flag_values=values)
    flags.DEFINE_string("name", None, "Whose.", flag_values=values)
    flags.DEFINE_list("names", [], "Of whom.", flag_values=values)
    return values


def run(main, values, argv):
    return commandline.command(main, values, "python -m thing", "Does a thing.")(argv)


def run_with_arguments(main, values, argv):
    return commandline.command(
        main, values, "python -m thing", "Does a thing.", arguments="FILE ..."
    )(argv)


def test_flags_are_parsed_and_fall_back_to_their_defaults_between_runs(values):
    seen = []
    assert (
        run(lambda: seen.append((values.count, values.loud)), values, ["--count=3", "--loud"]) == 0
    )
    assert run(lambda: seen.append((values.count, values.loud)), values, []) == 0
    assert seen == [(3, True), (1, False)]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--count=0"], "count"),
        (["--count=x"], "count"),
        (["--unknown=1"], "unknown"),
        (["file"], "unexpected argument 'file': python -m thing takes flags only"),
        (["file", "--count=2"], "unexpected argument 'file'"),
        (["--flagfile=nowhere.flags"], "nowhere.flags"),
        (["--flagfile=a\0b"], "--flagfile: cannot be read: embedded null byte"),
        (["--name=a\0b"], r"--name 'a\x00b': holds a NUL character"),
        (["--names=a,b\0"], r"--names 'b\x00': holds a NUL character"),
    ],
)
def test_bad_flags_are_one_line_and_status_2(values, capsys, argv, message):
    assert run(lambda: pytest.fail("called"), values, argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_flag_files_and_arguments_hold_texts_that_a_file_can_have(values, tmp_path, capsys):
    """NUL ends a path wherever the system takes one, and no flag file is of other bytes."""
    file = tmp_path / "flags.txt"
    for content, message in (
        (b"--name=a\0b\n", "--name"),
        (b"--name=\xff\n", "--flagfile: cannot be read: 'utf-8' codec"),
    ):
        file.write_bytes(content)
        assert run(lambda: pytest.fail("called"), values, [f"--flagfile={file}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {message}")
    assert run_with_arguments(lambda _: pytest.fail("called"), values, ["a\0b"]) == 2
    assert r"argument 'a\x00b': holds a NUL" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["a", "--count=2", "b"], ["--count=2", "a", "b"], ["a", "b", "--count", "2"]]
)
def test_arguments_and_flags_stand_in_any_order(values, argv):
    seen = []
    assert run_with_arguments(lambda rest: seen.append((rest, values.count)), values, argv) == 0
    assert seen == [(["a", "b"], 2)]


def test_what_follows_two_dashes_is_no_flag(values):
    seen = []
    assert run_with_arguments(seen.append, values, ["--", "--count=2"]) == 0
    assert seen == [["--count=2"]]


def test_what_is_said_is_one_harmless_line_each(values, capsys):
    def main():
        commandline.say("a\x1b[2J", Path("b\nc"))
        commandline.warn("d\u202e\udcff")
        raise UserError(f"e\x07\n f {'g' * 5000!r}")

    assert run(main, values, []) == 1
    out, err = capsys.readouterr()
    assert out == "a\\x1b[2J\nb\\nc\n"
    assert err.splitlines() == [
        "warning: d\\u202e\\udcff",
        f"error: e\\x07 f '{'g' * 199}…'",
    ]


def test_flags_that_cannot_be_parsed_are_a_harmless_line_too(values, capsys):
    assert run(lambda: None, values, ["--count=\x1b[2J\n7"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_doc_usage_and_flags(values, capsys, flag):
    assert run_with_arguments(lambda rest: pytest.fail("called"), values, [flag]) == 0
    out = capsys.readouterr().out
    assert "Does a thing." in out
    assert "usage: python -m thing [flags] FILE ...\n" in out
    assert "--count" in out
    run(lambda: None, values, [flag])
    assert "usage: python -m thing [flags]\n" in capsys.readouterr().out


def test_a_users_mistake_is_one_line_and_status_1(values, capsys):
    def fail(rest):
        raise UserError(f"{rest[0]}:\n no such file")

    assert run_with_arguments(fail, values, ["a"]) == 1
    assert capsys.readouterr().err == "error: a: no such file\n"


def test_an_interrupt_has_its_own_status_and_other_errors_are_not_hidden(values, capsys):
    def interrupt():
        raise KeyboardInterrupt

    def break_down():
        raise RuntimeError("a defect")

    assert run(interrupt, values, []) == 130
    assert capsys.readouterr().err == "error: interrupted\n"
    with pytest.raises(RuntimeError, match="a defect"):
        run(break_down, values, [])


LONG = """
import sys
from absl import flags
from tfmacer.common import commandline
def main():
    while True:
        print("a line")
sys.exit(commandline.command(main, flags.FlagValues(), "x", "X.")())
"""


@pytest.mark.parametrize("words", [["-m", "tfmacer.merge", "--help"], ["-c", LONG]])
def test_output_that_nobody_reads_ends_a_command_quietly(words):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


def test_another_pipe_that_breaks_is_not_hidden(values):
    def fail():
        raise BrokenPipeError("of a worker")

    with pytest.raises(BrokenPipeError, match="of a worker"):
        run(fail, values, [])


@pytest.mark.parametrize("no_proxy", ["", "a.example"])
def test_no_channel_of_a_command_asks_a_proxy_for_this_machine(values, monkeypatch, no_proxy):
    """Such as TensorFlow's and Beam's own, which ask the environment alone."""

    def main():
        for host in ("localhost", "127.0.0.1", "127.7.7.7", "[::1]"):
            with grpc.insecure_channel(f"{host}:1") as channel, pytest.raises(grpc.RpcError):
                channel.unary_unary("/a/b")(b"", timeout=0.5)

    with proxied(monkeypatch) as proxy:
        monkeypatch.delenv("GRPC_ADDRESS_HTTP_PROXY")
        monkeypatch.setenv("no_proxy", no_proxy)
        assert run(main, values, []) == 0
        assert proxy.asked == []
        assert os.environ[commandline.NO_PROXY].startswith(no_proxy)


def test_what_a_user_should_know_is_one_line_once(capsys):
    def main():
        for _ in range(2):
            warnings.warn("run\nwas written before", Notice, stacklevel=1)
        warnings.warn("run was edited", Notice, stacklevel=1)

    assert run(main, flags.FlagValues(), []) == 0
    assert capsys.readouterr().err.splitlines() == [
        "warning: run was written before",
        "warning: run was edited",
    ]


def test_other_warnings_are_shown_as_ever():
    def main():
        warnings.warn("of a library", DeprecationWarning, stacklevel=1)

    with pytest.warns(DeprecationWarning, match="of a library"):
        assert run(main, flags.FlagValues(), []) == 0


TENSORFLOWS = type("OpError", (Exception,), {"__module__": "tensorflow.python.framework.errors"})


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.tsv"),
            "a.tsv: No space left on device",
        ),
        (OSError(errno.EISDIR, os.strerror(errno.EISDIR), "model.keras"), "model.keras: Is a"),
        (OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "xyz"), "xyz: File name too"),
        (OSError("Can't write (errno = 27, message = 'File too large')"), "File too large"),
        (
            TENSORFLOWS("{{function_node x}} a/b; No space left on device [Op:SaveV2]"),
            "a/b; No space",
        ),
    ],
    ids=["Python", "directory", "long", "HDF5", "TensorFlow"],
)
def test_a_full_disk_is_one_line(error, line, capsys):
    def main():
        raise error

    assert run(main, flags.FlagValues(), []) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("error: ")
    assert line in said
    assert "function_node" not in said


@pytest.mark.parametrize("error", [OSError(errno.EINVAL, "Invalid argument"), TENSORFLOWS("shape")])
def test_any_other_error_keeps_its_trace(error):
    def main():
        raise error

    with pytest.raises(type(error)):
        run(main, flags.FlagValues(), [])


def test_a_full_standard_output_is_one_line():
    with open("/dev/full", "w") as full:
        answer = subprocess.run(
            [sys.executable, "-m", "tfmacer.verify", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=ROOT,
        )
    assert (answer.returncode, answer.stderr) == (
        1,
        "error: standard output: No space left on device\n",
    )
