"""`--ssl_config_file`: TLS for gRPC, as TensorFlow Serving's SSLConfig describes it."""

import ssl
import tempfile
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from serving.common.tls import Tls
from tfmacer.common.errors import UserError


def read_credentials(path: Path) -> grpc.ServerCredentials:
    """Credentials of a server from a text-format SSLConfig, which holds the PEM texts themselves.

    Raises:
      UserError: the file is no such message, or its texts are no certificate and its key.
    """
    config = _ssl_config()
    try:
        text_format.Parse(path.read_text(), config)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise UserError(f"--ssl_config_file={path}: no text-format SSLConfig: {error}") from error
    if config.client_verify and not config.custom_ca:
        raise UserError(f"--ssl_config_file={path}: client_verify needs custom_ca")
    _check(path, config)
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        config.custom_ca.encode() or None,
        config.client_verify,
    )


def _check(path: Path, config: Any) -> None:
    """OpenSSL reads certificates from files only, so they are written to a private directory."""
    with tempfile.TemporaryDirectory() as folder:
        texts = (config.server_cert, config.server_key, config.custom_ca)
        files = [Path(folder) / name for name in ("cert", "key", "ca")]
        for file, text in zip(files, texts, strict=True):
            file.write_text(text)
        cert, key, ca = files
        try:
            Tls(cert, key, ca if config.custom_ca else None).check()
        except UserError as error:
            cause = error.__cause__
            reason = cause.reason if isinstance(cause, ssl.SSLError) else cause
            reason = reason or str(error).partition(": ")[2]  # it has expired
            raise UserError(
                f"--ssl_config_file={path}: server_cert, server_key and custom_ca must be a "
                f"certificate, its key without a password, and certificates, in PEM: {reason}"
            ) from error


def _ssl_config() -> Any:
    """An empty SSLConfig; `tensorflow-serving-api` ships without this message."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="serving/model_server/ssl_config.proto",
        package="tfmacer.model_server",
        syntax="proto3",
    )
    message = file.message_type.add(name="SSLConfig")
    for number, name in enumerate(("server_key", "server_cert", "custom_ca"), 1):
        message.field.add(
            name=name, number=number, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL
        )
    message.field.add(
        name="client_verify", number=4, type=field.TYPE_BOOL, label=field.LABEL_OPTIONAL
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    descriptor = pool.FindMessageTypeByName("tfmacer.model_server.SSLConfig")
    return message_factory.GetMessageClass(descriptor)()
