"""tloop_tls.h with every foreign implementation, in both roles: what is agreed, and every byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from interopkit import (
    FOREIGN,
    Case,
    Foreign,
    Openssl,
    Ours,
    digest,
    fingerprint,
    our_client,
    our_server,
    payload,
    payload_file,
)

VERSIONS = ("1.2", "1.3")
SIZES = (0, 1, 16384, 16385, 1 << 20)
MUCH = 64 << 20
CASES = [
    Case(version, cert, client_cert)
    for version in VERSIONS
    for cert in ("server", "rsa")
    for client_cert in (None, "client")
]
ONE_SIDED = [case for case in CASES if not case.mutual]


def check(ours: Ours, case: Case, number: int, nbytes: int, peer: str | None) -> None:
    agreed, closed = ours.event("tls", number), ours.event("closed", number)
    assert agreed["result"] == 0, agreed
    assert (agreed["version"], agreed["resumed"]) == (case.version, 0)
    assert agreed["peer"] == (fingerprint(peer) if peer else "")
    assert closed["result"] == 0, closed
    assert (closed["received"], closed["sha256"]) == (nbytes, digest(nbytes))
    assert "failed" not in [event["event"] for event in ours.events()], str(ours)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_our_server(foreign: Foreign, case: Case) -> None:
    for nbytes in SIZES:
        with our_server(case, expect=nbytes) as ours:
            foreign.connect(case, ours.port, nbytes)
            check(ours, case, 0, nbytes, case.client_cert)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_our_client(foreign: Foreign, case: Case) -> None:
    for nbytes in SIZES:
        with foreign.serve(case) as server:
            server.send(payload(nbytes))
            ours = our_client(case, server.port, send=payload_file(nbytes), expect=nbytes)
            check(ours, case, 0, nbytes, case.cert)
            server.check_received(payload(nbytes))


@pytest.mark.parametrize("case", ONE_SIDED, ids=str)
def test_much_to_our_server(foreign: Foreign, case: Case) -> None:
    nbytes = MUCH if foreign.name != "gnutls" else MUCH >> 4
    with our_server(case, expect=nbytes) as ours:
        foreign.connect(case, ours.port, nbytes)
        check(ours, case, 0, nbytes, None)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_gnutls_reads_and_writes_byte_by_byte() -> None:
    with our_server(Case(), expect=MUCH) as ours:
        FOREIGN["gnutls"].connect(Case(), ours.port, MUCH)
        check(ours, Case(), 0, MUCH, None)


@pytest.mark.parametrize("case", ONE_SIDED, ids=str)
def test_much_to_our_client(foreign: Foreign, case: Case) -> None:
    with foreign.serve(case) as server:
        server.send(payload(MUCH))
        ours = our_client(case, server.port, send=payload_file(MUCH), expect=MUCH)
        check(ours, case, 0, MUCH, case.cert)
        server.check_received(payload(MUCH))


@pytest.mark.parametrize("case", ONE_SIDED, ids=str)
def test_clients_resume(foreign: Foreign, case: Case) -> None:
    with our_server(case, expect=1) as ours:
        foreign.resume(case, ours.port)
        assert ours.event("tls", 0)["resumed"] == 0
        assert ours.event("tls", 1)["resumed"] == 1


@pytest.mark.parametrize("case", ONE_SIDED, ids=str)
def test_our_client_resumes(foreign: Foreign, case: Case, tmp_path: Path) -> None:
    with foreign.serve(case) as server:
        for number in range(2):
            server.send(b"\n")
            options = {"send": payload_file(1), "expect": 1, "session": tmp_path / "session"}
            ours = our_client(case, server.port, **options)
            assert ours.event("tls")["resumed"] == number, str(ours)


def test_sessions_are_resumed_without_tickets(tmp_path: Path) -> None:
    """By TLS 1.2's session ids."""
    without = Openssl("-no_ticket")
    test_clients_resume(without, Case("1.2"))
    test_our_client_resumes(without, Case("1.2"), tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
def test_who_needs_a_certificate_shows_it_again(foreign: Foreign, version: str) -> None:
    """Resumed sessions would not say who the client is, so our server begins anew."""
    case = Case(version, client_cert="client")
    with our_server(case, expect=1) as ours:
        for number in range(2):
            foreign.connect(case, ours.port, 1)
            check(ours, case, number, 1, "client")


@pytest.mark.parametrize("offered", ["h2,http/1.1", "http/1.1", "h2"])
def test_a_protocol_is_agreed(foreign: Foreign, offered: str) -> None:
    with our_server(Case(alpn="h2,http/1.1"), expect=1) as ours:
        foreign.connect(Case(alpn=offered), ours.port, 1)
        assert ours.event("tls")["alpn"] == offered.split(",")[0]
