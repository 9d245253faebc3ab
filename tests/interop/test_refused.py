"""Whom we refuse and who refuses us, and why, whatever implementation is on the other side."""

from __future__ import annotations

import ssl

import pytest
from interopkit import Case, Foreign, our_client, our_server, payload_file, pem

VERSIONS = ("1.2", "1.3")
CRL = pem("crl")
TL_EVERIFY, TL_EALERT, TL_ETLS_NO_CERT, TL_ETLS_VERSION = -1048576, -131072, -95360, -93824
# TL_TLS_BAD_* by file in tests/tls/cases
EXPIRED, REVOKED, NAME, UNTRUSTED, FUTURE, USAGE = 1, 2, 4, 8, 512, 4096
BAD_SERVERS = {
    "expired": EXPIRED,
    "other": NAME,
    "stranger": UNTRUSTED,
    "future": FUTURE,
    "client": USAGE,
    "revoked": REVOKED,
}
BAD_CLIENTS = {
    "expired": EXPIRED,
    "stranger": UNTRUSTED,
    "future": FUTURE,
    "server": USAGE,
    "revoked": REVOKED,
}
CERTIFICATE_ALERTS = {42, 43, 44, 45, 46, 48}
BY_US, BY_PEER = 1, 2


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cert", BAD_SERVERS)
def test_our_client_refuses(foreign: Foreign, cert: str, version: str) -> None:
    with foreign.serve(Case(version, cert)) as server:
        ours = our_client(Case(version), server.port, send=payload_file(1), expect=1, crl=CRL)
        agreed = ours.event("tls")
    assert agreed["result"] == TL_EVERIFY - BAD_SERVERS[cert], agreed
    assert agreed["refused_by"] == BY_US
    assert ours.event("closed")["sent"] == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_our_client_compares_addresses(foreign: Foreign, version: str) -> None:
    for address, result in {"127.0.0.1": 0, "127.0.0.2": TL_EVERIFY - NAME}.items():
        with foreign.serve(Case(version)) as server:
            agreed = our_client(Case(version), server.port, name=address, expect=0).event("tls")
        assert agreed["result"] == result, agreed


def refused(foreign: Foreign, case: Case, port: int) -> None:
    """Connect, and fail at the latest when nothing comes back."""
    with pytest.raises((AssertionError, ssl.SSLError, ConnectionError)):
        foreign.connect(case, port, 1)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cert", BAD_CLIENTS)
def test_our_server_refuses(foreign: Foreign, cert: str, version: str) -> None:
    with our_server(Case(version), verify="required", expect=1, crl=CRL) as ours:
        refused(foreign, Case(version, client_cert=cert), ours.port)
        agreed = ours.event("tls")
    wanted = {TL_EVERIFY - BAD_CLIENTS[cert]}
    if cert == "stranger":  # some show no certificate to a server that does not name its authority
        wanted.add(TL_ETLS_NO_CERT)
    assert agreed["result"] in wanted, agreed
    assert agreed["refused_by"] == BY_US


@pytest.mark.parametrize("version", VERSIONS)
def test_our_server_insists(foreign: Foreign, version: str) -> None:
    with our_server(Case(version), verify="required", expect=1) as ours:
        refused(foreign, Case(version), ours.port)
        assert ours.event("tls")["result"] == TL_ETLS_NO_CERT


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cert", ["expired", "other", "stranger"])
def test_a_client_refuses_us(foreign: Foreign, cert: str, version: str) -> None:
    with our_server(Case(version, cert), expect=1) as ours:
        refused(foreign, Case(version), ours.port)
        agreed = ours.event("tls")
    assert TL_EALERT - agreed["result"] in CERTIFICATE_ALERTS, agreed
    assert agreed["refused_by"] == BY_PEER


def test_no_common_version(foreign: Foreign) -> None:
    with our_server(Case("1.3"), expect=1) as ours:
        refused(foreign, Case("1.2"), ours.port)
        assert ours.event("tls")["result"] == TL_ETLS_VERSION
    with foreign.serve(Case("1.3")) as server:
        agreed = our_client(Case("1.2"), server.port, expect=0).event("tls")
    assert TL_EALERT - agreed["result"] in {40, 70}, agreed  # GnuTLS says handshake failure
