"""What may be loaded: graphs that compute, whoever wrote them; never one that opens a file."""

import os
import re

import keras
import models_that_write
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from serving.model_server.servable import Servable, Threads
from serving.model_server.status import StatusError
from tfmacer import certify, verify
from tfmacer.common.errors import UserError
from tfmacer.votes import devices, local, ops
from tfmacer.votes.admission import check_saved_model, objections

layers = keras.layers


@pytest.mark.parametrize("make", models_that_write.ALL, ids=lambda make: make.__name__)
def test_a_model_that_opens_files_is_refused_before_it_runs(make, tmp_path):
    target = tmp_path / "theirs"
    path = make(tmp_path / "model", str(target))
    # Whatever saving it here has left.
    for left in tmp_path.glob("theirs*"):
        tf.io.gfile.rmtree(str(left)) if left.is_dir() else left.unlink()
    before = sorted(tmp_path.rglob("*"))
    wanted = rf"{re.escape(str(path))}: not loaded, since a model may only compute: .*"
    wanted += f"({models_that_write.ALL[make]})"
    with pytest.raises(UserError, match=wanted) as caught:
        local.SavedModelVotes(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(StatusError, match="a model may only compute") as refused:
        Servable(path, Threads(1, 1))
    assert (refused.value.code.name, refused.value.final) == ("FAILED_PRECONDITION", True)
    assert sorted(tmp_path.rglob("*")) == before


def _serve(path):
    Servable(path, Threads(1, 1), any_ops=True).close()


def _ask(path):
    tf.saved_model.load(str(path)).signatures["serving_default"](x=tf.ones([1]))


@pytest.mark.parametrize(
    ("make", "load"),
    [
        (models_that_write.initializing, _serve),
        (models_that_write.initializing, tf.saved_model.load),
        (models_that_write.initializing_a_graph, tf.saved_model.load),
        (models_that_write.saving_while_restoring, _serve),
        (models_that_write.calling_the_saver, _serve),
        (models_that_write.standing_in, _ask),
        (models_that_write.initializing_by_the_saver, _serve),
        (models_that_write.initializing_a_local_variable, tf.saved_model.load),
    ],
    ids=lambda value: value.__name__,
)
def test_such_models_do_write_where_nobody_looks(make, load, tmp_path):
    """Else the test above would show nothing."""
    path = make(tmp_path / "model", str(tmp_path / "theirs"))
    for left in tmp_path.glob("theirs*"):
        left.unlink()
    load(path)
    assert list(tmp_path.glob("theirs*"))


def test_commands_say_so_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(devices, "use_threads", lambda *_: None)
    path = models_that_write.writing(tmp_path / "model", str(tmp_path / "theirs"))
    log = tmp_path / "log.tsv"
    certify_flags = [f"--saved_model={path}", f"--out={log}", "--dataset=mnist5k"]
    audit = tmp_path / "audit.jsonl"
    audit.write_text("")
    verify_flags = [f"--audit_log={audit}", "--replay", f"--saved_model={path}"]
    for command, flags in ((certify, certify_flags), (verify, verify_flags)):
        assert command.main(flags) == 1
        (line,) = [text for text in capsys.readouterr().err.splitlines() if "error: " in text]
        assert line.startswith(f"error: {path}: not loaded, since a model may only compute: WriteF")
    assert not (tmp_path / "theirs").exists()
    assert not log.exists()


def _convolutions():
    return [
        layers.Rescaling(1 / 255),
        layers.Normalization(mean=[0.1] * 3, variance=[1.0] * 3),
        layers.Conv2D(4, 3, activation="relu"),
        layers.BatchNormalization(),
        layers.MaxPooling2D(),
        layers.Dropout(0.5),
        layers.DepthwiseConv2D(3, activation="swish"),
        layers.SeparableConv2D(4, 3, padding="same"),
        layers.Conv2DTranspose(4, 3),
        layers.UpSampling2D(),
        layers.LayerNormalization(),
        layers.GroupNormalization(2),
        layers.PReLU(),
        layers.GlobalAveragePooling2D(),
        layers.Dense(10, activation="gelu"),
    ]


def _augmented():
    return [
        layers.RandomFlip(),
        layers.RandomRotation(0.1),
        layers.RandomTranslation(0.1, 0.1),
        layers.RandomContrast(0.1),
        layers.Resizing(8, 8),
        layers.GaussianNoise(0.1),
        layers.Flatten(),
        layers.Dense(3),
    ]


def _loops():
    return [
        layers.Reshape((12, 36)),
        layers.Bidirectional(layers.LSTM(3, return_sequences=True)),
        layers.GRU(3, return_sequences=True),
        layers.SimpleRNN(3),
        layers.Dense(3),
    ]


def _attention():
    images = keras.Input((12, 12, 3))
    x = layers.Reshape((36, 4))(layers.Conv2D(4, 2, 2)(images))
    x = layers.Add()([x, layers.MultiHeadAttention(2, 2)(x, x)])
    return keras.Model(images, layers.Dense(3)(keras.ops.mean(layers.LayerNormalization()(x), 1)))


def _words():
    words = keras.Input((1,), dtype="string")
    look_up = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")
    return keras.Model(words, look_up(words))


def _sequential(made):
    return lambda: keras.Sequential([keras.Input((12, 12, 3)), *made()])


NETWORKS = {
    "convolutions": _sequential(_convolutions),
    "augmented": _sequential(_augmented),
    "loops": _sequential(_loops),
    "attention": _attention,
    "words": _words,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_keras_exports_is_loaded(name, tmp_path):
    network = NETWORKS[name]()
    network.export(str(tmp_path / "exported"), verbose=False)
    check_saved_model(tmp_path / "exported")
    Servable(tmp_path / "exported", Threads(1, 1)).close()
    if name != "augmented":  # Keras' seeds cannot be saved so
        tf.saved_model.save(network, str(tmp_path / "saved"))
        check_saved_model(tmp_path / "saved")


def test_a_trained_network_is_loaded(tmp_path):
    network = NETWORKS["convolutions"]()
    network.compile("adam", "mse")
    network.fit(np.zeros((2, 12, 12, 3)), np.zeros((2, 10)), verbose=0)
    network.export(str(tmp_path / "1"), verbose=False)
    check_saved_model(tmp_path / "1")


def test_exports_of_ours_are_loaded(small_export):
    check_saved_model(small_export)


def test_graphs_of_tensorflow_1_are_loaded(tmp_path):
    path = models_that_write.honest_v1(tmp_path / "1")
    check_saved_model(path)
    servable = Servable(path, Threads(1, 1))
    x = tf.make_tensor_proto(np.array([2.0], np.float32))
    assert servable.predict("", {"x": x})["y"].tolist() == [3.0]
    servable.close()


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    return models_that_write.save(lambda x: x, tmp_path_factory.mktemp("honest") / "1")


@pytest.fixture
def copy(honest, tmp_path):
    tf.io.gfile.makedirs(str(tmp_path / "1"))
    for path in honest.rglob("*"):
        to = tmp_path / "1" / path.relative_to(honest)
        to.mkdir() if path.is_dir() else to.write_bytes(path.read_bytes())
    assert objections(tmp_path / "1") == []
    return tmp_path / "1"


def _serving(meta):
    functions = meta.graph_def.library.function
    return next(each for each in functions if "signature_wrapper" in each.signature.name)


@pytest.mark.parametrize(
    "op",
    [
        "DebugIdentityV3",
        "XlaHostCompute",
        "RpcCall",
        "ImmutableConst",
        "EagerPyFunc",
        "PyFuncStateless",
        "ReadFile",
        "MatchingFiles",
        "TFRecordDatasetV2",
        "MakeIterator",
        "SaveDatasetV2",
        "RemoteCall",
        "TPUPartitionedCall",
        "XlaCallModule",
        "XlaCustomCallV2",
        "DecodeProtoV2",
        "LookupTableExport2",
        "Save",
        "SaveSlices",
        "Restore",
        "RestoreSlice",
        "WriteGraphSummary",
        "TextLineReaderV2",
        "GetSessionTensor",
        "NoSuchOperation",
    ],
)
@pytest.mark.parametrize("place", ["the graph", "a function"])
def test_an_operation_that_is_not_listed_is_named_with_its_place(copy, op, place):
    def change(meta):
        if place == "the graph":
            meta.graph_def.node.add(name="theirs", op=op)
        else:
            _serving(meta).node_def.add(name="theirs", op=op)

    (line,) = objections(models_that_write.edit(copy, change))
    function = "" if place == "the graph" else " of function __inference_signature_wrapper_"
    assert line.startswith(f"{op} (node theirs{function}")


def _nested(meta):
    """The saver's function, named in an attribute of a function in an attribute."""
    saver = models_that_write.function_with(meta, "SaveV2").signature.name
    function = _serving(meta)
    node = function.node_def.add(name="theirs", op="PartitionedCall")
    node.attr["f"].func.name = function.signature.name
    node.attr["f"].func.attr["g"].list.func.add(name="").attr["h"].func.name = saver


def _by_name(meta):
    """The saver's function as an operation."""
    saver = models_that_write.function_with(meta, "SaveV2").signature.name
    _serving(meta).node_def.add(name="theirs", op=saver)


def _as_object(meta):
    """The saver's function as a method of the model."""
    saver = models_that_write.function_with(meta, "SaveV2").signature.name
    node = meta.object_graph_def.nodes.add()
    node.bare_concrete_function.concrete_function_name = saver


def _as_gradient(meta):
    saver = models_that_write.function_with(meta, "SaveV2").signature.name
    meta.graph_def.library.gradient.add(function_name="f", gradient_func=saver)


def _without_saver(meta):
    meta.ClearField("saver_def")


def _save_as_restore(meta):
    """What loaders run is the saving."""
    meta.saver_def.restore_op_name = meta.saver_def.save_tensor_name.partition(":")[0]


def _used_by_a_node(meta):
    node = meta.graph_def.node.add(name="theirs", op="Identity")
    node.input.append(meta.saver_def.save_tensor_name.partition(":")[0])


def _missing(meta):
    _serving(meta).node_def.add(name="theirs", op="PartitionedCall").attr["f"].func.name = "gone"


def _handle(meta):
    node = _serving(meta).node_def.add(name="theirs", op="Const")
    node.attr["value"].tensor.dtype = tf.resource.as_datatype_enum


def _named_as_an_operation(meta):
    meta.graph_def.library.function.add().signature.name = "WriteFile"
    _serving(meta).node_def.add(name="theirs", op="WriteFile")


def _twice(meta):
    meta.graph_def.library.function.add().CopyFrom(_serving(meta))


def _asset(meta):
    meta.asset_file_def.add(filename="../../secret").tensor_info.name = "x:0"


def _old_asset(meta):
    asset = type(meta.asset_file_def.add())(filename="/etc/passwd")
    meta.ClearField("asset_file_def")
    meta.collection_def["saved_model_assets"].any_list.value.add().Pack(asset)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (_nested, r".*SaveV2.* outside the saver \(function __inference__traced_save"),
        (_by_name, r".*SaveV2.* outside the saver \(function __inference__traced_save"),
        (_as_object, r".*SaveV2.* outside the saver \(function __inference__traced_save"),
        (_as_gradient, r".*SaveV2.* outside the saver \(function __inference__traced_save"),
        (_without_saver, "RestoreV2 outside the saver"),
        (_save_as_restore, r"MergeV2Checkpoints, SaveV2, ShardedFilename outside the saver"),
        (_used_by_a_node, "what the saver reads or writes is used by node theirs"),
        (_missing, r"gone, a function that it does not have \(node theirs of function"),
        (_handle, r"a constant that is a handle \(node theirs of function"),
        (_named_as_an_operation, "function WriteFile has the name of an operation"),
        (_twice, "two functions have one name"),
        (_asset, "asset '../../secret' is not below it"),
        (_old_asset, "asset '/etc/passwd' is not below it"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_other_ways_around_are_closed(copy, change, line):
    found = objections(models_that_write.edit(copy, change))
    assert any(re.match(line, text) for text in found), found


def test_files_lie_below_the_directory(copy, tmp_path):
    (tmp_path / "secret").write_text("secret")
    index = copy / "variables" / "variables.index"
    data = copy / "variables" / "within"
    data.write_bytes(index.read_bytes())
    index.unlink()
    index.symlink_to(data)
    assert objections(copy) == []
    index.unlink()
    index.symlink_to(tmp_path / "secret")
    assert objections(copy) == [f"variables/variables.index leads out of it, to {tmp_path}/secret"]
    index.unlink()
    os.mkfifo(index)
    assert objections(copy) == ["variables/variables.index is no file"]
    index.unlink()
    (copy / "assets").rmdir()
    (copy / "assets").symlink_to(tmp_path)
    assert objections(copy) == [f"assets leads out of it, to {tmp_path}"]
    # A directory of versions may itself be led to.
    (tmp_path / "link").symlink_to(copy.parent / "1")
    (copy / "assets").unlink()
    assert objections(tmp_path / "link") == []


@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_what_never_ends_is_not_read(copy, kind):
    file = copy / "saved_model.pb"
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        with file.open("wb") as sparse:
            sparse.truncate(2**40)
    wanted = {
        "pipe": "saved_model.pb is no file$",
        "device": "saved_model.pb leads out of it, to /dev/zero$",
        "large": r"saved_model\.pb: 1099511627776 bytes, a SavedModel has 2147483647 at most$",
    }
    with pytest.raises(UserError, match=wanted[kind]):
        check_saved_model(copy)


def test_only_the_bytes_that_were_looked_at_are_loaded(copy):
    """The loader prefers `saved_model.pb` to the text beside it."""
    (copy / "saved_model.pbtxt").write_text(
        "meta_graphs { graph_def { node { op: 'WriteFile' } } }"
    )
    check_saved_model(copy)
    assert tf.saved_model.load(str(copy)).signatures["serving_default"](x=tf.ones([1]))["y"] == 2
    (copy / "saved_model.pb").unlink()
    with pytest.raises(UserError, match=r"saved_model\.pb: cannot be read"):
        check_saved_model(copy)
    with pytest.raises(UserError, match="no SavedModel here"):
        local.SavedModelVotes(copy)


def test_what_is_no_saved_model(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(UserError, match=r"saved_model\.pb: cannot be read"):
        check_saved_model(tmp_path)
    with pytest.raises(StatusError, match=r"saved_model\.pb: cannot be read") as caught:
        Servable(tmp_path, Threads(1, 1))
    assert not caught.value.final  # somebody may be copying it


def test_the_list_names_operations_that_take_no_name_of_a_file():
    """Independently of how the list was made: what a file's operations are told, none here is."""
    telling = re.compile(r"file|path|dir(_|$)|url|address|prefix|server|descriptor|token")
    for name in ops.COMPUTING:
        definition = op_def_registry.get(name)
        assert definition is not None, name
        told = [argument.name for argument in (*definition.input_arg, *definition.attr)]
        assert not [text for text in told if telling.search(text)], name
    for name in ops.SAVING | ops.RESTORING:
        told = [argument.name for argument in op_def_registry.get(name).input_arg]
        assert [text for text in told if telling.search(text)] or name == "ShardedFilename"
    assert not ops.COMPUTING & (ops.SAVING | ops.RESTORING)
