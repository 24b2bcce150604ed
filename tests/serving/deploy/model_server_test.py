"""What TensorFlow Serving is started with: its own messages read its files, its flags exist."""

import pytest
from deployment import DEPLOY, ONLY_TENSORFLOW_SERVING, commands, named, parse
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

from serving.model_server import __main__ as model_server


def _text(name):
    return (DEPLOY / name).read_text(encoding="utf-8")


def _batching_parameters():
    """An empty BatchingParameters, field by field as session_bundle_config.proto has it.

    `tensorflow-serving-api` ships without that file.
    """
    field = descriptor_pb2.FieldDescriptorProto
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(
        name="batching.proto",
        package="tfmacer.test",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    message = file.message_type.add(name="BatchingParameters")
    wrapped = {
        "max_batch_size": "Int64Value",
        "batch_timeout_micros": "Int64Value",
        "max_enqueued_batches": "Int64Value",
        "num_batch_threads": "Int64Value",
        "thread_pool_name": "StringValue",
    }
    for number, (name, kind) in enumerate(wrapped.items(), start=1):
        message.field.add(
            name=name,
            number=number,
            type=field.TYPE_MESSAGE,
            type_name=f".google.protobuf.{kind}",
            label=field.LABEL_OPTIONAL,
        )
    message.field.add(
        name="allowed_batch_sizes", number=6, type=field.TYPE_INT64, label=field.LABEL_REPEATED
    )
    message.field.add(
        name="pad_variable_length_inputs",
        number=7,
        type=field.TYPE_BOOL,
        label=field.LABEL_OPTIONAL,
    )
    pool.Add(file)
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("tfmacer.test.BatchingParameters")
    )()


def _batching():
    return text_format.Parse(_text("batching.config"), _batching_parameters())


def test_models_are_a_model_server_config():
    from serving.model_server.configuration import models, read_config_file

    (model,) = models(read_config_file(DEPLOY / "models.config")).values()
    assert (model.name, str(model.base_path)) == ("digits", "/models/digits")
    assert model.policy.latest.num_versions == 1


def test_monitoring_is_a_monitoring_config():
    from serving.model_server.metrics import monitoring_path

    assert monitoring_path(_text("monitoring.config")) == "/monitoring/prometheus/metrics"


def test_batching_parameters_fit_the_signatures():
    """One row must fit, and nothing may be padded: every padded row costs a row's draws."""
    batching = _batching()
    assert batching.max_batch_size.value >= 1
    assert batching.max_enqueued_batches.value >= 1
    assert list(batching.allowed_batch_sizes) == []
    assert not batching.pad_variable_length_inputs


@pytest.mark.parametrize("where", commands())
def test_flags_are_tensorflow_servings(where):
    arguments = [
        argument
        for argument in commands()[where][0]
        if argument.split("=")[0].removeprefix("--") not in ONLY_TENSORFLOW_SERVING
    ]
    values = parse(model_server.FLAGS, arguments)
    assert values["port"] == 8500
    # Votes repeat for one number of these, and `certify` has one.
    assert values["tensorflow_intra_op_parallelism"] == 1
    assert values["enable_batching"]


@pytest.mark.parametrize("where", commands())
def test_threads_agree(where):
    server, sidecar = map(named, commands()[where])
    threads = int(server["tensorflow_inter_op_parallelism"])
    assert threads == int(sidecar["backend_parallelism"])
    assert threads == _batching().num_batch_threads.value


@pytest.mark.parametrize("where", commands())
def test_the_sidecar_asks_for_what_is_served(where):
    from serving.model_server.configuration import models, read_config_file

    server, sidecar = map(named, commands()[where])
    assert sidecar["model_name"] in models(read_config_file(DEPLOY / "models.config"))
    assert sidecar["backend"].endswith(f":{server['port']}")


@pytest.mark.parametrize("where", commands())
def test_files_named_are_those_of_this_folder(where):
    server = named(commands()[where][0])
    files = {value.rpartition("/")[2] for name, value in server.items() if name.endswith("_file")}
    assert files == {"models.config", "monitoring.config", "batching.config"}
    assert all((DEPLOY / file).is_file() for file in files)
