"""The signatures of an exported classifier, over a network and its noise.

First dimension the batch everywhere and no scalars, so that TensorFlow Serving may batch requests
of every signature. Only core TensorFlow ops.

What comes in is checked in the graph, since no server checks a request against a signature: a
tensor of another shape would be broadcast to nonsense, or end the process in some kernel. Pixels
outside [0, 1] are answered, as a certificate speaks of them too; those that are not finite are not.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfmacer.records.runs import Smoothing
from tfmacer.votes.counting import count_votes, inference

Tensors = dict[str, tf.Tensor]

# Rows that `tfmacer_info` answers: a value repeated millions of times takes a few bytes to send.
MAX_PROBES = 1024
_PNG = b"\x89PNG\r\n\x1a\n"
# One pixel as PNG; of the wrong size by its header for whoever it stands in for.
_STRANGER = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c636000000002000148afa4710000000049454e44ae426082"
)


class SmoothedClassifier(tf.Module):
    """What is saved: the network's variables and the signatures that read them.

    The Keras network itself is not attached: a SavedModel with one was seen to load eagerly and
    then fail in a Session, the runtime of TensorFlow Serving, for want of its variables.
    """

    def __init__(self, network: Any, smoothing: Smoothing, num_samples: int) -> None:
        """Wraps a network.

        Args:
          network: Keras model from images `[B, H, W, C]` in [0, 1] to logits `[B, K]`.
          smoothing: its noise and shapes; its text is what `tfmacer_info` answers.
          num_samples: draws behind a prediction of `serving_default` and `encoded`.
        """
        super().__init__(name="smoothed_classifier")
        self.v = [variable.value for variable in network.weights]
        self._network = inference(network)
        self._smoothing = smoothing
        self._num_samples = num_samples
        self._text = smoothing.to_json()

    # tf.Module tracks what hangs on it; the closure over the Keras network must stay invisible.
    _TF_MODULE_IGNORED_PROPERTIES = frozenset({"_network"})

    def signatures(self) -> dict[str, Callable[..., Tensors]]:
        """Each signature as a `tf.function` with named, typed inputs."""
        images = tf.TensorSpec([None, *self._smoothing.input_shape], tf.float32, name="images")

        def per_row(name: str, dtype: tf.DType, *shape: int) -> tf.TensorSpec:
            return tf.TensorSpec([None, *shape], dtype, name=name)

        def function(body: Callable[..., Tensors], *inputs: tf.TensorSpec) -> Any:
            @functools.wraps(body)
            def checked(*tensors: tf.Tensor) -> Tensors:
                return body(*map(_in_shape, tensors, inputs))

            return tf.function(checked, input_signature=inputs, autograph=False)

        return {
            "serving_default": function(self.serving_default, images),
            "sample_under_noise": function(
                self.sample_under_noise,
                images,
                per_row("seeds", tf.int32, 2),
                per_row("offsets", tf.int32),
                per_row("num_samples", tf.int32),
                per_row("beta", tf.float32),
            ),
            "logits": function(self.logits, images),
            "encoded": function(self.encoded, per_row("encoded_images", tf.string)),
            "tfmacer_info": function(self.tfmacer_info, per_row("probe", tf.int32)),
        }

    def serving_default(self, images: tf.Tensor) -> Tensors:
        """Smoothed prediction under noise that is fresh at every call and for every row.

        Args:
          images: float32 `[B, H, W, C]` in [0, 1].

        Returns:
          `classes` int64 `[B]`, `counts` int64 `[B, K]`, `probabilities` float32 `[B, K]` (mean
          softmax over the draws).
        """
        (images,) = _after([_finite(images=images)], images)
        rows = tf.shape(images)[0]
        # The one source of randomness with no seed to bake in: `tf.random` replays the same
        # noise in every process once whoever exported had set a global seed.
        seeds = tf.raw_ops.NonDeterministicInts(shape=tf.stack([rows, 2]), dtype=tf.int32)
        counts, sums, _ = count_votes(
            self._network,
            self._smoothing,
            images,
            seeds,
            tf.zeros([rows], tf.int32),
            tf.fill([rows], self._num_samples),
            tf.ones([rows]),
        )
        return {
            "classes": tf.argmax(counts, axis=-1),
            "counts": counts,
            "probabilities": tf.cast(sums / self._num_samples, tf.float32),
        }

    def sample_under_noise(
        self,
        images: tf.Tensor,
        seeds: tf.Tensor,
        offsets: tf.Tensor,
        num_samples: tf.Tensor,
        beta: tf.Tensor,
    ) -> Tensors:
        """Votes of a reproducible stretch of draws; see `tfmacer.votes.counting.count_votes`."""
        rows = tf.shape(images)[0]
        checks = [_finite(images=images, beta=beta)]
        checks += [
            tf.debugging.assert_equal(
                tf.shape(values)[0], rows, f"{name} must have as many rows as images"
            )
            for name, values in {
                "seeds": seeds,
                "offsets": offsets,
                "num_samples": num_samples,
                "beta": beta,
            }.items()
        ]
        for name, values, limit in (
            ("offsets", offsets, 2_000_000_000),
            ("num_samples", num_samples, 1_000_000),
        ):
            inside = tf.reduce_all((values >= 0) & (values <= limit))
            checks.append(
                tf.debugging.Assert(inside, [f"{name} must lie in [0, {limit}], got", values])
            )
        # All of them: a loop begins with those of its inputs that are there.
        inputs = _after(checks, images, seeds, offsets, num_samples, beta)
        counts, sums, square_sums = count_votes(self._network, self._smoothing, *inputs)
        return {"counts": counts, "sums": sums, "square_sums": square_sums}

    def logits(self, images: tf.Tensor) -> Tensors:
        """`logits` float32 `[B, K]` of the base network, without noise."""
        (images,) = _after([_finite(images=images)], images)
        return {"logits": tf.cast(self._network(images), tf.float32)}

    def encoded(self, encoded_images: tf.Tensor) -> Tensors:
        """As `serving_default`, from PNG or JPEG bytes `[B]`; for REST clients.

        Transparent parts become black, as in the web console, except where the model takes four
        channels: a decoder would show what the file holds there unseen. Prediction only: decoders
        differ, so what is certified is pixels, never a file.
        """
        shape = self._smoothing.input_shape

        def decode(data: tf.Tensor) -> tf.Tensor:
            # By its header, before anything is decoded; a small stranger stands in for a large one.
            right = tf.reduce_all(tf.equal(_declared_size(data), shape[:2]))
            data = tf.where(right, data, _STRANGER)
            pixels = tf.io.decode_image(data, channels=shape[2], expand_animations=False)
            message = f"encoded_images must be PNG or JPEG of {shape[0]} x {shape[1]} pixels"
            same = tf.reduce_all(tf.equal(tf.shape(pixels), shape))
            with tf.control_dependencies([tf.debugging.Assert(right & same, [message])]):
                # Through a slice, since an identity would be optimised away with its dependency.
                floats = tf.cast(pixels[: shape[0], : shape[1]], tf.float32) / 255.0
            if shape[2] != 4:
                floats *= _opacity(data)
            return tf.ensure_shape(floats, shape)

        images = tf.map_fn(decode, encoded_images, fn_output_signature=tf.float32)
        return self.serving_default(tf.ensure_shape(images, [None, *shape]))

    def tfmacer_info(self, probe: tf.Tensor) -> Tensors:
        """`smoothing` string `[B]`: the text of `smoothing.json`, one copy a row of `probe`."""
        few = tf.size(probe) <= MAX_PROBES
        message = f"probe must have at most {MAX_PROBES} rows"
        (probe,) = _after([tf.debugging.Assert(few, [message])], probe)
        return {"smoothing": tf.fill(tf.shape(probe), self._text)}


def _in_shape(tensor: tf.Tensor, spec: tf.TensorSpec) -> tf.Tensor:
    """The tensor, or INVALID_ARGUMENT with both shapes."""
    return tf.ensure_shape(tensor, spec.shape)


def _finite(**tensors: tf.Tensor) -> Any:
    """A check, which XLA leaves out where it compiles."""
    finite = [tf.reduce_all(tf.math.is_finite(tensor)) for tensor in tensors.values()]
    message = f"{' and '.join(tensors)} must be finite"
    return tf.debugging.Assert(tf.reduce_all(finite), [message])


def _after(checks: Sequence[Any], *tensors: tf.Tensor) -> list[tf.Tensor]:
    """The tensors, once the checks have passed."""
    # Eagerly, a check has passed or raised by now, and is None.
    with tf.control_dependencies([check for check in checks if check is not None]):
        return [tf.identity(tensor) for tensor in tensors]


def _declared_size(data: tf.Tensor) -> tf.Tensor:
    """Height and width int32 `[2]` that a PNG or a JPEG claims to have; -1 for anything else."""
    head = tf.strings.substr(data, 0, 24)
    # An empty string would have no byte to look at.
    octets = tf.io.decode_raw(head, tf.uint8, fixed_length=24)

    def png() -> tf.Tensor:
        width_height = tf.reshape(tf.cast(octets[16:24], tf.int64), [2, 4])
        sizes = tf.reduce_sum(width_height * [2**24, 2**16, 2**8, 1], axis=1)
        return tf.cast(tf.reverse(tf.minimum(sizes, 2**31 - 1), [0]), tf.int32)

    return tf.case(
        [
            (_starts_with(data, _PNG), png),
            (_starts_with(data, b"\xff\xd8\xff"), lambda: tf.io.extract_jpeg_shape(data)[:2]),
        ],
        default=lambda: tf.constant([-1, -1]),
        exclusive=True,
    )


def _opacity(data: tf.Tensor) -> tf.Tensor:
    """How much is to be seen of each pixel of a PNG or a JPEG, 0 to 1 `[H, W, 1]`."""
    opaque = tf.cond(
        _starts_with(data, _PNG),
        lambda: tf.io.decode_png(data, channels=4)[:, :, 3:],
        lambda: tf.fill([1, 1, 1], tf.constant(255, tf.uint8)),
    )
    return tf.cast(opaque, tf.float32) / 255.0


def _starts_with(data: tf.Tensor, magic: bytes) -> tf.Tensor:
    return tf.equal(tf.strings.substr(data, 0, len(magic)), magic)
