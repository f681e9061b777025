"""The box's own certificates: a CA that is made once, and a leaf that is renewed by itself.

Everything lies in one folder: `ca.key ca.crt leaf.key leaf.crt`. Clients get `ca.crt` once; the
leaf may change every day without their knowing. cryptography is imported where it is used: a
daemon without TLS does not pay its memory.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from edged import atomic

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_CA_DAYS = 3650
_LEAF_DAYS = 90  # clients on phones refuse leaves of more than 398 days
_RENEW_DAYS = 30  # before its end
_BACKDATED = dt.timedelta(hours=1)  # the clocks of clients differ
_COMMON_NAME_LENGTH = 64


class Found(Struct, frozen=True):
    """What a certificate says. Times are s since 1970."""

    names: tuple[str, ...]
    starts: float
    ends: float
    sha256: str
    issuer: str


def names() -> tuple[str, ...]:
    """Return the names and addresses under which clients may find this box."""
    host = socket.gethostname().lower()
    found = ["localhost", host]
    if "." not in host:
        found.append(f"{host}.local")
    else:
        found.append(f"{host.partition('.')[0]}.local")
    return (*dict.fromkeys(found), *addresses())


def addresses() -> tuple[str, ...]:
    """Return the addresses of this box's interfaces, loopback first, without link-local ones."""
    import ifaddr  # noqa: PLC0415 -- only where TLS or discovery is on

    found = {"127.0.0.1", "::1"}
    for adapter in ifaddr.get_adapters():
        for each in adapter.ips:
            found.add(each.ip if isinstance(each.ip, str) else each.ip[0])
    known = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
    kept = [each for each in known if not each.is_link_local]
    return tuple(str(each) for each in sorted(kept, key=lambda a: (not a.is_loopback, str(a))))


def ensure(folder: Path, wanted: tuple[str, ...], now: float) -> bool:
    """Make what is missing, and the leaf anew when it ends soon or lacks a name.

    Returns whether the leaf is a new one. Raises OSError, and ValueError for files that are no
    certificates.
    """
    with _alone(folder):
        ca_key, ca_crt = folder / "ca.key", folder / "ca.crt"
        if not (ca_key.exists() and ca_crt.exists()):
            if ca_key.exists() or ca_crt.exists():
                raise ValueError(
                    f"{folder} has only one of ca.key and ca.crt: restore the other from a "
                    "backup, or delete it, and every client will need the new ca.crt"
                )
            _make_ca(ca_key, ca_crt, now)
        leaf = folder / "leaf.crt"
        if leaf.exists() and (folder / "leaf.key").exists():
            found = read(leaf)
            is_fresh = found.ends - now > _RENEW_DAYS * 86400 and found.starts <= now
            is_ours = found.issuer == _subject(ca_crt) and _is_pair(leaf, folder / "leaf.key")
            if is_fresh and is_ours and set(wanted) <= set(found.names):
                return False
        _make_leaf(folder, wanted, now)
        return True


def read(path: Path) -> Found:
    """Return what the first certificate of a PEM file says; raises OSError and ValueError."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    try:
        said = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        listed = (
            *said.get_values_for_type(x509.DNSName),
            *(str(each) for each in said.get_values_for_type(x509.IPAddress)),
        )
    except x509.ExtensionNotFound:
        listed = ()
    return Found(
        names=listed,
        starts=certificate.not_valid_before_utc.timestamp(),
        ends=certificate.not_valid_after_utc.timestamp(),
        sha256=hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
        issuer=certificate.issuer.rfc4514_string(),
    )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder: `edged tls init` and the daemon must not both make a CA."""
    folder.mkdir(mode=0o750, parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _make_ca(key_path: Path, path: Path, now: float) -> None:
    from cryptography import x509  # noqa: PLC0415

    key = _new_key()
    host = socket.gethostname()
    # Two boxes may have one name: their CAs are told apart by some digits.
    name = _name(f"edged CA on {host[:40]} {os.urandom(4).hex()}")
    builder = (
        _builder(key, name, name, now, _CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
    )
    certificate = _signed(builder, key)
    # `edged tls init` makes them as root for the daemon, whose the folder is.
    owner = atomic.owner(path.parent)
    atomic.write(key_path, _key_pem(key), mode=0o600, owner=owner)
    atomic.write(path, _pem(certificate), owner=owner)


def _make_leaf(folder: Path, wanted: tuple[str, ...], now: float) -> None:
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    ca_bytes = (folder / "ca.crt").read_bytes()
    ca = x509.load_pem_x509_certificate(ca_bytes)
    ca_key = load_pem_private_key((folder / "ca.key").read_bytes(), None)
    key = _new_key()
    usage = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH])
    host = socket.gethostname()[:_COMMON_NAME_LENGTH]
    builder = (
        _builder(key, _name(host), ca.subject, now, _LEAF_DAYS)
        .add_extension(x509.SubjectAlternativeName(_general(wanted)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(usage, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.public_key()),  # type: ignore[arg-type]
            critical=False,
        )
    )
    certificate = _signed(builder, ca_key)  # type: ignore[arg-type]
    owner = atomic.owner(folder)
    atomic.write(folder / "leaf.key", _key_pem(key), mode=0o600, owner=owner)
    atomic.write(folder / "leaf.crt", _pem(certificate) + ca_bytes, owner=owner)


def _builder(
    key: EllipticCurvePrivateKey, subject: x509.Name, issuer: x509.Name, now: float, days: int
) -> x509.CertificateBuilder:
    from cryptography import x509  # noqa: PLC0415

    start = dt.datetime.fromtimestamp(now, dt.UTC) - _BACKDATED
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _general(wanted: tuple[str, ...]) -> list[x509.GeneralName]:
    from cryptography import x509  # noqa: PLC0415

    found: list[x509.GeneralName] = []
    for each in wanted:
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(each)))
        except ValueError:
            found.append(x509.DNSName(each))
    return found


def _usage(*, signs: bool) -> x509.KeyUsage:
    from cryptography import x509  # noqa: PLC0415

    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    from cryptography import x509  # noqa: PLC0415

    return x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, common)])


def _subject(path: Path) -> str:
    from cryptography import x509  # noqa: PLC0415

    return x509.load_pem_x509_certificate(path.read_bytes()).subject.rfc4514_string()


def _is_pair(certificate: Path, key: Path) -> bool:
    """Whether the key is the certificate's: a power cut may have come between the two."""
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    certified = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    return load_pem_private_key(key.read_bytes(), None).public_key() == certified


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    return ec.generate_private_key(ec.SECP256R1())


def _signed(builder: x509.CertificateBuilder, key: EllipticCurvePrivateKey) -> x509.Certificate:
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415

    return builder.sign(key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization as s  # noqa: PLC0415

    return key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
