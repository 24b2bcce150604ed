"""TLS for the ports that servers listen on.

Off by default; without it an address other than loopback is refused, unless a flag allows plain
text there.
"""

import dataclasses
import logging
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
from absl import flags

from tfmacer.common.errors import UserError
from tfmacer.wire.channel import check_loopback, check_together, load_authorities, load_pair

logger = logging.getLogger(__name__)

# Names of a subject's parts in RFC 2253 and OpenSSL, by those that the module `ssl` has for them.
_SHORT_NAMES = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "street",
    "userId": "UID",
}


@dataclasses.dataclass(frozen=True)
class Tls:
    """The PEM files of a server.

    Attributes:
      cert: its certificate, with its chain.
      key: the key of that certificate, without a password.
      client_ca: the authorities whose client certificates are accepted; None asks for none.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def check(self, prefix: str = "tls") -> None:
        """Reads the files as a server would.

        Raises:
          UserError: a file cannot be read or does not hold what it should, or the key is that of
            another certificate; names the flags, `prefix` and what follows.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load_pair(context, prefix, self.cert, self.key)
        if self.client_ca is not None:
            load_authorities(context, f"{prefix}_client_ca", self.client_ca)

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a gRPC port; the files are read again at the first handshake after they change."""
        reload: Any = _Reload(self)  # may return None, which the type stubs do not know
        return grpc.dynamic_ssl_server_credentials(
            self._configuration(), reload, self.client_ca is not None
        )

    def http_options(self) -> dict[str, Any]:
        """For an HTTP port: the arguments of uvicorn, which reads the files once."""
        return {
            "ssl_certfile": self.cert,
            "ssl_keyfile": self.key,
            "ssl_ca_certs": self.client_ca and str(self.client_ca),
            "ssl_cert_reqs": ssl.CERT_REQUIRED if self.client_ca else ssl.CERT_NONE,
        }

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        pair = (self.key.read_bytes(), self.cert.read_bytes())
        authorities = self.client_ca.read_bytes() if self.client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], authorities)

    def _stamps(self) -> list[tuple[int, int, int]]:
        """What changes when a file is replaced."""
        found = [path.stat() for path in (self.cert, self.key, self.client_ca) if path]
        return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found]


class _Reload:
    """Called by gRPC at every handshake; returns new files, or None where they have not changed."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._seen = tls._stamps()

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            stamps = self._tls._stamps()
            if stamps == self._seen:
                return None
            # Kept even if the files are bad: they are read again once they change again.
            self._seen = stamps
            self._tls.check()
            configuration = self._tls._configuration()
        except (UserError, OSError) as error:
            logger.warning("the TLS files in use are kept: %s", error)
            return None
        logger.info("TLS files read again")
        return configuration


class ServerFlags:
    """The flags `--tls_cert`, `--tls_key`, `--tls_client_ca` and `--allow_plaintext`."""

    def __init__(self, flag_values: flags.FlagValues) -> None:
        """Defines them."""

        def file(name: str, what: str) -> flags.FlagHolder[str]:
            return flags.DEFINE_string(name, "", what, flag_values=flag_values)

        self._cert = file("tls_cert", "PEM file of this server's certificate and chain: TLS.")
        self._key = file("tls_key", "PEM file of the key of --tls_cert.")
        self._client_ca = file(
            "tls_client_ca",
            "PEM file of authorities: callers must show a certificate of one of them.",
        )
        self._allowed = flags.DEFINE_bool(
            "allow_plaintext",
            False,
            "Listen without TLS on other addresses than loopback, readable to the network.",
            flag_values=flag_values,
        )

    def read(self, host: str) -> Tls | None:
        """The TLS that was asked for; None for none.

        Args:
          host: the address to listen on, the value of `--host`.

        Raises:
          UserError: flags that do not go together, files that cannot be used, or an address that
            is not loopback, without TLS and without `--allow_plaintext`.
        """
        cert, key, client_ca = self._cert.value, self._key.value, self._client_ca.value
        check_together(tls_cert=cert, tls_key=key)
        if client_ca and not cert:
            raise UserError("--tls_client_ca needs --tls_cert and --tls_key")
        if not cert:
            if not self._allowed.value:
                check_loopback("host", host, instead="--tls_cert and --tls_key")
            return None
        tls = Tls(Path(cert), Path(key), Path(client_ca) if client_ca else None)
        tls.check()
        return tls


def subject(certificate: Mapping[str, Any] | None) -> str:
    """The subject of a peer's certificate in ASCII by RFC 2253, as gRPC writes it.

    Args:
      certificate: what `ssl.SSLSocket.getpeercert()` returns.

    Returns:
      For example `CN=console,O=Example`; empty where there is no certificate, or no subject in it.
    """
    names = (certificate or {}).get("subject", ())
    return ",".join(
        "+".join(f"{_SHORT_NAMES.get(kind, kind)}={_escaped(value)}" for kind, value in name)
        for name in reversed(names)
    )


def _escaped(value: str) -> str:
    # Not by `cryptography`, which writes RFC 4514: characters beyond ASCII as they are, and some
    # attributes by number. The sidecar's callers must be the same over gRPC and HTTP.
    text = re.sub(r'([,+"\\<>;]|^[ #]|(?<!^) $)', r"\\\1", value)
    return "".join(chr(byte) if 32 <= byte < 127 else f"\\{byte:02X}" for byte in text.encode())
