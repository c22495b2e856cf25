"""The lab's certificate authority: it stands for the public ones. Made once per checkout, with openssl."""

from __future__ import annotations

from pathlib import Path

from lab import settings
from lab.shell import run

FOLDER = settings.STATE / "tls"
CA = FOLDER / "ca.crt"
_DAYS = "825"


def _key(path: Path) -> None:
    run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)
    path.chmod(0o600)


def ensure() -> None:
    """Have a certificate authority and one server certificate with every name that the lab answers to."""
    names = sorted({name for machine in settings.SERVICES for name in machine.names})
    names += [settings.DOMAIN, f"*.{settings.DOMAIN}"]
    addresses = [machine.address for machine in settings.SERVICES]
    subject = ",".join([f"DNS:{name}" for name in names] + [f"IP:{address}" for address in addresses])
    text = f"subjectAltName={subject}\nextendedKeyUsage=serverAuth\nauthorityKeyIdentifier=keyid\n"
    known = FOLDER / "made-from"
    if known.exists() and known.read_text() == text:
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not CA.exists():
        _key(FOLDER / "ca.key")
        run(
            *("openssl", "req", "-x509", "-new", "-key", FOLDER / "ca.key", "-days", _DAYS, "-out", CA),
            *("-subj", "/CN=KiteStacks lab CA (not a public authority)"),
            *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        )
    _key(FOLDER / "server.key")
    run(
        *("openssl", "req", "-new", "-key", FOLDER / "server.key", "-subj", "/CN=KiteStacks lab"),
        *("-out", FOLDER / "server.csr"),
    )
    extensions = FOLDER / "server.ext"
    extensions.write_text(text)
    run(
        *("openssl", "x509", "-req", "-in", FOLDER / "server.csr", "-CA", CA, "-CAkey", FOLDER / "ca.key"),
        *("-CAcreateserial", "-days", _DAYS, "-extfile", extensions, "-out", FOLDER / "server.crt"),
    )
    known.write_text(text)  # last: a certificate that was cut off is made again
