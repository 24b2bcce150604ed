"""The flags that name a source of votes: one set for all commands that take one."""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from tfmacer.common import commandline
from tfmacer.common.errors import UserError
from tfmacer.records.runs import RunDirectory, Smoothing
from tfmacer.votes.source import VoteSource
from tfmacer.wire.channel import DIRECT, ChannelFlags

_SOURCES = {
    "run_dir": "Run directory of the network.",
    "saved_model": "Export of the model: a version directory, or its parent (newest version).",
    "server": "HOST:PORT of a TensorFlow Serving endpoint that serves the model.",
}


class SourceFlags:
    """`--run_dir`, `--saved_model`, `--server`, `--model_name`, those of TLS, and `--import`."""

    def __init__(
        self,
        flag_values: flags.FlagValues,
        *,
        sources: Sequence[str] = tuple(_SOURCES),
        purpose: str = "",
    ) -> None:
        """Defines them.

        Args:
          flag_values: where.
          sources: which of `run_dir`, `saved_model` and `server` the command takes.
          purpose: the flag that a source is for, e.g. `--replay`; empty where the command always
            needs one.
        """

        def string(name: str, text: str) -> flags.FlagHolder[str | None]:
            return flags.DEFINE_string(name, None, text, flag_values=flag_values)

        self._purpose = purpose
        note = f" For {purpose}." if purpose else ""
        self._import = commandline.define_import(flag_values)
        self._sources = {name: string(name, _SOURCES[name] + note) for name in sources}
        if "server" in sources:
            self._model_name = string("model_name", "The model's name on --server.")
            self._tls = ChannelFlags("tls", "the server", flag_values, allow="allow_plaintext")

    @property
    def run_dir(self) -> str | None:
        """Value of `--run_dir`."""
        return self._value("run_dir")

    @property
    def saved_model(self) -> str | None:
        """Value of `--saved_model`."""
        return self._value("saved_model")

    @property
    def server(self) -> str | None:
        """Value of `--server`."""
        return self._value("server")

    @property
    def modules(self) -> tuple[str, ...]:
        """Modules to import before the network is loaded."""
        return tuple(self._import.value)

    @property
    def run(self) -> RunDirectory | None:
        """The run directory named; None for another source."""
        return None if self.run_dir is None else RunDirectory(Path(self.run_dir))

    @property
    def origin(self) -> str:
        """What the source is called in error messages."""
        return self.run_dir or self.saved_model or f"{self.server}: {self._model_name.value}"

    def check(self, *, wanted: bool = True) -> Smoothing | None:
        """Checks what can be checked without TensorFlow.

        Args:
          wanted: whether the flag that a source is for was given.

        Returns:
          What a run directory records; None for another source, or none.

        Raises:
          UserError: none or several are named, or flags that do not go with the one that is; or
            the run directory or export cannot be used.
        """
        given = [name for name, flag in self._sources.items() if flag.value is not None]
        if wanted and len(given) != 1:
            *names, last = (f"--{name}" for name in self._sources)
            if not names:
                raise UserError(f"{last} must be given")
            found = ", ".join(f"--{name}" for name in given) or "none"
            raise UserError(
                f"{self._purpose + ' needs' if self._purpose else 'give'} exactly one of "
                f"{', '.join(names)} and {last}, got {found}"
            )
        if given and not wanted:
            raise UserError(f"--{given[0]} is for {self._purpose}, which was not given")
        if "server" in self._sources:
            if (self.server is None) != (self._model_name.value is None):
                raise UserError("--model_name goes with --server, and --server needs it")
            self._tls.read("server", self.server)
        if "saved_model" in given and not Path(self.saved_model or "").is_dir():
            raise UserError(f"--saved_model={self.saved_model}: no such directory")
        return self.run.read_smoothing() if self.run else None

    def load_tensorflow(self) -> None:
        """Imports TensorFlow, and then the modules of `--import`; see there."""
        commandline.load_tensorflow(self.modules)

    def open(self, *, intra_op_threads: int, distribution: str = "none") -> VoteSource:
        """Opens the source; see `open_source`."""
        from tfmacer.votes.open_source import open_source

        served = self.server is not None
        return open_source(
            run_dir=self.run_dir,
            saved_model=self.saved_model,
            server=self.server,
            model_name=self._model_name.value if served else None,
            transport=self._tls.read("server", self.server) if served else DIRECT,
            intra_op_threads=intra_op_threads,
            distribution=distribution,
        )

    def _value(self, name: str) -> str | None:
        return self._sources[name].value if name in self._sources else None
