"""Opens what a command certifies: the network of a run directory, or an export."""

from pathlib import Path

from tfmacer.votes import devices, local, models
from tfmacer.votes.source import VoteSource


def open_model(
    run_dir: str | None, saved_model: str | None, distribution: str
) -> tuple[VoteSource, bool]:
    """Opens what is certified, and says whether its pixels are normalised by a first layer.

    Raises:
      UserError: it cannot be used.
    """
    if run_dir is None:
        return local.SavedModelVotes(saved_model or ""), True
    strategy = devices.distribution(distribution)
    with strategy.scope():
        network, smoothing = models.load_run(Path(run_dir))
    normalized = models.leads_with_normalization(network)
    return local.NetworkVotes(network, smoothing, strategy=strategy), normalized
