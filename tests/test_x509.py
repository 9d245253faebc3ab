"""Certificates as dicts: the same ones as the interpreter makes of its connections' own."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Any

import pytest
from tlskit import CERTIFICATES

from tloop_py import _x509

# What CPython's own tests use: it decodes a file.
reference: Any = getattr(ssl._ssl, "_test_decode_cert", None)  # type: ignore[attr-defined]

# As many odd ones as this machine has: names in all encodings, dates in both forms, version 1.
SOURCES = [Path("/etc/ssl/certs/ca-certificates.crt"), *CERTIFICATES.rglob("*.pem")]
PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", re.DOTALL)

# Has everything that is shown: a name with several values in one group and in several encodings,
# all kinds of general names, both kinds of dates.
RICH = CERTIFICATES / "cases" / "rich.pem"


def certificates() -> list[str]:
    texts = [path.read_text() for path in SOURCES if path.exists()]
    return [pem for text in texts for pem in PEM.findall(text)]


@pytest.mark.skipif(reference is None, reason="this interpreter has nothing to compare with")
def test_the_same_dict_as_the_interpreters(tmp_path: Path) -> None:
    file = tmp_path / "one.pem"
    found = certificates()
    assert len(found) > 10
    for pem in found:
        file.write_text(pem)
        expected = reference(str(file))
        decoded = _x509.decode(ssl.PEM_cert_to_DER_cert(pem))
        assert decoded == expected
        assert list(decoded) == list(expected)


def test_whatever_is_cut_off_is_an_ssl_error() -> None:
    der = ssl.PEM_cert_to_DER_cert(PEM.findall(RICH.read_text())[0])
    for size in range(len(der)):
        with pytest.raises(ssl.SSLError, match="binary_form=True works"):
            _x509.decode(der[:size])


def test_several_in_a_row() -> None:
    ders = [ssl.PEM_cert_to_DER_cert(pem) for pem in certificates()[:5]]
    assert _x509.split_der(b"".join(ders)) == ders
    with pytest.raises((IndexError, ValueError)):
        _x509.split_der(ders[0][:-1])
