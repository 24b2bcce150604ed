"""SavedModels that open files, each in another way, to see that none of them is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import variable_pb2
from tensorflow.core.protobuf import saved_model_pb2

_X = tf.TensorSpec([None], tf.float32, name="x")


def save(body: Callable[..., Any], path: Path, module: tf.Module | None = None) -> Path:
    """A SavedModel whose one signature maps x to y by `body`, with a variable."""
    module = module or tf.Module()
    module.v = tf.Variable([1.0])
    serve = tf.function(lambda x: {"y": body(x) + module.v}, input_signature=[_X], autograph=False)
    tf.saved_model.save(module, str(path), signatures={"serving_default": serve})
    return path


def edit(path: Path, change: Callable[[Any], None]) -> Path:
    """Changes the graph of a SavedModel as somebody would who writes such files by hand."""
    file = path / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    change(saved.meta_graphs[0])
    file.write_bytes(saved.SerializeToString())
    return path


def _write(target: str) -> Any:
    return tf.raw_ops.SaveV2(
        prefix=target, tensor_names=["v"], shape_and_slices=[""], tensors=[tf.ones([1])]
    )


def _after(operation: Any, x: tf.Tensor) -> tf.Tensor:
    with tf.control_dependencies([operation]):
        return tf.identity(x)


def saving(path: Path, target: str) -> Path:
    """By the operation that the saver uses."""
    return save(lambda x: _after(_write(target), x), path)


def saving_in_a_branch(path: Path, target: str) -> Path:
    """By the same, in a function of a function."""

    def body(x: tf.Tensor) -> tf.Tensor:
        write = tf.function(lambda: _after(_write(target), tf.ones([1])))
        return x + tf.cond(tf.size(x) > 0, write, lambda: tf.ones([1]))

    return save(body, path)


def writing(path: Path, target: str) -> Path:
    """By the operation for that."""
    return save(lambda x: _after(tf.io.write_file(target, "theirs"), x), path)


def reading(path: Path, target: str) -> Path:
    """By the operation for that, which TensorFlow calls stateless."""
    return save(lambda x: x + tf.strings.to_number(tf.io.read_file(target)), path)


def printing(path: Path, target: str) -> Path:
    """By printing to a file."""
    return save(lambda x: _after(tf.print(x, output_stream=f"file://{target}"), x), path)


def summarising(path: Path, target: str) -> Path:
    """By a writer of summaries."""

    def body(x: tf.Tensor) -> tf.Tensor:
        writer = tf.raw_ops.SummaryWriter()
        made = tf.raw_ops.CreateSummaryFileWriter(
            writer=writer, logdir=target, max_queue=1, flush_millis=1, filename_suffix=""
        )
        with tf.control_dependencies([made]):
            return _after(
                tf.raw_ops.WriteScalarSummary(
                    writer=writer, step=tf.constant(1, tf.int64), tag="x", value=x[0]
                ),
                x,
            )

    return save(body, path)


def iterating(path: Path, target: str) -> Path:
    """By a dataset."""

    def body(x: tf.Tensor) -> tf.Tensor:
        lines = tf.data.TextLineDataset(target)
        return x + lines.reduce(0.0, lambda total, line: total + tf.strings.to_number(line))

    return save(body, path)


def calling_python(path: Path, target: str) -> Path:
    """By a function of Python's."""
    return save(lambda x: tf.numpy_function(lambda a: a, [x], tf.float32), path)


def looking_up(path: Path, target: str) -> Path:
    """By a table read from an asset."""
    words = path.parent / "words.txt"
    words.write_text("one\n")
    module = tf.Module()
    module.table = tf.lookup.StaticHashTable(
        tf.lookup.TextFileInitializer(
            str(words),
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        ),
        -1,
    )
    return save(
        lambda x: x + tf.cast(module.table.lookup(tf.as_string(x)), tf.float32), path, module
    )


class _Initialized(tf.saved_model.experimental.TrackableResource):
    """Writes when the model is loaded."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self._target = target

    def _create_resource(self) -> tf.Tensor:
        return tf.raw_ops.MutableHashTableV2(key_dtype=tf.string, value_dtype=tf.int64)

    def _initialize(self) -> None:
        with tf.control_dependencies([_write(self._target)]):
            tf.raw_ops.Assert(condition=True, data=[""])  # which a function never leaves out


def initializing(path: Path, target: str) -> Path:
    """By the initialiser of a resource: nothing is asked of the model."""
    module = tf.Module()
    module.resource = _Initialized(target)
    handle = module.resource.resource_handle
    size = tf.raw_ops.LookupTableSizeV2
    return save(lambda x: x + tf.cast(size(table_handle=handle), tf.float32), path, module)


def _constant(name: str, value: Any) -> Any:
    node = tf.compat.v1.NodeDef(name=name, op="Const")
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    node.attr["dtype"].type = tf.as_dtype(node.attr["value"].tensor.dtype).as_datatype_enum
    return node


def function_with(meta: Any, op: str) -> Any:
    """The one function that uses an operation."""
    (found,) = [
        function
        for function in meta.graph_def.library.function
        if any(node.op == op for node in function.node_def)
    ]
    return found


def saving_while_restoring(path: Path, target: str) -> Path:
    """In the saver's own function, which every loader of graphs calls."""

    def change(meta: Any) -> None:
        function = function_with(meta, "RestoreV2")
        names = ("to", "names", "slices", "value")
        values = (target, ["v"], [""], [1.0])
        for name, value in zip(names, values, strict=True):
            function.node_def.append(_constant(f"theirs/{name}", value))
        node = function.node_def.add(name="theirs", op="SaveV2")
        node.input.extend(f"theirs/{name}:output:0" for name in names)
        node.attr["dtypes"].list.type.append(tf.float32.as_datatype_enum)
        function.control_ret["theirs"] = "theirs"
        function.signature.control_output.append("theirs")

    return edit(save(lambda x: x, path), change)


def restoring_another_file(path: Path, target: str) -> Path:
    """In the saver's own function: what it reads is not what the loader hands to it."""

    def change(meta: Any) -> None:
        function = function_with(meta, "RestoreV2")
        function.node_def.append(_constant("theirs", target))
        (node,) = [node for node in function.node_def if node.op == "RestoreV2"]
        node.input[0] = "theirs:output:0"

    return edit(save(lambda x: x, path), change)


def saving_under_the_savers_name(path: Path, target: str) -> Path:
    """In a function that is called as those of the saver are."""
    saving_in_a_branch(path, target)

    def change(meta: Any) -> None:
        saver = {node.name: node for node in meta.graph_def.node}[
            meta.saver_def.save_tensor_name.partition(":")[0]
        ].attr["f"].func.name  # fmt: skip
        (old,) = {
            function.signature.name
            for function in meta.graph_def.library.function
            if any(node.op == "SaveV2" for node in function.node_def)
        } - {saver}
        new = "__inference__traced_save_1"
        for function in meta.graph_def.library.function:
            if function.signature.name == old:
                function.signature.name = new
            for node in function.node_def:
                for value in node.attr.values():
                    if value.func.name == old:
                        value.func.name = new

    return edit(path, change)


def serving_the_saver(path: Path, target: str) -> Path:
    """By a signature that is the saver: the caller says where to."""

    def change(meta: Any) -> None:
        signature = meta.signature_def["serving_default"]
        signature.inputs["x"].name = meta.saver_def.filename_tensor_name
        signature.inputs["x"].dtype = tf.string.as_datatype_enum
        signature.outputs["y"].name = meta.saver_def.save_tensor_name

    return edit(save(lambda x: x, path), change)


def calling_the_saver(path: Path, target: str) -> Path:
    """By an initialiser that calls the saver's own function."""

    def change(meta: Any) -> None:
        nodes = {node.name: node for node in meta.graph_def.node}
        saver = nodes[meta.saver_def.save_tensor_name.partition(":")[0]]
        meta.graph_def.node.append(_constant("to", target))
        call = meta.graph_def.node.add(name="theirs", op=saver.op)
        call.CopyFrom(saver)
        call.name = "theirs"
        call.input[0] = "to"
        nodes["NoOp"].input.append("^theirs")

    return edit(save(lambda x: x, path), change)


def standing_in(path: Path, target: str) -> Path:
    """By a function of the saver's that TensorFlow calls for one of the same kind, by device."""
    kind = {"api_implements": "theirs", "api_preferred_device": "GPU"}
    read = tf.function(lambda x: x + 1.0, experimental_attributes=kind, autograph=False)

    def change(meta: Any) -> None:
        library, nodes = meta.graph_def.library, meta.graph_def.node
        (named,) = [each for each in library.function if "api_implements" in each.attr]
        named.signature.is_stateful = True
        function = library.function.add()
        function.CopyFrom(named)
        function.signature.name = "theirs"
        function.attr["api_preferred_device"].s = b"CPU"
        names = ("to", "names", "slices")
        for name, value in zip(names, (target, ["v"], [""]), strict=True):
            function.node_def.append(_constant(name, value))
        write = function.node_def.add(name="write", op="SaveV2")
        write.input.extend([f"{name}:output:0" for name in names])
        write.input.append(function.signature.input_arg[0].name)
        write.attr["dtypes"].list.type.append(tf.float32.as_datatype_enum)
        function.control_ret["write"] = "write"
        function.signature.control_output.append("write")
        (saver,) = [
            node for node in nodes if node.name == meta.saver_def.save_tensor_name.partition(":")[0]
        ]
        saver.input.append("^call")
        nodes.append(_constant("given", [1.0]))
        call = nodes.add(name="call", op="StatefulPartitionedCall", input=["given"])
        call.attr["f"].func.name = "theirs"
        for kinds in ("Tin", "Tout"):
            call.attr[kinds].list.type.append(tf.float32.as_datatype_enum)

    return edit(save(read, path), change)


def _v1(path: Path, initialized: Callable[[], Any]) -> Path:
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        x = v1.placeholder(tf.float32, [None], name="x")
        v1.get_variable("w", initializer=[1.0], use_resource=True)
        v = v1.get_variable("v", initializer=[1.0], use_resource=True)
        y = tf.add(x, v, name="y")
        operation = initialized()
        session.run(v1.global_variables_initializer())
        builder = v1.saved_model.Builder(str(path))
        signature = v1.saved_model.predict_signature_def({"x": x}, {"y": y})
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={"serving_default": signature},
            main_op=operation,
            saver=v1.train.Saver(),
        )
        builder.save()
    return path


def initializing_a_graph(path: Path, target: str) -> Path:
    """By the initialiser of a graph without functions, as TensorFlow 1 writes them."""
    return _v1(path, lambda: _write(target))


def _default(meta: Any, target: str) -> None:
    """Makes a target what the saver opens where nobody tells it what."""
    (node,) = [node for node in meta.graph_def.node if node.name == "save/filename/input"]
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(target))


def initializing_by_the_saver(path: Path, target: str) -> Path:
    """By an initialiser that is an operation of the saver."""

    def change(meta: Any) -> None:
        meta.collection_def["saved_model_main_op"].node_list.value[0] = "save/SaveV2"
        _default(meta, target)

    return edit(_v1(path, tf.no_op), change)


def initializing_a_local_variable(path: Path, target: str) -> Path:
    """By a variable whose initialiser is an operation of the saver."""

    def change(meta: Any) -> None:
        (text,) = [t for t in meta.collection_def["variables"].bytes_list.value if b"w:0" in t]
        for key in ("variables", "trainable_variables"):
            meta.collection_def[key].bytes_list.value.remove(text)
        variable = variable_pb2.VariableDef.FromString(text)
        variable.initializer_name = "save/SaveV2"
        local = meta.collection_def["local_variables"].bytes_list.value
        local.append(variable.SerializeToString())
        # Where there is no initialiser, a loader initialises these.
        del meta.collection_def["saved_model_main_op"]
        _default(meta, target)

    return edit(_v1(path, tf.no_op), change)


def honest_v1(path: Path) -> Path:
    """A graph without functions that only computes."""
    return _v1(path, tf.no_op)


# By what must be said of each: an operation, or where it stands.
ALL = {
    saving: "SaveV2 outside the saver",
    saving_in_a_branch: "SaveV2 outside the saver",
    writing: "WriteFile",
    reading: "ReadFile",
    printing: "PrintV2",
    summarising: "CreateSummaryFileWriter",
    iterating: "TextLineDataset|ReduceDataset",
    calling_python: "PyFunc",
    looking_up: "InitializeTableFromTextFileV2",
    initializing: "SaveV2 outside the saver",
    saving_while_restoring: "RestoreV2, SaveV2 outside the saver",
    restoring_another_file: "RestoreV2 outside the saver",
    saving_under_the_savers_name: r"SaveV2 outside the saver \(function __inference__traced_save_1",
    serving_the_saver: "of the saver is used by signature serving_default",
    calling_the_saver: "outside the saver",
    standing_in: r"SaveV2 outside the saver \(api_implements, theirs\)",
    initializing_a_graph: r"SaveV2 outside the saver \(SaveV2\)",
    initializing_by_the_saver: "of the saver is used by collection saved_model_main_op",
    initializing_a_local_variable: "of the saver is used by collection local_variables",
}
