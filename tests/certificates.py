"""An authority of the tests' own, and the certificates that it signs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

_DAY = timedelta(days=1)
_FOR_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class Authority:
    """Signs certificates, which are valid from yesterday until tomorrow."""

    def __init__(self, name: str = "Tests' authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self._certificate = (
            _builder(self._name, self._name, self._key.public_key(), 0)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            # Python 3.13 wants what RFC 5280 does: the keys' identifiers, and what the authority's key is for
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .add_extension(_FOR_CERTIFICATES, critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        """Its own certificate, without the key."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def sign(self, *names: str, ended: int = 0) -> tuple[bytes, bytes]:
        """Return a certificate for hosts or addresses, and its key, in PEM.

        Args:
            names: the hosts or addresses.
            ended: so many days ago it expired; below 0, it begins so many days from now.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "server")])
        certificate = (
            _builder(subject, self._name, key.public_key(), ended)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM), pem_of(key)

    def write(self, directory: Path, stem: str, *names: str, ended: int = 0) -> Path:
        """Sign a certificate and write it with its key into one file."""
        file = directory / f"{stem}.pem"
        file.write_bytes(b"".join(self.sign(*names, ended=ended)))
        return file

    def write_own(self, directory: Path, stem: str = "authority") -> Path:
        """Write its own certificate into a file."""
        file = directory / f"{stem}.pem"
        file.write_bytes(self.pem)
        return file


def pem_of(key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> bytes:
    """Return a private key in PEM."""
    how: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        how = serialization.BestAvailableEncryption(password)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, ended: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    begins, ends = now - _DAY, now + _DAY
    if ended > 0:
        begins, ends = now - (ended + 1) * _DAY, now - ended * _DAY
    elif ended < 0:
        begins, ends = now - ended * _DAY, now - (ended - 1) * _DAY
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)
