import pytest
from absl import flags

from tfmacer.common.errors import UserError
from tfmacer.votes.source_flags import SourceFlags


def parsed(*arguments, **options):
    values = flags.FlagValues()
    source = SourceFlags(values, **options)
    values(["command", *arguments])
    return source


ALL = "exactly one of --run_dir, --saved_model and --server"
REPLAY = {"purpose": "--replay"}


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ([], {}, f"give {ALL}, got none"),
        (["--run_dir=a", "--saved_model=b"], {}, f"give {ALL}, got --run_dir, --saved_model"),
        ([], REPLAY, f"--replay needs {ALL}, got none"),
        ([], {"sources": ["run_dir"]}, "--run_dir must be given"),
        (["--server=localhost:1"], {}, "--model_name goes with --server"),
        (["--run_dir=a", "--model_name=m"], {}, "--model_name goes with --server"),
        (["--run_dir=a", "--tls"], {}, "--tls goes with --server"),
        (["--server=1.2.3.4:1", "--model_name=m"], {}, "--server=1.2.3.4:1: not a loopback"),
        (["--saved_model=nowhere"], {}, "--saved_model=nowhere: no such directory"),
        (["--run_dir=nowhere"], {}, "nowhere"),
    ],
)
def test_what_does_not_name_one_source_is_refused(arguments, options, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        parsed(*arguments, **options).check()


def test_a_source_without_its_purpose_is_refused():
    assert parsed(**REPLAY).check(wanted=False) is None
    with pytest.raises(UserError, match="--saved_model is for --replay, which was not given"):
        parsed("--saved_model=a", **REPLAY).check(wanted=False)


def test_a_command_has_the_flags_of_its_sources_alone():
    with pytest.raises(flags.UnrecognizedFlagError):
        parsed("--server=localhost:1", sources=["run_dir"])
    source = parsed("--run_dir=a", "--import=os", "--import=sys", sources=["run_dir"])
    assert (source.run_dir, source.saved_model, source.server) == ("a", None, None)
    assert (source.modules, source.origin) == (("os", "sys"), "a")


def test_a_server_is_named_with_its_model(tmp_path):
    source = parsed("--server=localhost:1", "--model_name=m")
    assert source.check() is None
    assert (source.origin, source.run) == ("localhost:1: m", None)
    assert parsed(f"--saved_model={tmp_path}").check() is None
