"""Every way in which a certificate is bad is refused, by clients and servers, and how it is told.

The interpreter's ssl sets the standard: the same class of exception, with the same verify_code.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from loopkit import Loop, Recorder, listening, turns, until
from tlskit import CASES, NAME, VERSIONS, kind_of, only

pytestmark = pytest.mark.usefixtures("loop")

CRL, LEAF = CASES / "crl.pem", ssl.VERIFY_CRL_CHECK_LEAF


class Case(NamedTuple):
    """A certificate, why it is bad, and for whom."""

    certificate: str
    code: int  # X509_V_ERR_*
    hostname: str = NAME
    revocations: bool = False  # are lists asked for, and if so...
    list_is_there: bool = True


UNKNOWN_AUTHORITY = Case("stranger", 20)
EXPIRED = Case("expired", 10)
FUTURE = Case("future", 9)
REVOKED = Case("revoked", 23, revocations=True)
NO_LIST = Case("chain", 3, revocations=True)  # which would say whether its issuer revokes it
NO_LISTS = Case("revoked", 3, revocations=True, list_is_there=False)
WEAK = Case("weak", 66)
BOTH_WAYS = [UNKNOWN_AUTHORITY, EXPIRED, FUTURE, REVOKED, NO_LIST, NO_LISTS, WEAK]
OF_SERVERS = [
    *BOTH_WAYS,
    Case("client", 26),
    Case("other", 62),
    Case("server", 62, hostname="sub.server.example"),
    Case("server", 62, hostname="a.b.wild.example"),
    Case("other", 64, hostname="127.0.0.1"),
    Case("server", 64, hostname="127.0.0.2"),
    Case("server", 64, hostname="::2"),
]
OF_CLIENTS = [*BOTH_WAYS, Case("server", 26)]


def shows(context: Any, certificate: str) -> Any:
    """OpenSSL itself would not show a weak one."""
    if isinstance(context, ssl.SSLContext):
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.load_cert_chain(CASES / f"{certificate}.pem")
    return context


def judges(context: Any, case: Case) -> Any:
    context.load_verify_locations(CASES / "authority.pem")
    if case.revocations:
        context.verify_flags |= LEAF
    if case.revocations and case.list_is_there:
        context.load_verify_locations(CRL)
    return context


def check(error: object, case: Case) -> None:
    assert isinstance(error, ssl.SSLCertVerificationError)
    assert (error.library, error.reason) == ("SSL", "CERTIFICATE_VERIFY_FAILED")
    assert str(error).startswith("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: ")
    assert error.verify_code == case.code
    assert error.verify_message in str(error)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", OF_SERVERS, ids=lambda case: f"{case.certificate}-{case.code}")
async def test_a_bad_server_is_refused(
    loop: Loop, engine: str, case: Case, version: ssl.TLSVersion
) -> None:
    server = shows(kind_of("server", engine)(ssl.PROTOCOL_TLS_SERVER), case.certificate)
    client = judges(kind_of("client", engine)(ssl.PROTOCOL_TLS_CLIENT), case)
    only(version, client)
    protocol = Recorder()
    # mbedTLS does not even show a certificate that is not a server's.
    shown = case.code != 26 or engine in ("ssl", "client")
    async with listening(Recorder, ssl=server) as address:
        with pytest.raises(ssl.SSLError) as caught:
            await loop.create_connection(
                lambda: protocol, *address, ssl=client, server_hostname=case.hostname
            )
        await turns(20)
    assert protocol.calls == []
    if shown:
        check(caught.value, case)
    else:
        assert caught.value.reason == "SSLV3_ALERT_HANDSHAKE_FAILURE"


@pytest.fixture
def told(loop: Loop) -> Iterator[list[Any]]:
    """The exceptions that debug mode tells of."""
    told: list[Any] = []
    loop.set_debug(True)
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))
    yield told
    loop.set_exception_handler(None)


@pytest.mark.parametrize("mode", [ssl.CERT_REQUIRED, ssl.CERT_OPTIONAL])
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", OF_CLIENTS, ids=lambda case: f"{case.certificate}-{case.code}")
async def test_a_bad_client_is_refused(
    loop: Loop,
    engine: str,
    told: list[Any],
    case: Case,
    version: ssl.TLSVersion,
    mode: ssl.VerifyMode,
) -> None:
    server = judges(kind_of("server", engine)(ssl.PROTOCOL_TLS_SERVER), case)
    server.load_cert_chain(CASES / "server.pem")
    server.verify_mode = mode
    client = shows(kind_of("client", engine)(ssl.PROTOCOL_TLS_CLIENT), case.certificate)
    client.load_verify_locations(CASES / "authority.pem")
    only(version, client)
    served, protocol = Recorder(), Recorder()
    async with listening(lambda: served, ssl=server) as address:
        try:  # in TLS 1.3 a client learns of it after its handshake
            await loop.create_connection(
                lambda: protocol, *address, ssl=client, server_hostname=NAME
            )
            await until(lambda: protocol.lost)
        except (ssl.SSLError, ConnectionResetError):
            assert protocol.calls == []
        await until(lambda: told)
        await turns(20)
    assert served.calls == []
    assert protocol.data == b""
    check(told.pop(), case)
    told.clear()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("certificate", "hostname"),
    [
        ("server", NAME),
        ("server", "SERVER.example"),
        ("server", "a.wild.example"),
        ("server", "127.0.0.1"),
        ("server", "::1"),
        ("rsa", NAME),
        ("chain", NAME),
    ],
)
async def test_a_good_server_is_accepted(
    loop: Loop, engine: str, version: ssl.TLSVersion, certificate: str, hostname: str
) -> None:
    """With its revocation list at hand, unless an authority in between has none."""
    server = shows(kind_of("server", engine)(ssl.PROTOCOL_TLS_SERVER), certificate)
    lists = certificate != "chain"
    case = Case(certificate, 0, revocations=lists)
    client = judges(kind_of("client", engine)(ssl.PROTOCOL_TLS_CLIENT), case)
    only(version, client)
    async with listening(Recorder, ssl=server) as address:
        transport, protocol = await loop.create_connection(
            Recorder, *address, ssl=client, server_hostname=hostname
        )
        assert transport.get_extra_info("peercert")["subject"] == ((("commonName", "leaf"),),)
        transport.abort()
        await until(lambda: protocol.lost)
        await turns(20)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_client_without_the_certificate_that_is_required(
    loop: Loop, engine: str, told: list[Any], version: ssl.TLSVersion
) -> None:
    server = judges(kind_of("server", engine)(ssl.PROTOCOL_TLS_SERVER), UNKNOWN_AUTHORITY)
    server.load_cert_chain(CASES / "server.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    client = judges(kind_of("client", engine)(ssl.PROTOCOL_TLS_CLIENT), UNKNOWN_AUTHORITY)
    only(version, client)
    protocol = Recorder()
    async with listening(Recorder, ssl=server) as address:
        try:
            await loop.create_connection(
                lambda: protocol, *address, ssl=client, server_hostname=NAME
            )
            await until(lambda: protocol.lost)
        except (ssl.SSLError, ConnectionResetError):
            assert protocol.calls == []
        await until(lambda: told)
        await turns(20)
    [error] = told
    assert isinstance(error, ssl.SSLError)
    assert error.reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE"
    told.clear()
