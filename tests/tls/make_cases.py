"""Make tests/tls/cases: certificates that are good, and one for each way of being bad.

Kept in the repository as those of make_certificates.py are, whose helpers this borrows. Each file
has a key and the chain; `authority.pem` vouches for all but `stranger.pem`, and `crl.pem` revokes
`revoked.pem`.
"""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from make_certificates import AUTHORITY_USAGE, HERE, name_of

CASES = HERE / "cases"
SERVER, CLIENT = x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH
SINCE, UNTIL = datetime(2020, 1, 1, tzinfo=UTC), datetime(2120, 1, 1, tzinfo=UTC)
NAMES = [
    x509.DNSName("server.example"),
    x509.DNSName("*.wild.example"),
    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    x509.IPAddress(ipaddress.ip_address("::1")),
]
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def new_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


class Issuer:
    """An authority, or what it has put in between."""

    def __init__(self, name: str, above: Issuer | None = None) -> None:
        self.name, self.key = name_of(name), new_key()
        by = above or self
        builder = (
            base(self.name, by.name, self.key, SINCE, UNTIL)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(AUTHORITY_USAGE, critical=True)
        )
        self.certificate = builder.sign(by.key, hashes.SHA256())

    def vouch(
        self,
        key: Key,
        usage: list[x509.ObjectIdentifier],
        names: list[x509.GeneralName] = NAMES,
        since: datetime = SINCE,
        until: datetime = UNTIL,
    ) -> x509.Certificate:
        return (
            base(name_of("leaf"), self.name, key, since, until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .sign(self.key, hashes.SHA256())
        )


def base(
    subject: x509.Name, issuer: x509.Name, key: Key, since: datetime, until: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
    )


def save(name: str, key: Key | None, *chain: x509.Certificate, password: bytes = b"") -> None:
    lock = BestAvailableEncryption(password) if password else NoEncryption()
    parts = [certificate.public_bytes(Encoding.PEM) for certificate in chain]
    if key:
        parts.insert(0, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    (CASES / f"{name}.pem").write_bytes(b"".join(parts))


def save_leaves(root: Issuer) -> None:
    other = [x509.DNSName("other.example")]
    past, future = datetime(2021, 1, 1, tzinfo=UTC), datetime(2110, 1, 1, tzinfo=UTC)
    key = new_key()
    save("server", key, root.vouch(key, [SERVER]))
    save("locked", key, root.vouch(key, [SERVER]), password=b"secret")
    save("client", key, root.vouch(key, [CLIENT]))
    save("other", key, root.vouch(key, [SERVER], names=other))
    save("expired", key, root.vouch(key, [SERVER, CLIENT], until=past))
    save("future", key, root.vouch(key, [SERVER, CLIENT], since=future))
    save("mismatch", new_key(), root.vouch(key, [SERVER]))
    key = rsa.generate_private_key(65537, 2048)
    save("rsa", key, root.vouch(key, [SERVER]))
    key = rsa.generate_private_key(65537, 1024)
    save("weak", key, root.vouch(key, [SERVER, CLIENT]))


def save_revoked(root: Issuer) -> None:
    key = new_key()
    revoked = root.vouch(key, [SERVER, CLIENT])
    save("revoked", key, revoked)
    entry = x509.RevokedCertificateBuilder().serial_number(revoked.serial_number)
    lists = x509.CertificateRevocationListBuilder(root.name, SINCE, UNTIL).add_revoked_certificate(
        entry.revocation_date(SINCE).build()
    )
    signed = lists.sign(root.key, hashes.SHA256())
    (CASES / "crl.pem").write_bytes(signed.public_bytes(Encoding.PEM))


def make() -> None:
    CASES.mkdir(exist_ok=True)
    root = Issuer("tloop test root")
    save("authority", None, root.certificate)
    save_leaves(root)
    save_revoked(root)
    between, key = Issuer("tloop test intermediate", root), new_key()
    save("chain", key, between.vouch(key, [SERVER, CLIENT]), between.certificate)
    save("stranger", key, Issuer("somebody else").vouch(key, [SERVER, CLIENT]))


if __name__ == "__main__":
    make()
