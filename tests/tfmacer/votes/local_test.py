import dataclasses
import itertools
import json

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from small_exports import small_smoothing, write_small_export

from tfmacer.common.errors import Notice, UserError
from tfmacer.noise.generators import GENERATORS
from tfmacer.records.runs import RunDirectory, Smoothing
from tfmacer.votes import counting, digests, local
from tfmacer.votes.source import ESTIMATE, SELECT, row_seed

SHAPE = (6, 5, 2)
SMOOTHING = Smoothing(
    sigma=0.5, num_classes=3, input_shape=SHAPE, model_digest="test", block_size=64
)


@pytest.fixture(scope="module")
def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Conv2D(4, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )


@pytest.fixture(scope="module")
def source(network: keras.Model) -> local.NetworkVotes:
    return local.NetworkVotes(network, SMOOTHING)


def rows(count: int) -> dict[str, np.ndarray]:
    images = np.random.default_rng(1).random((count, *SHAPE), np.float32)
    seeds = np.stack([row_seed(7, ESTIMATE, i) for i in range(count)])
    return {"images": images, "seeds": seeds}


def ask(source, images, seeds, offsets, num_samples, **kwargs):
    return source.sample(
        images, seeds, np.array(offsets, np.int32), np.array(num_samples, np.int32), **kwargs
    )


def tensorflows_normals(seed):
    return tf.random.stateless_normal((64, *SHAPE), seed, alg="philox").numpy()


def box_muller_by_numpy(seed):
    """60 numbers of each of the 64 draws are 30 pairs."""
    length_seed, angle_seed = tf.random.split(seed, 2, alg="philox")
    bits = [
        tf.random.stateless_uniform((64, 30), seed, None, None, dtype, alg="philox").numpy()
        for seed, dtype in ((length_seed, tf.int64), (angle_seed, tf.int32))
    ]
    length = np.sqrt(-2 * np.log(np.abs(bits[0].astype(np.float64)) / 2**63))
    angle = np.pi * bits[1] / 2**31
    both = np.concatenate([length * np.cos(angle), length * np.sin(angle)], axis=1)
    return both.reshape(64, *SHAPE).astype(np.float32)


@pytest.mark.parametrize(
    ("generator", "normals"),
    [("philox", tensorflows_normals), ("philox-boxmuller", box_muller_by_numpy)],
)
def test_counts_are_those_of_noise_drawn_and_counted_by_hand(network, generator, normals):
    row = rows(1)
    source = local.NetworkVotes(network, dataclasses.replace(SMOOTHING, generator=generator))
    votes = ask(source, **row, offsets=[100], num_samples=[150], beta=2.0)
    seed = row["seeds"][0].astype(np.int64)
    folded = [tf.random.experimental.stateless_fold_in(seed, np.int64(b)) for b in range(4)]
    noisy = np.concatenate([row["images"] + 0.5 * normals(each) for each in folded])[100:250]
    logits = network(noisy, training=False).numpy().astype(np.float64)
    soft = np.exp(2 * logits) / np.exp(2 * logits).sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(votes.counts[0], np.bincount(logits.argmax(1), minlength=3))
    np.testing.assert_allclose(votes.sums[0], soft.sum(0), rtol=1e-5)
    np.testing.assert_allclose(votes.square_sums[0], (soft**2).sum(0), rtol=1e-5)


@pytest.mark.parametrize("cuts", [(0, 64, 300), (0, 1, 63, 64, 65, 200, 300), (0, 299, 300)])
def test_counts_add_over_any_split_of_the_stream(source, cuts):
    row = rows(1)
    whole = ask(source, **row, offsets=[0], num_samples=[300])
    parts = [
        ask(source, **row, offsets=[start], num_samples=[stop - start])
        for start, stop in itertools.pairwise(cuts)
    ]
    np.testing.assert_array_equal(sum(p.counts for p in parts), whole.counts)
    np.testing.assert_allclose(sum(p.sums for p in parts), whole.sums, atol=1e-9)
    np.testing.assert_allclose(sum(p.square_sums for p in parts), whole.square_sums, atol=1e-9)


def test_a_row_does_not_depend_on_the_rows_beside_it(source):
    batch = rows(4)
    together = ask(source, **batch, offsets=[0, 5, 64, 0], num_samples=[200, 10, 64, 0])
    for i, (offset, count) in enumerate([(0, 200), (5, 10), (64, 64), (0, 0)]):
        alone = ask(
            source,
            batch["images"][i : i + 1],
            batch["seeds"][i : i + 1],
            offsets=[offset],
            num_samples=[count],
        )
        np.testing.assert_array_equal(together.counts[i], alone.counts[0])
        np.testing.assert_allclose(together.sums[i], alone.sums[0], atol=1e-9)
    assert together.counts.sum(axis=1).tolist() == [200, 10, 64, 0]


def test_a_callable_in_another_library_gives_the_same_votes(source, network):
    # In NumPy throughout: TensorFlow inside the callable would wait for itself on one core.
    conv, normalization, *_, dense = network.layers
    kernel, bias, matrix, offset = (w.numpy() for w in (*conv.weights, *dense.weights))
    scale = 1 / np.sqrt(1 + normalization.epsilon)  # moving mean 0 and variance 1, untrained

    def function(images: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2))
        features = np.maximum(np.einsum("nhwcij,ijcf->nhwf", windows, kernel) + bias, 0) * scale
        return (features.reshape(len(images), -1) @ matrix + offset).astype(np.float32)

    row = rows(2)
    other = ask(
        local.from_callable(function, SMOOTHING), **row, offsets=[0, 0], num_samples=[500, 500]
    )
    mine = ask(source, **row, offsets=[0, 0], num_samples=[500, 500])
    np.testing.assert_array_equal(other.counts, mine.counts)


def test_draws_without_finite_logits_cast_no_vote():
    def sometimes_broken(images: tf.Tensor) -> tf.Tensor:
        logits = images[:, 0, 0, :1] * [1.0, -1.0, 0.5]
        return tf.where(images[:, 1, 1, :1] > 0.5, np.nan, logits)

    votes = ask(
        local.NetworkVotes(sometimes_broken, SMOOTHING), **rows(1), offsets=[0], num_samples=[1000]
    )
    assert 100 < votes.counts.sum() < 900
    assert np.isfinite(votes.sums).all()


@pytest.mark.parametrize("generator", GENERATORS)
def test_noise_is_gaussian_in_pixels_and_differs_between_blocks_and_streams(generator):
    smoothing = dataclasses.replace(SMOOTHING, generator=generator)
    image = tf.fill(SHAPE, 0.25)
    seeds = [row_seed(0, stage, i) for stage in (SELECT, ESTIMATE) for i in range(2)]
    blocks = [
        counting.noisy_block(image, tf.constant(seed), tf.constant(b, tf.int64), smoothing).numpy()
        - 0.25
        for seed in seeds
        for b in (0, 1, 2**40)
    ]
    pooled = np.concatenate([b.ravel() for b in blocks])
    # 46,080 draws; a p-value under 1e-4 would come once in 10,000 seeds, and the seed is fixed.
    assert scipy.stats.kstest(pooled / 0.5, "norm").pvalue > 1e-4
    correlations = np.corrcoef([b.ravel() for b in blocks])
    # 3,840 pairs each: standard deviation 0.016.
    assert np.abs(correlations[~np.eye(len(blocks), dtype=bool)]).max() < 0.08
    between_pixels = np.corrcoef(np.concatenate(blocks).reshape(len(blocks) * 64, -1).T)
    assert np.abs(between_pixels[~np.eye(len(between_pixels), dtype=bool)]).max() < 0.2


def test_seed_of_a_block_keeps_64_bits():
    """Of 64-bit values only one in 2^31 fits into 32 bits; none of 20 may."""
    folded = [counting.block_seed(tf.constant([3, i]), tf.constant(5, tf.int64)) for i in range(20)]
    assert np.abs(np.stack(folded)[:, 0]).min() >= 2**31
    assert len(np.unique(np.stack(folded)[:, 0])) == 20


def test_row_seed_is_the_documented_hash():
    """SHA-256 of `tfmacer/1|0|select|0` begins 8 bytes, read as two little-endian int32."""
    import hashlib

    digest = hashlib.sha256(b"tfmacer/1|12|select|345").digest()
    expected = [int.from_bytes(digest[i : i + 4], "little", signed=True) for i in (0, 4)]
    assert row_seed(12, SELECT, 345).tolist() == expected


def test_an_unknown_family_is_refused(network):
    broken = Smoothing(
        sigma=0.5, num_classes=3, input_shape=SHAPE, model_digest="t", noise_family="cauchy"
    )
    with pytest.raises(UserError, match="noise_family must be one of gaussian.*'cauchy'"):
        local.NetworkVotes(network, broken)


def make_run(path, network) -> RunDirectory:
    run = RunDirectory(path)
    path.mkdir()
    network.save(run.model)
    smoothing = Smoothing(
        sigma=0.5,
        num_classes=3,
        input_shape=SHAPE,
        model_digest=digests.network_digest(run.model, network),
    )
    run.smoothing.write_text(smoothing.to_json())
    return run


def test_a_run_directory_is_a_source_and_its_network_is_held_to_its_digest(tmp_path, network):
    run = make_run(tmp_path / "run", network)
    votes = ask(local.from_run(run.root), **rows(1), offsets=[0], num_samples=[100])
    assert votes.counts.sum() == 100
    other = dataclasses.replace(run.read_smoothing(), model_digest="0" * 64)
    run.smoothing.write_text(other.to_json())
    with pytest.raises(UserError, match="was changed after the run"):
        local.from_run(run.root)


def test_the_digest_outlives_loading_and_depends_on_every_weight(tmp_path, network):
    path = tmp_path / "model.keras"
    network.save(path)
    loaded = keras.models.load_model(path)
    digest = digests.network_digest(path, network)
    assert digests.network_digest(path, loaded) == digest
    for variable in loaded.weights:
        old = variable.numpy()
        new = old.copy()
        new.flat[-1] = np.nextafter(new.flat[-1], np.float32(9))
        variable.assign(new)
        assert digests.network_digest(path, loaded) != digest
        variable.assign(old)


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [((28, 28, 1), 32), ((32, 32, 3), 32), ((64, 64, 3), 16), ((224, 224, 3), 1)],
)
def test_blocks_in_flight_are_bounded_by_memory(shape, blocks):
    """A layer of one block is 256 x H x W x 64 x 4 bytes: 268 MB for 64 x 64 pixels."""
    smoothing = Smoothing(sigma=1.0, num_classes=2, input_shape=shape, model_digest="t")
    assert counting.parallel_blocks(smoothing) == blocks


def test_an_export_from_before_the_seal_is_loaded_with_a_notice(tmp_path, monkeypatch):
    def first_version(smoothing):
        return json.dumps(dataclasses.asdict(smoothing) | {"format_version": 1}, indent=2) + "\n"

    with monkeypatch.context() as patch:
        patch.setattr(Smoothing, "to_json", first_version)
        write_small_export(tmp_path / "1")
    with pytest.warns(Notice, match=f"^{tmp_path / '1'}: written by an earlier version"):
        assert local.SavedModelVotes(tmp_path).smoothing == small_smoothing()


def test_newest_version_is_chosen_by_number(tmp_path):
    for name in ("2", "10", "9", "v11", "²"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").touch()
    (tmp_path / "12").mkdir()
    assert local.newest_version(tmp_path).name == "10"
    assert local.newest_version(tmp_path / "9").name == "9"
    with pytest.raises(UserError, match="no SavedModel"):
        local.newest_version(tmp_path / "12")
