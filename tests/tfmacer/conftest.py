from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_run(once) -> Path:
    """A finished run directory with a small untrained network on mnist5k's shape."""
    return once("tiny_run", _write_tiny_run)


def _write_tiny_run(folder: Path) -> None:
    import keras

    from tfmacer.records.runs import RunDirectory, Smoothing
    from tfmacer.votes.devices import library_versions
    from tfmacer.votes.digests import network_digest

    keras.utils.set_random_seed(11)
    network = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Rescaling(2.0, offset=-1.0),
            keras.layers.AveragePooling2D(4),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    run = RunDirectory(folder)
    network.save(run.model)
    smoothing = Smoothing(
        sigma=0.25,
        num_classes=10,
        input_shape=(28, 28, 1),
        dataset="mnist5k",
        objective="gaussian",
        model_digest=network_digest(run.model, network),
        versions=library_versions(),
    )
    run.smoothing.write_text(smoothing.to_json())


@pytest.fixture(scope="session")
def tiny_export(once, tiny_run) -> Path:
    """`tiny_run`, exported."""
    from export import saved_model

    def make(folder: Path) -> None:
        assert saved_model.main([f"--run_dir={tiny_run}", f"--export_dir={folder}"]) == 0

    return once("tiny_export", make)


@pytest.fixture
def downloads(monkeypatch):
    """What TensorFlow Datasets was asked to download."""
    asked = []
    monkeypatch.setattr("tfmacer.data.tfds_splits._online", lambda: True)
    monkeypatch.setattr(
        "tensorflow_datasets.core.DatasetBuilder.download_and_prepare",
        lambda self, *_, **__: asked.append(self.name),
    )
    return asked
