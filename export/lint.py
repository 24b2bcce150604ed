"""What must hold of every SavedModel before it is given a version number."""

import re
from collections.abc import Iterator
from pathlib import Path

from tensorflow.core.framework import graph_pb2, node_def_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from tfmacer.votes.admission import objections

# Stateful random ops replay their stream in every process once a seed is baked in; generator ops
# do so always.
_SEED_ATTRIBUTES = ("seed", "seed2")
_GENERATOR_OP = re.compile(
    r"^(Rng|StatefulRandom|StatefulUniform|StatefulStandardNormal|StatefulTrunc)"
)
_SAVER_FUNCTION = re.compile(r"^__inference__traced_(save|restore)_")


def lint(directory: Path, num_variables: int) -> list[str]:
    """Lists what is wrong with a SavedModel; nothing is loaded.

    Returns:
      One line for each finding, none for a model that is fit to be served.
    """
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((directory / "saved_model.pb").read_bytes())
    meta = saved.meta_graphs[0]
    findings = objections(directory)
    findings += [f for node in _nodes(meta.graph_def) for f in _node_findings(node)]
    pinned = [node for node in _movable(meta.graph_def) if node.device]
    if pinned:
        first = f"{pinned[0].name} to {pinned[0].device}"
        findings.append(f"{len(pinned)} nodes are pinned to a device, {first}")
    variables = sum(node.op == "VarHandleOp" for node in meta.graph_def.node)
    if variables != num_variables:
        findings.append(f"{variables} variables saved, the network has {num_variables}")
    return findings + [f for s in meta.signature_def.items() for f in _signature_findings(*s)]


def _nodes(graph: graph_pb2.GraphDef) -> Iterator[node_def_pb2.NodeDef]:
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def _movable(graph: graph_pb2.GraphDef) -> Iterator[node_def_pb2.NodeDef]:
    """What a server must be free to place on its accelerator: all but the saver of files."""
    yield from (node for node in graph.node if node.op == "VarHandleOp")
    for function in graph.library.function:
        if not _SAVER_FUNCTION.match(function.signature.name):
            yield from function.node_def


def _node_findings(node: node_def_pb2.NodeDef) -> Iterator[str]:
    if _GENERATOR_OP.match(node.op):
        yield f"{node.name}: {node.op} carries generator state and replays it in every process"
    is_random = node.op.startswith("Random") or node.op in ("Multinomial", "TruncatedNormal")
    if is_random and any(node.attr[name].i for name in _SEED_ATTRIBUTES if name in node.attr):
        yield f"{node.name}: {node.op} has a seed baked in"


def _signature_findings(name: str, signature: meta_graph_pb2.SignatureDef) -> Iterator[str]:
    if name.startswith("__saved_model"):
        return
    for side, tensors in (("input", signature.inputs), ("output", signature.outputs)):
        for alias, info in tensors.items():
            dims = [dim.size for dim in info.tensor_shape.dim]
            if info.tensor_shape.unknown_rank or not dims or dims[0] != -1:
                yield f"{name}: {side} {alias} is {dims}: its first dimension must be the batch"
    if not signature.inputs:
        yield f"{name}: a signature without inputs cannot be batched"
