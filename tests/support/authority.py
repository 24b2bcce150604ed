"""TLS certificates for tests: an authority, and PEM files of what it signs."""

import dataclasses
from pathlib import Path

import trustme


@dataclasses.dataclass(frozen=True)
class Files:
    """PEM files of one party.

    Attributes:
      ca: of the authority.
      cert: of the party, with its chain.
      key: of the party.
    """

    ca: Path
    cert: Path
    key: Path


def issue(folder: Path, authority: trustme.CA, name: str, stem: str = "party") -> Files:
    """Writes (again) the files of a party that is called `name`: a host or `user@domain`."""
    issued = authority.issue_cert(name, common_name=name)
    files = Files(*(folder / f"{stem}.{kind}.pem" for kind in ("ca", "cert", "key")))
    files.ca.write_bytes(authority.cert_pem.bytes())
    files.cert.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    files.key.write_bytes(issued.private_key_pem.bytes())
    return files
