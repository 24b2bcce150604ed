"""What every command shares: parsing its own flags, and one clear line for a user's mistake.

Each command keeps its flags in a `flags.FlagValues` of its own, so that several commands can be
imported and run in one process, and nothing is parsed at import.
"""

import contextlib
import importlib
import os
import select
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from absl import flags

from tfmacer.common.errors import Notice, UserError, naming, refusal
from tfmacer.common.text import one_line, visible

# The hosts that gRPC reaches without a proxy; it reads the lower-case name only.
NO_PROXY = "no_grpc_proxy"


def command(
    main: Callable[..., None],
    flag_values: flags.FlagValues,
    name: str,
    doc: str | None,
    *,
    arguments: str = "",
) -> Callable[..., int]:
    """Makes the `main(argv)` of a command.

    Args:
      main: the command's body; reads its flags from `flag_values`. Called without arguments, or
        with the list of those that are no flags where the command takes any.
      flag_values: the command's own flags; reset to their defaults before each run.
      name: how the command is called, e.g. `python -m tfmacer.train`.
      doc: what `--help` prints above the list of flags.
      arguments: what the command takes besides flags, in any order, for the line of usage, e.g.
        `LOG.tsv ...`; empty where it takes flags only.

    Returns:
      A function of the arguments after the program's name, by default those of `sys.argv`. It
      returns the exit status: 0 when `main` returned, 2 for flags that cannot be parsed or are out
      of range, 1 for any other mistake of the user's (`UserError`) and where the system refuses to
      read or write a file, e.g. because the disk is full, 130 after an interrupt from the
      keyboard, 141 after the reader of the output has closed it, as `head` does.
    """

    def run(argv: Sequence[str] | None = None) -> int:
        given = list(sys.argv[1:] if argv is None else argv)
        try:
            status = _status(main, flag_values, given, name, doc or "", arguments)
            if sys.stdout is not None:
                sys.stdout.flush()  # writing what is buffered may fail as well
        except BrokenPipeError:
            if not _discard_unread_output():
                raise
            return 128 + signal.SIGPIPE
        except OSError as error:
            if refusal(error) is None:
                raise
            return _complain_of_output(error)
        return status

    return run


def _status(
    main: Callable[..., None],
    flag_values: flags.FlagValues,
    given: list[str],
    name: str,
    doc: str,
    arguments: str,
) -> int:
    _keep_loopback_direct()
    if any(argument in ("--help", "-help", "-h", "--helpfull") for argument in given):
        usage = f"{name} [flags] {arguments}".rstrip()
        print(f"{doc.strip()}\n\nusage: {usage}\n{flag_values.get_help()}")
        return 0
    try:
        flag_values.unparse_flags()
        rest = flag_values([name, *given])[1:]
        if rest and not arguments:
            raise flags.Error(f"unexpected argument {rest[0]!r}: {name} takes flags only")
        _check_text(flag_values, rest)
    except (flags.Error, OSError) as error:
        return _complain(error, 2)
    except ValueError as error:
        if str(error).startswith("--"):  # of absl: a flag that takes no value
            return _complain(error, 2)
        # A path or text that no file has.
        return _complain(ValueError(f"--flagfile: cannot be read: {error}"), 2)
    try:
        with _notices_shown():
            main(*([rest] if arguments else []))
    except UserError as error:
        return _complain(error, 1)
    except KeyboardInterrupt:
        return _complain(RuntimeError("interrupted"), 130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) or (reason := refusal(error)) is None:
            raise
        return _complain(RuntimeError(reason), 1)
    return 0


def _complain_of_output(error: OSError) -> int:
    """Standard output cannot be written, and what is buffered never will be."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return _complain(RuntimeError(f"standard output: {error.strerror}"), 1)


def _check_text(flag_values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Refuses NUL, which ends a text wherever the system takes one; a flag file may hold it."""
    named = [(f"--{name}", flag_values[name].value) for name in flag_values]
    for name, value in [*named, ("argument", list(arguments))]:
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and "\0" in text:
                raise flags.Error(f"{name} {text!r}: holds a NUL character")


def _keep_loopback_direct() -> None:
    """Makes gRPC channels of this process and its children reach this machine without a proxy.

    Channels of `tfmacer.wire.channel` do so anyway; TensorFlow's between the hosts of a training
    and Beam's between a runner and its workers are configured by the environment only.
    """
    mine, general = "localhost,127.0.0.0/8,::1", "no_proxy"
    others = os.environ.get(NO_PROXY) or os.environ.get(general) or ""
    if not others.endswith(mine):
        os.environ[NO_PROXY] = ",".join(filter(None, (others, mine)))


def say(*lines: object) -> None:
    """Prints lines on standard output, with control characters escaped."""
    with naming("standard output"):
        _print(sys.stdout, *lines)


def note(*lines: object) -> None:
    """Prints lines on standard error: everything that is not a result."""
    _print(sys.stderr, *lines)


def warn(text: object) -> None:
    """A warning on standard error."""
    note(f"warning: {text}")


def define_import(flag_values: flags.FlagValues) -> flags.FlagHolder[list[str]]:
    """Defines `--import`, for `load_tensorflow`."""
    return flags.DEFINE_multi_string(
        "import",
        [],
        "Module to import first, found from where the command is run: one that registers layers "
        "of the network's own. May be repeated.",
        flag_values=flag_values,
    )


def load_tensorflow(modules: Sequence[str] = ()) -> None:
    """Imports TensorFlow without the lines that it prints about CPUs and missing CUDA drivers.

    They are printed before its logging is set up and ignore log levels, so standard error is held
    back meanwhile; if the import fails, it is shown.

    Args:
      modules: to import afterwards, as `--import` names them.

    Raises:
      UserError: one of these cannot be imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    shown = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_physical_devices()
        except BaseException:
            held.seek(0)
            os.write(shown, held.read())
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)
    for name in modules:
        try:
            importlib.import_module(name)
        except (ImportError, TypeError, ValueError) as error:
            raise UserError(f"--import={name}: cannot be imported: {error}") from error


def _discard_unread_output() -> bool:
    """Redirects output that has lost its reader to /dev/null.

    Otherwise the interpreter would fail when it flushes its streams at exit.

    Returns:
      Whether standard output or standard error had lost its reader.
    """
    unread = []
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            unread.append(descriptor)
    devnull = os.open(os.devnull, os.O_WRONLY)
    for descriptor in unread:
        os.dup2(devnull, descriptor)
    os.close(devnull)
    return bool(unread)


@contextlib.contextmanager
def _notices_shown() -> Iterator[None]:
    """Each `Notice` is one line on standard error, once; other warnings are as they were."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", Notice)
        others = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any, **options: Any) -> None:
            if issubclass(category, Notice):
                warn(one_line(str(message)))
            else:
                others(message, category, *place, **options)

        warnings.showwarning = show
        yield


def _complain(error: Exception, status: int) -> int:
    note(f"error: {one_line(str(error))}")
    return status


def _print(file: TextIO, *lines: object) -> None:
    for line in lines:
        print(visible(str(line)), file=file, flush=True)
