"""Training on one device, on all GPUs of a machine, or on several machines."""

from collections.abc import Callable

import keras
import tensorflow as tf

from tfmacer.common.errors import UserError
from tfmacer.training.batches import WHOLE, Share

Batches = Callable[[int, Share], tf.data.Dataset]


def strategy(name: str, *, workers: int) -> tf.distribute.Strategy:
    """The strategy of `--distribution`. Call before anything else of TensorFlow's runs.

    Args:
      name: `one_device`; `mirrored`, over all GPUs of this machine, or over its CPUs where it has
        none; `multi_worker`, over the machines of TF_CONFIG; `auto`, the last of these that this
        machine is set up for.
      workers: machines in TF_CONFIG.
    """
    gpus = len(tf.config.list_physical_devices("GPU"))
    if name == "multi_worker" or (name == "auto" and workers > 1):
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "mirrored" or (name == "auto" and gpus > 1):
        kind = "GPU" if gpus else "CPU"
        devices = tf.config.list_logical_devices(kind)
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one that writes."""
    return bool(strategy.extended.should_checkpoint)


def check_divides(strategy: tf.distribute.Strategy, batch_size: int) -> None:
    """Refuses a batch that replicas cannot share equally: their mean would not be the batch's."""
    replicas = strategy.num_replicas_in_sync
    if batch_size % replicas:
        raise UserError(f"--batch_size={batch_size} must be divisible by the {replicas} devices")


def share_batches(
    strategy: tf.distribute.Strategy, batches: Batches, step: int
) -> tf.distribute.DistributedDataset:
    """The batches from `step` on, of which each replica gets the rows of its number.

    Args:
      strategy: whose replicas.
      batches: gives a share of each batch from a step to the end of its epoch; each machine
        asks for its own.
      step: steps taken so far.
    """

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        share = Share(context.input_pipeline_id, context.num_input_pipelines)
        dataset = batches(step, share)
        local = strategy.num_replicas_in_sync // context.num_input_pipelines
        if local == 1:
            return dataset
        return dataset.map(lambda *batch: tuple(_split(part, local) for part in batch)).unbatch()

    if strategy.num_replicas_in_sync == 1:
        return batches(step, WHOLE)
    return strategy.distribute_datasets_from_function(of_worker)


def unshared_statistics(
    strategy: tf.distribute.Strategy, network: keras.Model
) -> list[keras.Variable]:
    """What every replica's forward pass changes by itself; none where there is one alone."""
    if strategy.num_replicas_in_sync == 1:
        return []
    return [v for v in network.non_trainable_weights if tf.as_dtype(v.dtype).is_floating]


def over_replicas(
    strategy: tf.distribute.Strategy, parts: list[tf.Tensor], size: tf.Tensor
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Means over all replicas, each counting by the size of its share, and the sum of the sizes."""
    if strategy.num_replicas_in_sync == 1:
        return parts, size
    weighed = [tf.cast(size, part.dtype) * part for part in parts]
    context = tf.distribute.get_replica_context()
    *sums, total = context.all_reduce(tf.distribute.ReduceOp.SUM, [*weighed, size])
    means = [tf.math.divide_no_nan(part, tf.cast(total, part.dtype)) for part in sums]
    return means, total


def check_agreed(strategy: tf.distribute.Strategy, step: int) -> None:
    """Refuses machines that would go on from different steps.

    Raises:
      UserError: they do not see the same checkpoints.
    """
    if not _of_machines(strategy):
        return
    replicas = strategy.num_replicas_in_sync
    total, squares = _summer(strategy)(tf.constant([step, step * step], tf.int64)).numpy()
    if replicas * squares != total * total:
        raise UserError(
            f"this machine would go on after step {step}, another after another step: "
            "--run_dir must be one directory that all machines of TF_CONFIG share"
        )


def on_any_machine(strategy: tf.distribute.Strategy) -> Callable[[bool], bool]:
    """Tells whether something is true on any machine; all must call it at the same time."""
    if not _of_machines(strategy):
        return bool
    total = _summer(strategy)
    return lambda here: bool(total(tf.constant([here], tf.int64)).numpy()[0])


def wait(strategy: tf.distribute.Strategy) -> None:
    """Waits for all machines: to the others, one that leaves early has failed."""
    on_any_machine(strategy)(False)


def _of_machines(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _summer(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], tf.Tensor]:
    """Sums whole numbers over all replicas."""

    def of_replica(numbers: tf.Tensor) -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        # A copy, so that it is on the replica's device.
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(numbers))

    @tf.function
    def total(numbers: tf.Tensor) -> tf.Tensor:
        return strategy.experimental_local_results(strategy.run(of_replica, args=(numbers,)))[0]

    return total


def _split(rows: tf.Tensor, parts: int) -> tf.Tensor:
    return tf.reshape(rows, [parts, -1, *rows.shape[1:]])
