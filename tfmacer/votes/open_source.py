"""Opens a source of votes: the network of a run directory, an export, or a server."""

from pathlib import Path

from tfmacer.common.errors import UserError
from tfmacer.votes.remote import RemoteVotes
from tfmacer.votes.source import VoteSource
from tfmacer.wire.channel import DIRECT, Transport


def open_source(
    *,
    run_dir: str | Path | None = None,
    saved_model: str | Path | None = None,
    server: str | None = None,
    model_name: str | None = None,
    transport: Transport = DIRECT,
    intra_op_threads: int | None = None,
    inter_op_threads: int | None = None,
    distribution: str = "none",
) -> VoteSource:
    """Opens the one source that is named.

    Args:
      run_dir: a run directory, for the votes of its network.
      saved_model: an export: a version directory, or its parent (newest version).
      server: HOST:PORT of a TensorFlow Serving endpoint; TensorFlow is then not loaded.
      model_name: the model's name at the server.
      transport: how to reach the server.
      intra_op_threads: TensorFlow's threads for one operation, see `devices.use_threads`; None
        leaves TensorFlow's settings as they are.
      inter_op_threads: operations at a time; None is one per core.
      distribution: over which devices a run's network is spread, see `devices.strategy`.

    Raises:
      UserError: none or several sources are named, or it cannot be used.
    """
    given = [name for name in (run_dir, saved_model, server) if name is not None]
    if len(given) != 1 or (server is None) != (model_name is None):
        raise UserError(
            "a source is one of a run_dir, a saved_model, and a server with a model_name, got "
            f"{run_dir=}, {saved_model=}, {server=}, {model_name=}"
        )
    if server is not None and model_name is not None:
        return RemoteVotes.connect(server, model_name, transport=transport)
    from tfmacer.votes import devices, local

    if intra_op_threads is not None:
        devices.use_threads(intra_op_threads, inter_op_threads)
    if saved_model is not None:
        return local.SavedModelVotes(saved_model)
    return local.from_run(run_dir or "", devices.strategy(distribution))
