"""Make tests/tls/cases: certificates that are good, and one for each way of being bad.

Kept in the repository as those of make_certificates.py are, whose helpers this borrows. Each file
has a key and the chain; `authority.pem` vouches for all but `stranger.pem` and `rich.pem`, and
`crl.pem` revokes `revoked.pem`.
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


def save_rich() -> None:
    """Everything that is shown of a certificate, see ../test_x509.py; nobody verifies it."""
    root = Issuer("somebody else")
    oid, key = x509.NameOID, new_key()
    kinds = x509.name._ASN1Type
    subject = x509.Name(
        [
            x509.RelativeDistinguishedName([x509.NameAttribute(oid.COUNTRY_NAME, "DE")]),
            x509.RelativeDistinguishedName(
                [
                    x509.NameAttribute(oid.ORGANIZATION_NAME, "B\u00fccher", kinds.BMPString),
                    x509.NameAttribute(oid.ORGANIZATIONAL_UNIT_NAME, "\u00c4", kinds.T61String),
                ]
            ),
            x509.RelativeDistinguishedName([x509.NameAttribute(oid.EMAIL_ADDRESS, "a@b.example")]),
            x509.RelativeDistinguishedName(
                [x509.NameAttribute(x509.ObjectIdentifier("2.999.1234567"), "unknown")]
            ),
            x509.RelativeDistinguishedName([x509.NameAttribute(oid.COMMON_NAME, "\u2603")]),
        ]
    )
    names = [
        *NAMES,
        x509.RFC822Name("mail@server.example"),
        x509.UniformResourceIdentifier("https://server.example/"),
        x509.DirectoryName(subject),
        x509.RegisteredID(x509.ObjectIdentifier("2.999.7.16384")),
        x509.OtherName(x509.ObjectIdentifier("1.2.3.4"), b"\x0c\x01x"),
        x509.IPAddress(ipaddress.ip_address("2001:db8::abcd")),
    ]
    access = x509.AuthorityInformationAccessOID
    since, until = datetime(1999, 2, 3, 4, 5, 6, tzinfo=UTC), datetime(2051, 1, 1, tzinfo=UTC)
    certificate = (
        base(subject, root.name, key, since, until)
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(
            x509.AuthorityInformationAccess(
                [
                    x509.AccessDescription(method, x509.UniformResourceIdentifier(uri))
                    for method, uri in (
                        (access.OCSP, "http://ocsp.example"),
                        (access.CA_ISSUERS, "http://ca.example/ca.der"),
                        (access.OCSP, "http://ocsp2.example"),
                    )
                ]
            ),
            critical=False,
        )
        .add_extension(
            x509.CRLDistributionPoints(
                [
                    x509.DistributionPoint(
                        [x509.UniformResourceIdentifier("http://crl.example/1"), NAMES[0]],
                        None,
                        None,
                        None,
                    ),
                    x509.DistributionPoint(None, None, None, [NAMES[0]]),
                ]
            ),
            critical=False,
        )
        .sign(root.key, hashes.SHA256())
    )
    save("rich", None, certificate)


def make() -> None:
    CASES.mkdir(exist_ok=True)
    root = Issuer("tloop test root")
    save("authority", None, root.certificate)
    save_leaves(root)
    save_revoked(root)
    between, key = Issuer("tloop test intermediate", root), new_key()
    save("chain", key, between.vouch(key, [SERVER, CLIENT]), between.certificate)
    save_rich()
    save("stranger", key, Issuer("somebody else").vouch(key, [SERVER, CLIENT]))


if __name__ == "__main__":
    make()
