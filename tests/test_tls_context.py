"""TLSContext by itself: what it takes, what it refuses, what it answers; as ssl.SSLContext does."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopkit import (
    REFCOUNTS,
    Echo,
    Recorder,
    end_of,
    listening,
    new_asyncio_loop,
    new_tloop,
    run_python,
    turns,
    warnings_seen,
)
from tlskit import CASES, NAME, VERSIONS, client_context, only, server_context, tls_pair

from tloop_py import TLSContext, TLSSession, create_tls_context

CLIENT, SERVER = ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER
BOTH_KINDS = pytest.mark.parametrize("kind", [TLSContext, ssl.SSLContext])
NOT_PYPYS = pytest.mark.skipif(not REFCOUNTS, reason="PyPy's ssl takes cadata in its own way")


def bytes_of(name: str) -> bytes:
    return (CASES / f"{name}.pem").read_bytes()


# -- role and rules --------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [ssl.PROTOCOL_TLS, ssl.PROTOCOL_TLSv1_2, 99, "server", None])
def test_a_context_is_for_clients_or_for_servers(protocol: Any) -> None:
    with pytest.raises(ValueError, match=r"PROTOCOL_TLS_CLIENT or ssl.PROTOCOL_TLS_SERVER"):
        TLSContext(protocol)


@BOTH_KINDS
def test_what_a_new_context_is_like(kind: Any) -> None:
    client, server = kind(CLIENT), kind(SERVER)
    assert (client.protocol, server.protocol) == (CLIENT, SERVER)
    assert (client.check_hostname, client.verify_mode) == (True, ssl.CERT_REQUIRED)
    assert (server.check_hostname, server.verify_mode) == (False, ssl.CERT_NONE)
    for context in (client, server):
        assert context.verify_flags & ssl.VERIFY_X509_TRUSTED_FIRST
        assert context.options & ssl.OP_NO_COMPRESSION
        assert context.sni_callback is None
        assert context.keylog_filename is None
        assert context.get_ca_certs() == []


@BOTH_KINDS
def test_names_are_checked_only_where_certificates_are(kind: Any) -> None:
    context = kind(CLIENT)
    with pytest.raises(ValueError, match="Cannot set verify_mode to CERT_NONE when check_hostname"):
        context.verify_mode = ssl.CERT_NONE
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.check_hostname = True
    assert context.verify_mode == ssl.CERT_REQUIRED


@BOTH_KINDS
@pytest.mark.parametrize("mode", [7, "required"])
def test_a_mode_that_does_not_exist(kind: Any, mode: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        kind(CLIENT).verify_mode = mode


def test_servers_have_no_names_to_check() -> None:
    with pytest.raises(ValueError, match="check_hostname is for clients"):
        TLSContext(SERVER).check_hostname = True


def test_versions() -> None:
    context = TLSContext(CLIENT)
    for version in VERSIONS:
        only(version, context)  # type: ignore[arg-type]
        assert (context.minimum_version, context.maximum_version) == (version, version)
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    assert (context.minimum_version, context.maximum_version) == tuple(VERSIONS)
    for version in (ssl.TLSVersion.SSLv3, ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.raises(ValueError, match=f"TLS 1.2 and 1.3 only, not {version.name}"):
            context.minimum_version = version


def test_what_mbedtls_cannot_honour_raises() -> None:
    context = TLSContext(CLIENT)
    with pytest.raises(ValueError, match=r"cannot honour verify_flags .*STRICT"):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    with pytest.raises(ValueError, match=r"cannot do without .*PARTIAL_CHAIN.*verify_flags with"):
        context.verify_flags = ssl.VERIFY_CRL_CHECK_LEAF
    with pytest.raises(ValueError, match=r"cannot honour options .*NO_D?TLSv1_2"):
        context.options |= ssl.OP_NO_TLSv1_2
    with pytest.raises(ValueError, match=r"cannot do without .*NO_SSLv3"):
        context.options &= ~ssl.OP_NO_SSLv3
    for name in ("post_handshake_auth", "hostname_checks_common_name", "security_level"):
        with pytest.raises(AttributeError):
            setattr(context, name, True)
    for name in ("set_ecdh_curve", "load_dh_params", "set_psk_client_callback", "session_stats"):
        assert not hasattr(context, name)


def test_what_can_be_chosen() -> None:
    context = TLSContext(SERVER)
    for choice in (ssl.VERIFY_CRL_CHECK_LEAF, ssl.VERIFY_CRL_CHECK_CHAIN):
        context.verify_flags |= choice
        assert context.verify_flags & choice == choice
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_TLSv1_1
    assert context.options & ssl.OP_NO_TICKET
    assert context.num_tickets == 1
    context.num_tickets = 0
    assert context.num_tickets == 0
    with pytest.raises(ValueError, match="must be 0 or 1"):
        context.num_tickets = 2


@pytest.mark.parametrize(
    ("name", "value"), [("num_tickets", 1), ("sni_callback", print), ("session", None)]
)
def test_what_the_other_role_has(name: str, value: Any) -> None:
    context = TLSContext(SERVER if name == "session" else CLIENT)
    with pytest.raises(ValueError, match=f"{name} is for"):
        setattr(context, name, value)


def test_what_does_the_work_is_named() -> None:
    name = TLSContext(SERVER).library
    assert re.fullmatch(r"Mbed TLS [\d.]+, AES-GCM by (mbedTLS|ipsec-mb [\d.]+, .+)", name)


def test_time_outs_of_closing() -> None:
    context = TLSContext(CLIENT)
    assert context.close_timeout == 1.0
    context.close_timeout = 0.25
    assert context.close_timeout == 0.25
    for seconds in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="close_timeout should be a positive number"):
            context.close_timeout = seconds


# -- ciphers and protocols -------------------------------------------------------------------------


def cipher_names(context: TLSContext) -> list[str]:
    return [cipher["name"] for cipher in context.get_ciphers()]


def test_default_ciphers_have_forward_secrecy_and_authenticate() -> None:
    context = TLSContext(CLIENT)
    for cipher in context.get_ciphers():
        assert cipher["aead"]
        assert cipher["alg_bits"] == cipher["strength_bits"] >= 128
        assert (cipher["protocol"] == "TLSv1.3") == ("_ECDHE_" not in cipher["name"])
    only(VERSIONS[1], context)  # type: ignore[arg-type]
    assert {cipher["protocol"] for cipher in context.get_ciphers()} == {"TLSv1.3"}


def test_ciphers_are_chosen_by_their_names() -> None:
    context = TLSContext(CLIENT)
    chosen = "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
    context.set_ciphers(chosen)
    assert cipher_names(context) == chosen.split(":")
    only(VERSIONS[0], context)  # type: ignore[arg-type]
    assert cipher_names(context) == ["TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"]


def test_ciphers_of_1_2_leave_those_of_1_3_alone_as_with_openssl() -> None:
    context = TLSContext(CLIENT)
    context.set_ciphers("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384")
    assert "TLS_AES_128_GCM_SHA256" in cipher_names(context)
    assert len(cipher_names(context)) > 2


def test_ciphers_of_1_3_need_1_2_to_be_excluded() -> None:
    context = client_context(TLSContext)  # type: ignore[type-var]
    context.set_ciphers("TLS_AES_256_GCM_SHA384")
    with pytest.raises(ssl.SSLError, match=r"set minimum_version to ssl.TLSVersion.TLSv1_3"):
        context.get_ciphers()
    context.minimum_version = VERSIONS[1]
    assert [cipher["name"] for cipher in context.get_ciphers()] == ["TLS_AES_256_GCM_SHA384"]


@pytest.mark.parametrize(
    "text", ["", ":", "ECDHE+AESGCM", "ECDHE-RSA-AES128-GCM-SHA256", "HIGH:!aNULL", "TLS_NO_SUCH"]
)
def test_names_of_openssl_are_refused(text: str) -> None:
    with pytest.raises(ssl.SSLError, match=r"No cipher can be selected.*IANA's names"):
        TLSContext(CLIENT).set_ciphers(text)


@pytest.mark.parametrize("name", ["", "a,b", "x" * 256, "h\N{SUPERSCRIPT TWO}", "a\0b"])
def test_alpn_names(name: str) -> None:
    with pytest.raises(ssl.SSLError, match="cannot be the name of an ALPN protocol"):
        TLSContext(CLIENT).set_alpn_protocols(["h2", name])


# -- certificates ----------------------------------------------------------------------------------


def test_certificates_of_all_kinds_of_files(tmp_path: Path) -> None:
    context = TLSContext(SERVER)
    context.load_cert_chain(CASES / "server.pem")
    context.load_cert_chain(str(CASES / "rsa.pem"), os.fsencode(CASES / "rsa.pem"))
    context.load_cert_chain(certdata=bytes_of("chain"))
    context.load_cert_chain(certdata=bytes_of("server").decode(), keydata=bytes_of("server"))
    for password in (
        "secret",
        b"secret",
        bytearray(b"secret"),
        lambda: "secret",
        lambda: b"secret",
    ):
        context.load_cert_chain(CASES / "locked.pem", password=password)
    der = tmp_path / "server.der"
    pem = bytes_of("server").decode()
    der.write_bytes(ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERT") :]))
    context.load_cert_chain(der, CASES / "server.pem")


def test_no_password_is_asked_for_without_need() -> None:
    TLSContext(SERVER).load_cert_chain(CASES / "server.pem", password=lambda: 1 / 0)  # type: ignore


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"certfile": CASES / "mismatch.pem"}, "KEY_VALUES_MISMATCH"),
        ({"certfile": CASES / "locked.pem"}, "BAD_DECRYPT"),
        ({"certfile": CASES / "locked.pem", "password": "guess"}, "BAD_DECRYPT"),
        ({"certfile": CASES / "locked.pem", "password": lambda: "guess"}, "BAD_DECRYPT"),
        ({"certfile": CASES / "authority.pem"}, None),
        ({"certdata": b"no certificate"}, None),
        ({"certdata": b""}, None),
    ],
)
def test_what_does_not_belong_together(arguments: dict[str, Any], reason: str | None) -> None:
    context = TLSContext(SERVER)
    with pytest.raises(ssl.SSLError) as caught:
        context.load_cert_chain(**arguments)
    assert reason is None or caught.value.reason == reason
    with pytest.raises(ssl.SSLError, match=r"call load_cert_chain\(\)"):
        context._ready(server_side=True)


@BOTH_KINDS
@pytest.mark.parametrize(
    ("password", "error"),
    [
        (7, TypeError),
        (lambda: 7, TypeError),
        ("x" * 2000, ValueError),
        (lambda: "x" * 2000, ValueError),
        (lambda: {}["nothing"], KeyError),
    ],
)
def test_passwords(kind: Any, password: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        kind(SERVER).load_cert_chain(CASES / "locked.pem", password=password)


@BOTH_KINDS
def test_a_file_that_is_not_there(kind: Any) -> None:
    context = kind(SERVER)
    for load in (context.load_cert_chain, context.load_verify_locations):
        with pytest.raises(FileNotFoundError):
            load("/nowhere/certificate.pem")


@pytest.mark.parametrize(
    "arguments", [{}, {"certfile": "a", "certdata": "b"}, {"certdata": b"x", "keydata": 1}]
)
def test_one_certificate_at_a_time(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        TLSContext(SERVER).load_cert_chain(**arguments)


# -- authorities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TLSContext, pytest.param(ssl.SSLContext, marks=NOT_PYPYS)])
def test_authorities_from_everywhere(kind: Any, tmp_path: Path) -> None:
    pem = bytes_of("authority").decode()
    der = ssl.PEM_cert_to_DER_cert(pem)
    sources: list[dict[str, Any]] = [
        {"cafile": CASES / "authority.pem"},
        {"cadata": pem},
        {"cadata": der},
    ]
    for source in sources:
        context = kind(CLIENT)
        context.load_verify_locations(**source)
        assert context.get_ca_certs(binary_form=True) == [der]
        [decoded] = context.get_ca_certs()
        assert decoded["subject"] == ((("commonName", "tloop test root"),),)


def test_authorities_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_bytes(bytes_of("authority"))
    (tmp_path / "5ad8a5d6.0").symlink_to("root.pem")
    (tmp_path / "README").write_text("nothing to trust here")
    context = TLSContext(CLIENT)
    context.load_verify_locations(capath=tmp_path)
    assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize("kind", [TLSContext, pytest.param(ssl.SSLContext, marks=NOT_PYPYS)])
def test_what_cannot_be_trusted(kind: Any, tmp_path: Path) -> None:
    context = kind(CLIENT)
    with pytest.raises(TypeError, match="cannot be all omitted"):
        context.load_verify_locations()
    with pytest.raises(ValueError, match="Empty certificate data"):
        context.load_verify_locations(cadata="")
    with pytest.raises(TypeError, match="ASCII string"):
        context.load_verify_locations(cadata="\N{SNOWMAN}")
    with pytest.raises(TypeError, match="bytes-like object"):
        context.load_verify_locations(cadata=7)
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    with pytest.raises(ssl.SSLError):
        context.load_verify_locations(empty)
    with pytest.raises(ssl.SSLError):
        context.load_verify_locations(cadata=b"\x30\x82\x01\x00nonsense")
    assert context.get_ca_certs() == []


def test_the_systems_authorities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CASES / "authority.pem"))
    context = create_tls_context()
    assert context.get_ca_certs() == []

    async def main() -> None:
        async with tls_pair(server_of_cases(), context) as (transport, _, _):  # type: ignore
            assert transport.get_extra_info("peercert")

    run(main)
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere/authorities.pem")
    with pytest.raises(FileNotFoundError, match="system's certificate authorities"):
        create_tls_context()._ready(server_side=False)


def server_of_cases(kind: Any = ssl.SSLContext) -> Any:
    context = kind(SERVER)
    context.load_cert_chain(CASES / "server.pem")
    return context


def client_of_cases(kind: Any = TLSContext) -> Any:
    context = kind(CLIENT)
    context.load_verify_locations(CASES / "authority.pem")
    return context


def run(main: Callable[[], Any]) -> None:
    with asyncio.Runner(loop_factory=new_tloop) as runner:
        runner.run(main())


# -- create_tls_context ----------------------------------------------------------------------------


def test_contexts_for_both_purposes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSLKEYLOGFILE", raising=False)
    client = create_tls_context(cafile=CASES / "authority.pem", alpn_protocols=["h2"])
    assert client.protocol == CLIENT
    assert client.check_hostname
    server = create_tls_context(ssl.Purpose.CLIENT_AUTH, certfile=CASES / "server.pem")
    assert server.protocol == SERVER
    assert server.verify_mode == ssl.CERT_NONE
    with pytest.raises(ValueError, match="purpose"):
        create_tls_context("purpose")  # type: ignore[arg-type]
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    assert create_tls_context(cadata=bytes_of("authority")).keylog_filename == str(
        tmp_path / "keys"
    )


# -- use -------------------------------------------------------------------------------------------


def test_a_server_without_a_certificate() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(ssl.SSLError, match=r"needs a certificate .* call load_cert_chain\(\)"):
            await loop.create_server(Recorder, "localhost", 0, ssl=TLSContext(SERVER))  # type: ignore
        with pytest.raises(ssl.SSLError, match="load_cert_chain"):
            await loop.create_unix_server(Recorder, "\0tloop-tls", ssl=TLSContext(SERVER))  # type: ignore
        server = server_of_cases(TLSContext)
        server.verify_mode = ssl.CERT_REQUIRED
        with pytest.raises(ssl.SSLCertVerificationError, match="trusts nobody"):
            await loop.create_server(Recorder, "localhost", 0, ssl=server)
        with pytest.raises(ssl.SSLError, match="Cannot create a server socket with a"):
            await loop.create_server(Recorder, "localhost", 0, ssl=client_of_cases())

    run(main)


def test_a_client_that_could_reach_nobody() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def connect(context: TLSContext, name: str) -> None:
            await loop.create_connection(
                Recorder,
                *address,
                ssl=context,
                server_hostname=name,  # type: ignore[arg-type]
            )

        async with listening(Recorder) as address:
            with pytest.raises(ssl.SSLCertVerificationError, match="trusts nobody"):
                await connect(TLSContext(CLIENT), NAME)
            with pytest.raises(ssl.SSLError, match="Cannot create a client socket with a"):
                await connect(server_of_cases(TLSContext), NAME)
            with pytest.raises(ValueError, match="check_hostname requires server_hostname"):
                await connect(client_of_cases(), "")
            for name in (".example", "a" * 64 + ".example"):
                with pytest.raises(ValueError, match=r"leading dot|too long"):
                    await connect(client_of_cases(), name)
            await turns(20)

    run(main)


def test_asyncios_own_loop_refuses_a_tls_context() -> None:
    async def main() -> None:
        context: Any = client_of_cases()
        loop = asyncio.get_running_loop()
        async with listening(Recorder) as address:
            with warnings_seen(), pytest.raises(TypeError, match="tloop's event loops only"):
                await loop.create_connection(Recorder, *address, ssl=context, server_hostname=NAME)
            await turns(20)

    with asyncio.Runner(loop_factory=new_asyncio_loop) as runner:
        runner.run(main())
    for wrap in (client_of_cases().wrap_socket, client_of_cases().wrap_bio):
        with pytest.raises(TypeError, match=r"use an ssl.SSLContext"):
            wrap(None)


def test_changes_count_for_later_connections() -> None:
    async def main() -> None:
        server: Any = server_of_cases(TLSContext)
        client: Any = client_of_cases()
        seen = []
        async with listening(Recorder, ssl=server) as address:
            for version in VERSIONS:
                only(version, server)
                transport, protocol = await asyncio.get_running_loop().create_connection(
                    Recorder, *address, ssl=client, server_hostname=NAME
                )
                seen.append(transport.get_extra_info("ssl_object").version())
                transport.abort()
                await end_of(protocol)
            await turns(20)
        assert seen == ["TLSv1.2", "TLSv1.3"]

    run(main)


def test_certificates_by_name() -> None:
    server = server_context(kind=TLSContext)  # type: ignore[type-var]
    server.load_cert_chain(CASES / "server.pem", server_names=["*.wild.example"])  # type: ignore
    client = client_context()
    client.load_verify_locations(CASES / "authority.pem")

    async def main() -> None:
        names = []
        async with listening(Recorder, ssl=server) as address:
            for name in (NAME, "a.wild.example"):
                transport, protocol = await asyncio.get_running_loop().create_connection(
                    Recorder, *address, ssl=client, server_hostname=name
                )
                names.append(transport.get_extra_info("peercert")["subjectAltName"][0])
                transport.abort()
                await end_of(protocol)
            await turns(20)
        assert names == [("DNS", NAME), ("DNS", "server.example")]

    run(main)


async def talk(address: Any, client: Any) -> Any:
    """One connection, to and fro; gives its ssl_object and the session that it leaves."""
    transport, protocol = await asyncio.get_running_loop().create_connection(
        Recorder, *address, ssl=client, server_hostname=NAME
    )
    transport.write(b"hello")
    assert await protocol.received(5) == b"hello"
    tls = transport.get_extra_info("ssl_object")
    session = tls.session
    transport.close()
    await end_of(protocol)
    return tls, session


@pytest.mark.parametrize("kind", [TLSContext, ssl.SSLContext])
@pytest.mark.parametrize("version", VERSIONS)
def test_sessions_are_resumed(kind: Any, version: ssl.TLSVersion) -> None:
    async def main() -> None:
        client = client_of_cases()
        only(version, client)
        async with listening(Echo, ssl=server_of_cases(kind)) as address:
            first, session = await talk(address, client)
            client.session = session
            second, _ = await talk(address, client)
            client.session = TLSSession.from_bytes(session.to_bytes())
            third, _ = await talk(address, client)
            client.session = None
            fourth, _ = await talk(address, client)
            await turns(20)
        reused = [tls.session_reused for tls in (first, second, third, fourth)]
        assert reused == [False, True, True, False]
        assert second.getpeercert() == first.getpeercert()

    run(main)


def test_a_session_is_for_one_host_and_one_kind_of_trust() -> None:
    async def main() -> None:
        careless, client = client_of_cases(), client_of_cases()
        careless.check_hostname = False
        careless.verify_mode = ssl.CERT_NONE
        async with listening(Echo, ssl=server_of_cases(TLSContext)) as address:
            _, client.session = await talk(address, careless)
            tls, session = await talk(address, client)
            assert not tls.session_reused  # for the session was made without looking
            client.session = session
            transport, protocol = await asyncio.get_running_loop().create_connection(
                Recorder, *address, ssl=client, server_hostname="127.0.0.1"
            )
            assert not transport.get_extra_info("ssl_object").session_reused
            transport.abort()
            await end_of(protocol)
            await turns(20)

    run(main)


def test_what_is_no_session() -> None:
    with pytest.raises(ValueError, match="not the bytes of a TLSSession"):
        TLSSession.from_bytes(b"no session")
    with pytest.raises(TypeError, match="must be a TLSSession or None"):
        TLSContext(CLIENT).session = b"no session"  # type: ignore[assignment]


def test_processes_share_sessions_by_their_ticket_keys() -> None:
    async def main() -> None:
        key, other = os.urandom(36), os.urandom(36)
        servers = [server_of_cases(TLSContext) for _ in range(2)]
        for server in servers:
            server.set_ticket_key(key)
        client = client_of_cases()
        async with (
            listening(Echo, ssl=servers[0]) as first,
            listening(Echo, ssl=servers[1]) as second,
        ):
            _, client.session = await talk(first, client)
            tls, _ = await talk(second, client)
            assert tls.session_reused
            servers[1].set_ticket_key(other)  # the former one still opens
            tls, _ = await talk(second, client)
            assert tls.session_reused
            servers[1].set_ticket_key(os.urandom(36))
            tls, _ = await talk(second, client)
            assert not tls.session_reused
            await turns(20)

    run(main)
    with pytest.raises(ValueError, match="has 36 bytes, not 5"):
        TLSContext(SERVER).set_ticket_key(b"short")
    with pytest.raises(ValueError, match="is for servers"):
        TLSContext(CLIENT).set_ticket_key(os.urandom(36))


@pytest.mark.parametrize("how", ["num_tickets", "options"])
def test_no_resumption(how: str) -> None:
    async def main() -> None:
        server, client = server_of_cases(TLSContext), client_of_cases()
        if how == "num_tickets":
            server.num_tickets = 0
        else:
            server.options |= ssl.OP_NO_TICKET
        async with listening(Echo, ssl=server) as address:
            _, session = await talk(address, client)
            client.session = session
            tls, _ = await talk(address, client)
            assert not tls.session_reused
            await turns(20)

    run(main)


@pytest.mark.parametrize("side", ["server", "client"])
def test_secrets_are_logged_in_the_format_of_nss(side: str, tmp_path: Path) -> None:
    path = tmp_path / "keys"

    async def main() -> None:
        server, client = server_of_cases(TLSContext), client_of_cases()
        (server if side == "server" else client).keylog_filename = path
        async with tls_pair(server, client):
            pass

    run(main)
    comment, *lines = path.read_text().splitlines()
    assert comment.startswith("# TLS secrets log file")
    labels = {line.split()[0] for line in lines}
    assert labels == {
        "CLIENT_HANDSHAKE_TRAFFIC_SECRET",
        "SERVER_HANDSHAKE_TRAFFIC_SECRET",
        "CLIENT_TRAFFIC_SECRET_0",
        "SERVER_TRAFFIC_SECRET_0",
    }
    assert len({line.split()[1] for line in lines}) == 1


def test_one_context_serves_loops_in_many_threads() -> None:
    server, client = server_of_cases(TLSContext), client_of_cases()
    failures: list[BaseException] = []

    async def main() -> None:
        async with listening(Echo, ssl=server) as address:
            for _ in range(5):
                tls, client.session = await talk(address, client)
                assert tls.version() == "TLSv1.3"
            await turns(20)

    def work() -> None:
        try:
            run(main)
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# -- the environment -------------------------------------------------------------------------------

SHOW = """
import logging, ssl, tloop_py
context = tloop_py.TLSContext(ssl.PROTOCOL_TLS_CLIENT)
print(context.minimum_version.name, context.maximum_version.name, context.close_timeout)
print(logging.getLogger("tloop_py").level)
"""


def with_environment(**values: str) -> list[str]:
    return run_python(SHOW, env=values).split()


def test_the_environment_gives_defaults() -> None:
    assert with_environment() == ["TLSv1_2", "TLSv1_3", "1.0", "0"]
    assert with_environment(TLOOP_TLS_VERSION="1.2")[:2] == ["TLSv1_2", "TLSv1_2"]
    assert with_environment(TLOOP_TLS_VERSION="1.2+")[:2] == ["TLSv1_2", "TLSv1_3"]
    assert with_environment(TLOOP_TLS_VERSION="1.3")[:2] == ["TLSv1_3", "TLSv1_3"]
    assert with_environment(TLOOP_SSL_CLOSE_TIMEOUT="250")[2] == "0.25"
    assert with_environment(TLOOP_LOG="debug")[3] == "10"
    assert with_environment(TLOOP_LOG="WARN")[3] == "30"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TLOOP_TLS_VERSION", "1.1"),
        ("TLOOP_TLS_VERSION", ""),
        ("TLOOP_SSL_CLOSE_TIMEOUT", "soon"),
        ("TLOOP_SSL_CLOSE_TIMEOUT", "0"),
        ("TLOOP_SSL_CLOSE_TIMEOUT", "-5"),
        ("TLOOP_LOG", "loud"),
    ],
)
def test_a_bad_value_is_an_error_at_once(name: str, value: str) -> None:
    code = """
try:
    import tloop_py
except ValueError as exc:
    print(exc)
"""
    assert run_python(code, env={name: value}).startswith(f"{name}={value!r}: must be ")


def test_a_build_without_mbedtls_says_what_to_do() -> None:
    code = """
import importlib.util, sys, types
spec = importlib.util.find_spec("tloop_py")
from importlib.machinery import PathFinder
found = PathFinder.find_spec("tloop_py._tloop", spec.submodule_search_locations)
real = importlib.util.module_from_spec(found)
found.loader.exec_module(real)

class Lib:
    def __dir__(self):
        return [name for name in dir(real.lib) if "tls" not in name]
    def __getattr__(self, name):
        if name.startswith(("tl_tls", "TL_TLS", "TL_ETLS_", "tloop_on")):
            raise AttributeError(name)
        return getattr(real.lib, name)

fake = types.ModuleType("tloop_py._tloop")
fake.lib, fake.ffi = Lib(), real.ffi
sys.modules["tloop_py._tloop"] = fake
import asyncio, ssl, tloop_py
for make in (tloop_py.create_tls_context, lambda: tloop_py.TLSContext(ssl.PROTOCOL_TLS_SERVER)):
    try:
        make()
    except RuntimeError as exc:
        print(exc)
tloop_py.run(asyncio.sleep(0))
print("all the rest works")
"""
    first, second, rest = run_python(code).splitlines()
    assert first == second
    assert "compiled without mbedTLS" in first
    assert "make mbedtls" in first
    assert rest == "all the rest works"
