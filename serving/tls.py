"""TLS for the ports that servers listen on and the channels that lead to them.

Off by default, and then nothing is let off this machine: an address other than loopback is refused
unless a flag says that plain text is wanted there.
"""

import dataclasses
import ipaddress
import logging
import re
import ssl
from pathlib import Path
from typing import Any

import grpc
from absl import flags

from tfmacer.errors import UserError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Tls:
    """The PEM files of a server.

    Attributes:
      cert: its certificate, with its chain.
      key: the key of that certificate, without a password.
      client_ca: the authorities whose client certificates are let in; None lets everyone in.
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
        _load_pair(context, prefix, self.cert, self.key)
        if self.client_ca is not None:
            _load_authorities(context, f"{prefix}_client_ca", self.client_ca)

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a gRPC port; the files are read again at the first handshake after they change."""
        reload: Any = _Reload(self)  # may answer None, which the type stubs do not know
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
        """What tells a file from the one that was there before."""
        found = [path.stat() for path in (self.cert, self.key, self.client_ca) if path]
        return [(stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found]


class _Reload:
    """Asked by gRPC at every handshake for new files; None says that there are none."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._seen = tls._stamps()

    def __call__(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            stamps = self._tls._stamps()
            if stamps == self._seen:
                return None
            # Kept when the files are bad, too: they are looked at again once they change again.
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
        _check_together(tls_cert=cert, tls_key=key)
        if client_ca and not cert:
            raise UserError("--tls_client_ca needs --tls_cert and --tls_key")
        if not cert:
            if not self._allowed.value:
                check_loopback("host", host, instead="--tls_cert and --tls_key")
            return None
        tls = Tls(Path(cert), Path(key), Path(client_ca) if client_ca else None)
        tls.check()
        return tls


class ChannelFlags:
    """The flags of a channel: `--PREFIX`, the same with `_ca`, `_cert` and `_key`, and `allow`."""

    def __init__(
        self, prefix: str, server: str, flag_values: flags.FlagValues, *, allow: str
    ) -> None:
        """Defines them.

        Args:
          prefix: what their names begin with.
          server: whom the channel leads to, for the help.
          flag_values: where.
          allow: name of the flag that lets plain text leave this machine.
        """
        self._prefix = prefix

        def file(suffix: str, what: str) -> flags.FlagHolder[str]:
            return flags.DEFINE_string(f"{prefix}_{suffix}", "", what, flag_values=flag_values)

        self._on = flags.DEFINE_bool(
            prefix, False, f"Use TLS towards {server}.", flag_values=flag_values
        )
        self._ca = file(
            "ca", f"PEM file of the authorities that may vouch for {server}; empty for public ones."
        )
        self._cert = file("cert", f"PEM file of the certificate to show to {server}: mutual TLS.")
        self._key = file("key", f"PEM file of the key of --{prefix}_cert.")
        self._allowed = flags.DEFINE_bool(
            allow,
            False,
            f"Go without TLS to {server} at another address than loopback, readable and "
            "changeable on the way.",
            flag_values=flag_values,
        )

    def read(self, flag: str, target: str) -> grpc.ChannelCredentials | None:
        """The credentials that were asked for; None for none.

        Args:
          flag: that says where the server is.
          target: its value, a gRPC target.

        Raises:
          UserError: flags that do not go together, files that cannot be used, or a target that
            is not on this machine, without TLS and without the flag that allows it.
        """
        ca, cert, key = self._ca.value, self._cert.value, self._key.value
        _check_together(**{f"{self._prefix}_cert": cert, f"{self._prefix}_key": key})
        if not self._on.value:
            for file in (self._ca, self._cert):
                if file.value:
                    raise UserError(f"--{file.name} needs --{self._prefix}")
            if not self._allowed.value:
                check_loopback(flag, target, instead=f"--{self._prefix}", allow=self._allowed.name)
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if ca:
            _load_authorities(context, self._ca.name, Path(ca))
        if cert:
            _load_pair(context, self._prefix, Path(cert), Path(key))
        return grpc.ssl_channel_credentials(
            *(Path(path).read_bytes() if path else None for path in (ca, key, cert))
        )


def check_loopback(
    flag: str, address: str, *, instead: str, allow: str = "allow_plaintext"
) -> None:
    """Refuses an address without TLS that other machines can reach.

    Args:
      flag: that gave it.
      address: a host, or a gRPC target (HOST:PORT, unix:PATH, ipv4:HOST:PORT).
      instead: the flags that would turn TLS on.
      allow: the flag that lets it through.

    Raises:
      UserError: neither a loopback address, nor `localhost`, nor a UNIX socket.
    """
    if not all(map(_is_loopback, address.split(","))):
        raise UserError(
            f"--{flag}={address}: not a loopback address, and without TLS anyone on the way can "
            f"read and change what is sent: give {instead}, or --{allow}"
        )


def _is_loopback(address: str) -> bool:
    if address.startswith(("unix:", "unix-abstract:")):
        return True
    address = re.sub(r"^(dns|ipv4|ipv6):(//[^/]*/)?", "", address)
    bracketed = re.fullmatch(r"\[(.*)\](:\d+)?", address)
    if bracketed:
        host = bracketed[1]
    elif address.count(":") == 1:
        host = address.partition(":")[0]
    else:
        host = address
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name: where it leads is not ours to know
        return False


def _check_together(**values: str) -> None:
    given = [name for name, value in values.items() if value]
    missing = [name for name, value in values.items() if not value]
    if given and missing:
        raise UserError(f"--{given[0]} needs --{missing[0]}")


def _load_pair(context: ssl.SSLContext, prefix: str, cert: Path, key: Path) -> None:
    _check_readable(f"{prefix}_cert", cert)
    _check_readable(f"{prefix}_key", key)
    try:
        # Without an empty password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    except ssl.SSLError as error:
        raise UserError(
            f"--{prefix}_cert={cert}, --{prefix}_key={key}: not a certificate in PEM and its key "
            f"without a password: {error.reason or error}"
        ) from error


def _load_authorities(context: ssl.SSLContext, flag: str, path: Path) -> None:
    _check_readable(flag, path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise UserError(
            f"--{flag}={path}: no certificates in PEM: {error.reason or error}"
        ) from error


def _check_readable(flag: str, path: Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise UserError(f"--{flag}={path}: cannot be read: {error.strerror}") from error
