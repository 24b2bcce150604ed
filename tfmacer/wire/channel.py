"""TLS for the channels that lead to servers: the flags of a command that has one.

Off by default, and then nothing is let off this machine: an address other than loopback is refused
unless a flag says that plain text is wanted there.
"""

import ipaddress
import re
import ssl
from pathlib import Path

import grpc
from absl import flags

from tfmacer.errors import UserError


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

    def read(self, flag: str, target: str | None) -> grpc.ChannelCredentials | None:
        """The credentials that were asked for; None for none.

        Args:
          flag: that says where the server is.
          target: its value, a gRPC target; None where it was not given, so no server is asked.

        Raises:
          UserError: flags that do not go together, files that cannot be used, or a target that
            is not on this machine, without TLS and without the flag that allows it.
        """
        if target is None:
            for each in (self._on, self._ca, self._cert, self._key, self._allowed):
                if each.value:
                    raise UserError(f"--{each.name} goes with --{flag}")
            return None
        ca, cert, key = self._ca.value, self._cert.value, self._key.value
        check_together(**{f"{self._prefix}_cert": cert, f"{self._prefix}_key": key})
        if not self._on.value:
            for file in (self._ca, self._cert):
                if file.value:
                    raise UserError(f"--{file.name} needs --{self._prefix}")
            if not self._allowed.value:
                check_loopback(flag, target, instead=f"--{self._prefix}", allow=self._allowed.name)
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if ca:
            load_authorities(context, self._ca.name, Path(ca))
        if cert:
            load_pair(context, self._prefix, Path(cert), Path(key))
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


def check_together(**values: str) -> None:
    """Takes the values of flags that are given all or none.

    Raises:
      UserError: one is given and another is not.
    """
    given = [name for name, value in values.items() if value]
    missing = [name for name, value in values.items() if not value]
    if given and missing:
        raise UserError(f"--{given[0]} needs --{missing[0]}")


def load_pair(context: ssl.SSLContext, prefix: str, cert: Path, key: Path) -> None:
    """Reads a certificate and its key, the values of `--PREFIX_cert` and `--PREFIX_key`.

    Raises:
      UserError: they cannot be used; names the flags.
    """
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


def load_authorities(context: ssl.SSLContext, flag: str, path: Path) -> None:
    """Reads the certificates of authorities, the value of a flag.

    Raises:
      UserError: they cannot be used; names the flag.
    """
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
