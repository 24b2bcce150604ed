"""Channels to servers, and the flags of a command that has one: TLS, and proxies.

TLS is off by default, and then nothing is let off this machine: an address other than loopback is
refused unless a flag says that plain text is wanted there. No channel goes through a proxy that the
environment names, as gRPC's own do, unless a flag asks for it, and one to this machine never does.
"""

import dataclasses
import ipaddress
import logging
import re
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from absl import flags

from tfmacer.common.errors import UserError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Transport:
    """How a channel goes to a server.

    Attributes:
      credentials: for TLS; None for plain text.
      use_proxy: through the proxy that the environment names, where the server is elsewhere.
    """

    credentials: grpc.ChannelCredentials | None = None
    use_proxy: bool = False


DIRECT = Transport()
# Before a certificate of one's own expires.
WARNING_SECONDS = 7 * 24 * 3600


def open_channel(
    target: str, transport: Transport = DIRECT, options: Sequence[tuple[str, Any]] = ()
) -> grpc.Channel:
    """A channel to a gRPC target; it connects when it is first asked."""
    options = [*options, *proxy_options(target, transport.use_proxy)]
    if transport.credentials is not None:
        return grpc.secure_channel(target, transport.credentials, options)
    return grpc.insecure_channel(target, options)


def proxy_options(target: str, use_proxy: bool) -> list[tuple[str, Any]]:
    """What a gRPC channel must be told so that it goes to `target` as `Transport` says."""
    if use_proxy and not is_loopback(target):
        return []
    # The second is GRPC_ADDRESS_HTTP_PROXY's, which the first does not turn off.
    return [("grpc.enable_http_proxy", 0), ("grpc.address_http_proxy_enabled_addresses", "")]


class ChannelFlags:
    """The flags of a channel.

    `--PREFIX`, the same with `_ca`, `_cert` and `_key`, `allow` and `--use_proxy`.
    """

    def __init__(
        self, prefix: str, server: str, flag_values: flags.FlagValues, *, allow: str
    ) -> None:
        """Defines them for a channel to `server`; `allow` is the flag that allows plain text."""
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
        self._use_proxy = flags.DEFINE_bool(
            "use_proxy",
            False,
            "Go through the proxy that the environment names (grpc_proxy, https_proxy, "
            "http_proxy), where the way leads off this machine.",
            flag_values=flag_values,
        )

    def read(self, flag: str, target: str | None) -> Transport:
        """How to go to the server.

        Args:
          flag: that says where the server is.
          target: its value, a gRPC target; None where it was not given, so no server is asked.

        Raises:
          UserError: flags that do not go together, files that cannot be used, or a target that
            is not on this machine, without TLS and without the flag that allows it.
        """
        if target is None:
            mine = (self._on, self._ca, self._cert, self._key, self._allowed, self._use_proxy)
            for each in mine:
                if each.value:
                    raise UserError(f"--{each.name} goes with --{flag}")
            return DIRECT
        ca, cert, key = self._ca.value, self._cert.value, self._key.value
        check_together(**{f"{self._prefix}_cert": cert, f"{self._prefix}_key": key})
        if not self._on.value:
            for file in (self._ca, self._cert):
                if file.value:
                    raise UserError(f"--{file.name} needs --{self._prefix}")
            if not self._allowed.value:
                check_loopback(flag, target, instead=f"--{self._prefix}", allow=self._allowed.name)
            return Transport(use_proxy=self._use_proxy.value)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if ca:
            load_authorities(context, self._ca.name, Path(ca))
        if cert:
            load_pair(context, self._prefix, Path(cert), Path(key))
        credentials = grpc.ssl_channel_credentials(
            *(Path(path).read_bytes() if path else None for path in (ca, key, cert))
        )
        return Transport(credentials, self._use_proxy.value)


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
    if not is_loopback(address):
        raise UserError(
            f"--{flag}={address}: not a loopback address, and without TLS anyone on the way can "
            f"read and change what is sent: give {instead}, or --{allow}"
        )


def is_loopback(target: str) -> bool:
    """Whether a host, or every address of a gRPC target, is this machine's own."""
    return all(map(_is_loopback, target.split(",")))


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
    """Raises UserError where one of some flags is given and another is not."""
    given = [name for name, value in values.items() if value]
    missing = [name for name, value in values.items() if not value]
    if given and missing:
        raise UserError(f"--{given[0]} needs --{missing[0]}")


def load_pair(context: ssl.SSLContext, prefix: str, cert: Path, key: Path) -> None:
    """Reads a certificate and its key, the values of `--PREFIX_cert` and `--PREFIX_key`.

    Raises:
      UserError: they cannot be used, or have expired; names the flags.
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
    _check_expiry(f"{prefix}_cert", cert)


def _check_expiry(flag: str, cert: Path) -> None:
    """Refuses a certificate that has expired, and warns a week before."""
    # The one reader of certificates that Python has; private, and so held by a test.
    decoded = ssl._ssl._test_decode_cert(str(cert))  # type: ignore[attr-defined]
    left = ssl.cert_time_to_seconds(decoded["notAfter"]) - time.time()
    if left <= 0:
        raise UserError(f"--{flag}={cert}: expired on {decoded['notAfter']}")
    if left < WARNING_SECONDS:
        logger.warning("--%s=%s expires on %s", flag, cert, decoded["notAfter"])


def load_authorities(context: ssl.SSLContext, flag: str, path: Path) -> None:
    """Reads certificates of authorities; raises UserError, naming the flag, if it cannot."""
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
