"""What of a SavedModel may be loaded: decided from its bytes, before TensorFlow runs any of it.

A graph may compute (`ops.py`) and nothing else, in the graph itself and in every function of its
library, used or not. Files are the saver's: the operations that open them stand in what the
`saver_def` names and nowhere else, nothing but the loader's restoring gets to them, and restoring
reads the file that the loader hands to it.
"""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow.core.framework import tensor_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow.python.framework import op_def_registry

from tfmacer.common.errors import UserError
from tfmacer.votes.ops import COMPUTING, RESTORING, SAVING

FILE_NAME = "saved_model.pb"
# A protocol buffer's own limit.
_MOST_BYTES = 2**31 - 1
# How many objections are told.
_NAMED = 3
# Handles to what lives elsewhere in the process: no constant is one.
_HANDLES = (types_pb2.DT_RESOURCE, types_pb2.DT_VARIANT)
_FILES = SAVING | RESTORING
_ALLOWED = COMPUTING | _FILES
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
# Of functions with one value of it, TensorFlow calls by device another one than is named.
_REPLACES = "api_implements"
# Where a function is named by what is no node: an object of the model, or a gradient.
_ELSEWHERE = ""


class NotAdmittedError(UserError):
    """A SavedModel that was read, and is refused as long as its bytes are the same."""


def check_saved_model(directory: Path) -> None:
    """Refuses a SavedModel that does anything but compute.

    Args:
      directory: holds `saved_model.pb`.

    Raises:
      NotAdmittedError: it leads out of its directory, or uses an operation that is not allowed
        where it stands.
      UserError: it cannot be read.
    """
    if found := objections(directory):
        more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise NotAdmittedError(
            f"{directory}: not loaded, since a model may only compute: "
            f"{'; '.join(found[:_NAMED])}{more}"
        )


def objections(directory: Path) -> list[str]:
    """What keeps a SavedModel from being loaded, a line each; raises UserError if unreadable."""
    if stray := list(_stray_files(directory)):
        return stray  # unread: a pipe or a device may never end
    path = directory / FILE_NAME
    saved = saved_model_pb2.SavedModel()
    try:
        if (size := path.stat().st_size) > _MOST_BYTES:
            raise UserError(f"{path}: {size} bytes, a SavedModel has {_MOST_BYTES} at most")
        saved.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    graphs = (_MetaGraph(meta).objections() for meta in saved.meta_graphs)
    return list(itertools.chain.from_iterable(graphs))


def _stray_files(directory: Path) -> Iterator[str]:
    """What is no regular file below the directory itself."""
    root = os.path.realpath(directory)
    for folder, folders, files in os.walk(directory):
        for path in (os.path.join(folder, name) for name in (*folders, *files)):
            real = os.path.realpath(path)
            if os.path.commonpath([root, real]) != root:
                yield f"{os.path.relpath(path, directory)} leads out of it, to {real}"
            elif not (os.path.isfile(path) or os.path.isdir(path)):
                yield f"{os.path.relpath(path, directory)} is no file"


class _MetaGraph:
    """One graph with its functions, and who may open files in it."""

    def __init__(self, meta: meta_graph_pb2.MetaGraphDef) -> None:
        self._meta = meta
        self._nodes = {node.name: node for node in meta.graph_def.node}
        self._functions = {f.signature.name: f for f in meta.graph_def.library.function}
        # File operations in each function, and from where each function is called.
        self._opened: dict[str, set[str]] = {}
        self._callers: dict[str, list[str]] = {}

    def objections(self) -> Iterator[str]:
        yield from self._assets()
        library = self._meta.graph_def.library
        if len(self._functions) < len(library.function):
            yield "two functions have one name"
        if len(self._nodes) < len(self._meta.graph_def.node):
            yield "two nodes have one name"
        for node in self._meta.graph_def.node:
            yield from self._of_node(node, f"node {node.name}", caller=node.name)
        for name, function in self._functions.items():
            if op_def_registry.get(name) is not None:
                yield f"function {name} has the name of an operation"
            for node in function.node_def:
                where = f"node {node.name} of function {name}"
                yield from self._of_node(node, where, caller=_ELSEWHERE)
            if opened := {node.op for node in function.node_def} & _FILES:
                self._opened[name] = opened
                if _REPLACES in function.attr:
                    yield f"{', '.join(sorted(opened))} outside the saver ({_REPLACES}, {name})"
        for name in _named_elsewhere(self._meta):
            self._callers.setdefault(name, []).append(_ELSEWHERE)
        yield from self._saver()

    def _of_node(self, node: Any, where: str, *, caller: str) -> Iterator[str]:
        """What is wrong with a node by itself; notes which functions it calls."""
        if node.op in self._functions:
            self._callers.setdefault(node.op, []).append(caller)
        elif node.op not in _ALLOWED:
            yield f"{node.op} ({where})"
        for part in _parts(node.attr):
            if isinstance(part, tensor_pb2.TensorProto):
                if part.dtype in _HANDLES:
                    yield f"a constant that is a handle ({where})"
            elif part.name:
                self._callers.setdefault(part.name, []).append(caller)
                if part.name not in self._functions:
                    yield f"{part.name}, a function that it does not have ({where})"

    def _saver(self) -> Iterator[str]:
        """Operations on files that are not the saver's, or that something else gets to."""
        saver = self._meta.saver_def
        saving = self._reached([_node_name(saver.save_tensor_name)], self._inputs)
        restoring = self._reached([_node_name(saver.restore_op_name)], self._inputs)
        file_nodes = []
        for node in self._meta.graph_def.node:
            called = [name for name in self._opened if node.name in self._callers.get(name, ())]
            opened = {node.op} & _FILES
            opened = opened.union(*(self._opened[name] for name in called))
            if not opened:
                continue
            file_nodes.append(node.name)
            reads = opened <= RESTORING and node.name in restoring and self._reads_prefix(node)
            writes = opened <= SAVING and node.name in saving - restoring
            if not (reads or writes):
                place = f"function {called[0]}, called by node {node.name}" if called else node.name
                yield f"{', '.join(sorted(opened))} outside the saver ({place})"
        for name, opened in self._opened.items():
            callers = self._callers.get(name, [])
            if len(callers) != 1 or callers[0] == _ELSEWHERE:
                yield f"{', '.join(sorted(opened))} outside the saver (function {name})"
        yield from self._misused(file_nodes, saving | restoring)

    def _reads_prefix(self, node: Any) -> bool:
        """Whether all that a node restores is from the file that the loader names."""
        prefix = _tensor_name(self._meta.saver_def.filename_tensor_name)
        given = [_tensor_name(name) for name in node.input]
        if node.op in RESTORING:
            return given[:1] == [prefix]
        called = [name for name in self._opened if node.name in self._callers.get(name, ())]
        if len(called) != 1 or node.op not in (*_CALLS, called[0]):
            return False
        function = self._functions[called[0]]
        handed = {
            argument.name
            for argument, tensor in zip(function.signature.input_arg, given, strict=False)
            if tensor == prefix
        }
        restores = [each for each in function.node_def if each.op in RESTORING]
        return all(each.input[:1] and each.input[0] in handed for each in restores)

    def _misused(self, file_nodes: list[str], saver: set[str]) -> Iterator[str]:
        """What gets to the nodes that open files, besides the saver."""
        users: dict[str, list[str]] = {}
        for name in self._nodes:
            for source in self._inputs(name):
                users.setdefault(source, []).append(name)
        behind = self._reached(file_nodes, lambda name: users.get(name, ()))
        if others := sorted(behind - saver):
            yield f"what the saver reads or writes is used by node {others[0]}"
        for kind, names in _roots(self._meta):
            if used := sorted(behind & names):
                yield f"node {used[0]} of the saver is used by {kind}"
        # Of protocol buffers of many kinds: a name in one of them is a use of it.
        for key, collection in self._meta.collection_def.items():
            texts = [*collection.bytes_list.value, *(v.value for v in collection.any_list.value)]
            # These describe savers; no loader runs them.
            if key != "savers" and any(name.encode() in text for name in behind for text in texts):
                yield f"a node of the saver is used by collection {key}"

    def _assets(self) -> Iterator[str]:
        assets = list(self._meta.asset_file_def)
        if (key := "saved_model_assets") in self._meta.collection_def:
            for value in self._meta.collection_def[key].any_list.value:
                assets.append(meta_graph_pb2.AssetFileDef())
                if not value.Unpack(assets[-1]):
                    yield f"collection {key} holds something else"
        for asset in assets:
            path = PurePosixPath(asset.filename)
            if path.is_absolute() or ".." in path.parts or "://" in asset.filename:
                yield f"asset {asset.filename!r} is not below it"

    def _inputs(self, name: str) -> Iterable[str]:
        node = self._nodes.get(name)
        return [_node_name(each) for each in node.input] if node is not None else ()

    @staticmethod
    def _reached(roots: Iterable[str], step: Callable[[str], Iterable[str]]) -> set[str]:
        found, todo = set(), [name for name in roots if name]
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo.extend(step(name))
        return found


def _parts(attributes: Mapping[str, Any]) -> Iterator[Any]:
    """The functions (NameAttrList) and constants (TensorProto) in attributes, however deep."""
    for value in attributes.values():
        kind = value.WhichOneof("value")
        if kind == "tensor":
            yield value.tensor
        elif kind in ("func", "list"):
            yield from value.list.tensor
            for function in (*value.list.func, *([value.func] if kind == "func" else [])):
                yield function
                yield from _parts(function.attr)


def _named_elsewhere(meta: meta_graph_pb2.MetaGraphDef) -> Iterator[str]:
    """Functions that objects of the model and gradients name."""
    objects = meta.object_graph_def
    yield from objects.concrete_functions
    for node in objects.nodes:
        yield from node.function.concrete_functions
        yield node.bare_concrete_function.concrete_function_name
        yield node.captured_tensor.concrete_function
    for gradient in meta.graph_def.library.gradient:
        yield from (gradient.function_name, gradient.gradient_func)
    for gradient in meta.graph_def.library.registered_gradients:
        yield gradient.gradient_func
    for function in meta.graph_def.library.function:
        yield from (getattr(part, "name", "") for part in _parts(function.attr))


def _roots(meta: meta_graph_pb2.MetaGraphDef) -> Iterator[tuple[str, set[str]]]:
    """Nodes that a request, the initialiser or another list of the model names."""
    for key, signature in meta.signature_def.items():
        infos = (*signature.inputs.values(), *signature.outputs.values())
        yield f"signature {key}", {name for info in infos for name in _info_names(info)}
    for key, collection in meta.collection_def.items():
        yield f"collection {key}", {_node_name(name) for name in collection.node_list.value}
    assets = (name for asset in meta.asset_file_def for name in _info_names(asset.tensor_info))
    yield "an asset", set(assets)


def _info_names(info: Any) -> Iterator[str]:
    sparse = info.coo_sparse
    names = (sparse.values_tensor_name, sparse.indices_tensor_name, sparse.dense_shape_tensor_name)
    yield from (_node_name(name) for name in (info.name, *names) if name)
    for component in info.composite_tensor.components:
        yield from _info_names(component)


def _node_name(tensor: str) -> str:
    """Of `name`, `name:0` or `^name`."""
    return tensor.removeprefix("^").partition(":")[0]


def _tensor_name(tensor: str) -> str:
    """With the number of the output, which is 0 where it is not written."""
    return tensor if ":" in tensor else f"{tensor}:0"
