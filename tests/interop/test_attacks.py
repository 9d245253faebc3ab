"""Classic attacks on a server of tloop_tls.h, by a client that does not keep to the protocol.

Whatever it does, no byte of its reaches the application, the next client is served, and nothing is
left: the server is built with sanitizers, which complain of leaks, too.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import interopkit
import pytest
from interopkit import FOREIGN, PATIENCE, Case, Ours, pem
from tlslite import messages as m
from tlslite.constants import AlertDescription, AlertLevel, ExtensionType
from tlslite.errors import TLSError, TLSRemoteAlert
from tlslite.extensions import TLSExtension
from tlslite.handshakesettings import HandshakeSettings
from tlslite.tlsconnection import TLSConnection
from tlslite.utils.keyfactory import parsePEMKey
from tlslite.x509certchain import X509CertChain

Edit = Callable[[Any], Iterable[Any]]

V12, V13 = "1.2", "1.3"
CBC = "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA"
ACCEPTED, CLOSED = "accepted", "closed"


@contextmanager
def our_server(case: Case, **options: Any) -> Iterator[Ours]:
    with interopkit.our_server(case, "peer_asan", **options) as ours:
        ours.event("listening")
        yield ours
        ours.wait_for_ends()
    assert not ours.err, str(ours)


def connection(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), PATIENCE)


class Attacker(TLSConnection):  # type: ignore[misc]
    """A client whose messages go through `edit` before they are sent."""

    def __init__(self, port: int, edit: Edit = lambda msg: [msg]) -> None:
        self.wire = connection(port)
        super().__init__(self.wire)
        self.edit = edit

    def _sendMsg(self, msg: Any, *args: Any, **kwargs: Any) -> Iterator[int]:
        for each in self.edit(msg):
            yield from super()._sendMsg(each, *args, **kwargs)

    def shake(self, version: str, session: Any = None, own: str | None = None, **more: Any) -> None:
        settings = HandshakeSettings()
        settings.minVersion = settings.maxVersion = (3, 3) if version == V12 else (3, 4)
        vars(settings).update(more)
        chain, key = None, None
        if own:
            text = Path(pem(own)).read_text()
            chain, key = X509CertChain(), parsePEMKey(text, private=True)
            chain.parsePemList(text)
        self.handshakeClientCert(chain, key, session=session, settings=settings)

    def give(self, *msgs: Any) -> None:
        for msg in msgs:
            for _ in self._sendMsgThroughSocket(m.Message(msg.contentType, bytearray(msg.write()))):
                pass

    def close(self) -> None:
        self.wire.close()

    def answer(self) -> bytes:
        """What the server sends back, or why it does not."""
        return bytes(self.read(max=1, min=1))


def try_to(attack: Callable[[], object]) -> str:
    """The alert that ended it, if anything did."""
    try:
        attack()
    except TLSRemoteAlert as alert:
        return str(AlertDescription.toStr(alert.description))
    except (TLSError, ConnectionError):
        return CLOSED
    return ACCEPTED


def check_nothing_arrived(ours: Ours, case: Case, connections: int = 1) -> None:
    """An honest client is served, and it alone."""
    FOREIGN["python"].connect(case, ours.port, 100)
    ended = [ours.event("closed", number) for number in range(connections + 1)]
    assert sum(event["received"] for event in ended) == 100, ours.events()


def refusal(ours: Ours) -> str:
    """Why our server refused the first handshake."""
    agreed = ours.event("tls")
    assert agreed["result"] < 0, agreed
    assert agreed["refused_by"] == 1, agreed
    return str(agreed["text"])


def raw(msg_type: int, data: bytes) -> Any:
    return m.Message(msg_type, bytearray(data))


def data(n: int = 1) -> Any:
    return m.ApplicationData().create(bytearray(n))


def before(kind: type, *more: Any) -> Edit:
    return lambda msg: [*more, msg] if isinstance(msg, kind) else [msg]


def after(kind: type, *more: Any) -> Edit:
    return lambda msg: [msg, *more] if isinstance(msg, kind) else [msg]


def instead(kind: type, *more: Any) -> Edit:
    return lambda msg: more if isinstance(msg, kind) else [msg]


def twice(kind: type) -> Edit:
    return lambda msg: [msg, msg] if isinstance(msg, kind) else [msg]


def changed(kind: type, change: Callable[[Any], object]) -> Edit:
    def edit(msg: Any) -> Iterable[Any]:
        if isinstance(msg, kind):
            change(msg)
        return [msg]

    return edit


def flip_first(name: str) -> Callable[[Any], None]:
    def change(msg: Any) -> None:
        value = bytearray(getattr(msg, name))
        value[0] ^= 1
        setattr(msg, name, value)

    return change


HELLO, KEY, CCS, FINISHED = (m.ClientHello, m.ClientKeyExchange, m.ChangeCipherSpec, m.Finished)
WARNING = m.Alert().create(AlertDescription.no_renegotiation, AlertLevel.warning)
HEARTBEAT = raw(24, b"\1\x40\0" + bytes(19))  # claims 16 KiB
# Parts of mbedTLS' texts.
MESSAGE, RECORD, MAC, FAILED = (
    "unexpected message",
    "invalid SSL record",
    "Verification of the message MAC",
    "handshake negotiation failed",
)

# In the handshake: version, what the client does, why it is refused.
HANDSHAKES: dict[str, tuple[str, Edit, str]] = {
    "heartbleed-1.2": (V12, after(HELLO, HEARTBEAT), RECORD),
    "heartbleed-1.3": (V13, after(HELLO, HEARTBEAT), RECORD),
    "early-ccs": (V12, before(KEY, CCS()), MESSAGE),
    "no-ccs": (V12, instead(CCS), MESSAGE),
    "no-key-exchange": (V12, instead(KEY), MESSAGE),
    "no-finished-1.2": (V12, instead(FINISHED, data()), MESSAGE),
    "no-finished-1.3": (V13, instead(FINISHED, data()), MESSAGE),
    "wrong-finished-1.2": (V12, changed(FINISHED, flip_first("verify_data")), FAILED),
    "wrong-finished-1.3": (V13, changed(FINISHED, flip_first("verify_data")), FAILED),
    "two-hellos-1.2": (V12, twice(HELLO), MESSAGE),
    "two-hellos-1.3": (V13, twice(HELLO), MAC),
    "two-key-exchanges": (V12, twice(KEY), MESSAGE),
    "data-after-hello-1.2": (V12, after(HELLO, data()), MESSAGE),
    "data-after-hello-1.3": (V13, after(HELLO, data()), MAC),
    "plain-data": (V12, before(KEY, data()), MESSAGE),
    "data-before-finished-1.2": (V12, before(FINISHED, data()), MESSAGE),
    "data-before-finished-1.3": (V13, before(FINISHED, data()), MESSAGE),
    "empty-handshake-1.2": (V12, after(HELLO, raw(22, b"")), RECORD),
    "empty-handshake-1.3": (V13, after(HELLO, raw(22, b"")), RECORD),
    "empty-alert": (V13, after(HELLO, raw(21, b"")), RECORD),
    "wrong-ccs-1.2": (V12, instead(CCS, raw(20, b"\2")), RECORD),
    "wrong-ccs-1.3": (V13, after(HELLO, raw(20, b"\2")), RECORD),
    "long-ccs": (V12, instead(CCS, raw(20, b"\1\1")), RECORD),
    "unknown-type-1.2": (V12, after(HELLO, raw(99, b"x")), RECORD),
    "unknown-type-1.3": (V13, after(HELLO, raw(99, b"x")), RECORD),
    "a-servers-message": (V12, before(KEY, m.ServerHelloDone().create()), MESSAGE),
    "endless-hello": (V13, instead(HELLO, raw(22, b"\1\xff\xff\xff" + bytes(40000))), "Bad input"),
    "many-ccs": (V12, after(HELLO, *[CCS()] * 2000), MESSAGE),
    "warnings-1.2": (V12, after(HELLO, *[WARNING] * 2000), MESSAGE),
    "warnings-1.3": (V13, after(HELLO, *[WARNING] * 2000), ""),
}


def refused(port: int, version: str, edit: Edit, **settings: Any) -> str:
    with closing(Attacker(port, edit)) as attacker:
        return try_to(lambda: (attacker.shake(version, **settings), attacker.answer()))


@pytest.mark.parametrize("name", HANDSHAKES)
def test_handshakes(name: str) -> None:
    version, edit, reason = HANDSHAKES[name]
    with our_server(Case(version)) as ours:
        assert refused(ours.port, version, edit) != ACCEPTED
        assert reason in refusal(ours)
        check_nothing_arrived(ours, Case(version))


def extended(kind: int, payload: bytes | None) -> Callable[[Any], None]:
    """A hello with this extension, or without it."""

    def change(hello: Any) -> None:
        hello.extensions = [it for it in hello.extensions if it.extType != kind]
        if payload is not None:
            it = TLSExtension(extType=kind).create(bytearray(payload))
            hello.extensions.insert(0, it)

    return change


def with_session_id(hello: Any) -> None:
    hello.session_id = bytearray(33)


RENEGOTIATED = extended(ExtensionType.renegotiation_info, b"\x0c" + bytes(12))
LONG_FRAGMENTS = extended(ExtensionType.max_fragment_length, b"\x09")
NUL_IN_NAME = extended(ExtensionType.server_name, b"\0\x13\0\0\x10server.example\0x")
NO_GROUPS = extended(ExtensionType.supported_groups, None)
NO_SHARE = extended(ExtensionType.key_share, None)
NO_SIGNATURES = extended(ExtensionType.signature_algorithms, None)

# The alert that a hello is refused with.
HELLOS: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "renegotiated": (V12, RENEGOTIATED, "handshake_failure"),
    "long-fragments": (V12, LONG_FRAGMENTS, "illegal_parameter"),
    "long-session-id": (V12, with_session_id, "decode_error"),
    "no-ciphers": (V12, lambda hello: hello.cipher_suites.clear(), "decode_error"),
    "nul-in-name-1.2": (V12, NUL_IN_NAME, "unrecognized_name"),
    "nul-in-name-1.3": (V13, NUL_IN_NAME, "unrecognized_name"),
    "no-groups-1.2": (V12, NO_GROUPS, "handshake_failure"),
    "no-groups-1.3": (V13, NO_GROUPS, "missing_extension"),
    "no-share": (V13, NO_SHARE, "missing_extension"),
    "no-signatures": (V13, NO_SIGNATURES, "missing_extension"),
}


@pytest.mark.parametrize("name", HELLOS)
def test_hellos(name: str) -> None:
    version, change, alert = HELLOS[name]
    with our_server(Case(version)) as ours:
        assert refused(ours.port, version, changed(HELLO, change)) == alert
        assert refusal(ours)
        check_nothing_arrived(ours, Case(version))


@pytest.mark.parametrize("version", [V12, V13])
def test_extensions_that_come_twice(version: str) -> None:
    """mbedTLS takes most of them, which harms nobody."""
    kinds = (
        ExtensionType.supported_groups,
        ExtensionType.signature_algorithms,
        ExtensionType.key_share,
        ExtensionType.supported_versions,
        ExtensionType.extended_master_secret,
    )

    def double(hello: Any, kind: int) -> None:
        hello.extensions[:0] = [it for it in hello.extensions if it.extType == kind]

    with our_server(Case(version)) as ours:
        for kind in kinds:
            edit = changed(HELLO, lambda hello, kind=kind: double(hello, kind))
            with closing(Attacker(ours.port, edit)) as attacker:
                try_to(lambda attacker=attacker: attacker.shake(version))
        check_nothing_arrived(ours, Case(version), connections=len(kinds))


# -- once it is established ------------------------------------------------------------------------

LATE: dict[str, tuple[str, Any]] = {
    "heartbleed-1.2": (V12, HEARTBEAT),
    "heartbleed-1.3": (V13, HEARTBEAT),
    "renegotiation-1.2": (V12, raw(22, b"\1\0\0\x29\3\3" + bytes(39))),
    "renegotiation-1.3": (V13, raw(22, b"\1\0\0\x29\3\3" + bytes(39))),
    "hello-request-1.2": (V12, raw(22, bytes(4))),
    "hello-request-1.3": (V13, raw(22, bytes(4))),
    "ccs-1.2": (V12, CCS()),
    "key-update": (V13, raw(22, b"\x18\0\0\1\1")),
    "finished-1.2": (V12, raw(22, b"\x14\0\0\x0c" + bytes(12))),
    "finished-1.3": (V13, raw(22, b"\x14\0\0\x20" + bytes(32))),
    "ticket": (V13, raw(22, b"\4\0\0\x0d" + bytes(13))),
    "empty-alert": (V13, raw(21, b"")),
    "unknown-type-1.2": (V12, raw(99, b"x")),
    "unknown-type-1.3": (V13, raw(99, b"x")),
    "too-long-1.2": (V12, data(16385 + 2048)),
    "too-long-1.3": (V13, data(16385 + 256)),
}


@pytest.mark.parametrize("name", LATE)
def test_established_connections(name: str) -> None:
    version, msg = LATE[name]
    with our_server(Case(version)) as ours:
        with closing(Attacker(ours.port)) as attacker:
            attacker.shake(version)
            attacker.give(msg)
            assert try_to(attacker.answer) != ACCEPTED
            assert ours.event("failed")["code"] < 0
        check_nothing_arrived(ours, Case(version))


@pytest.mark.parametrize("version", [V12, V13])
def test_empty_records(version: str) -> None:
    """Some are received as nothing; many would only keep us busy."""
    case = Case(version)
    with our_server(case) as ours:
        for count in (1, 3):
            with closing(Attacker(ours.port)) as honest:
                honest.shake(version)
                honest.give(*(data(0) for _ in range(count)), data(50))
                assert bytes(honest.read(max=50, min=50)) == bytes(50)
        with closing(Attacker(ours.port)) as attacker:
            attacker.shake(version)
            with suppress(ConnectionError):
                attacker.give(*(data(0) for _ in range(100)))
            assert try_to(attacker.answer) != ACCEPTED
        ended = [ours.event("closed", number)["received"] for number in range(3)]
        assert ended == [50, 50, 0]


# -- keys ------------------------------------------------------------------------------------------

P256 = {"eccCurves": ["secp256r1"], "keyShares": ["secp256r1"]}
X25519 = {"eccCurves": ["x25519"], "keyShares": ["x25519"]}
ORDER_8 = (
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
)
POINTS = {
    "not-on-the-curve": (P256, b"\4" + b"\1" * 64),
    "infinity": (P256, b"\0"),
    "zeros": (P256, b"\4" + bytes(64)),
    "compressed": (P256, b"\2" + b"\1" * 32),
    "short": (P256, b"\4" + b"\1" * 63),
    "empty": (P256, b""),
    "zero": (X25519, bytes(32)),
    "one": (X25519, b"\1" + bytes(31)),
    "minus-one": (X25519, b"\xec" + b"\xff" * 30 + b"\x7f"),
    "prime": (X25519, b"\xed" + b"\xff" * 30 + b"\x7f"),
    "prime-and-one": (X25519, b"\xee" + b"\xff" * 30 + b"\x7f"),
    "order-8": (X25519, ORDER_8[0]),
    "order-8-too": (X25519, ORDER_8[1]),
    "short-x25519": (X25519, b"\1" * 31),
}


def set_share(hello: Any, point: bytes) -> None:
    hello.getExtension(ExtensionType.key_share).client_shares[0].key_exchange = bytearray(point)


@pytest.mark.parametrize("version", [V12, V13])
@pytest.mark.parametrize("name", POINTS)
def test_invalid_points(name: str, version: str) -> None:
    settings, point = POINTS[name]
    if version == V12:
        edit = changed(KEY, lambda msg: setattr(msg, "ecdh_Yc", bytearray(point)))
    else:
        edit = changed(HELLO, lambda msg: set_share(msg, point))
    with our_server(Case(version)) as ours:
        assert refused(ours.port, version, edit, **settings) != ACCEPTED
        assert refusal(ours)
        check_nothing_arrived(ours, Case(version))


def test_key_exchanges_for_rsa_all_fail_alike() -> None:
    """ROBOT: RSA key exchange is never agreed on, and ciphertexts for it say nothing."""
    with our_server(Case(V12, "rsa")) as ours:
        assert refused(ours.port, V12, lambda msg: [msg], keyExchangeNames=["rsa"]) == (
            "handshake_failure"
        )
        block = b"\0\2" + b"\1" * 205 + b"\0\3\3" + bytes(46)
        found = set()
        for text in (block, block[::-1], bytes(256), b"\xff" * 256, b""):
            msg = raw(22, b"\x10\0" + struct.pack("!HH", len(text) + 2, len(text)) + text)
            found.add(refused(ours.port, V12, instead(KEY, msg)))
        assert len(found) == 1
        assert ACCEPTED not in found
        check_nothing_arrived(ours, Case(V12, "rsa"), connections=6)


# -- what protects records -------------------------------------------------------------------------


def bad_padding(n: int, last: int) -> Callable[[bytearray], bytearray]:
    """Padding of n more blocks, all zeros but for the last byte, which should be its length."""

    def pad(text: bytearray) -> bytearray:
        length = 16 - len(text) % 16 + 16 * n
        return text + bytearray(length - 1) + bytearray([last if last >= 0 else length - 1])

    return pad


@pytest.mark.parametrize("etm", [True, False], ids=["etm", "mac-then-encrypt"])
def test_padding_tells_nothing(etm: bool) -> None:
    """POODLE on TLS, Lucky 13 and Vaudenay's: one alert, whatever is wrong."""
    settings = {"cipherNames": ["aes128"], "macNames": ["sha"], "useEncryptThenMAC": etm}
    pads = [bad_padding(n, last) for n, last in ((0, -1), (1, -1), (3, -1), (0, 255), (0, 200))]
    broken: list[dict[str, Any]] = [{"addPadding": pad} for pad in pads]
    broken.append({"calculateMAC": lambda *unused: bytearray(20)})
    case, found = Case(V12, "rsa"), set()
    with our_server(case, ciphers=CBC + ":TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256") as ours:
        for change in broken:
            with closing(Attacker(ours.port)) as attacker:
                attacker.shake(V12, **settings)
                vars(attacker._recordLayer).update(change)
                attacker.give(data(100))
                for name in change:
                    delattr(attacker._recordLayer, name)
                found.add(try_to(attacker.answer))
        assert found == {"bad_record_mac"}
        check_nothing_arrived(ours, case, connections=len(broken))


@pytest.mark.parametrize("version", [V12, V13])
def test_sealed_records(version: str) -> None:
    def seal(attacker: Attacker, at: int) -> None:
        whole = attacker._recordLayer._encryptThenSeal

        def broken(text: bytearray, kind: int) -> bytearray:
            sealed = bytearray(whole(text, kind))
            sealed[at] ^= 1
            return sealed

        attacker._recordLayer._encryptThenSeal = broken

    with our_server(Case(version)) as ours:
        for at in (0, 7, 8, 20, -17, -16, -1):
            with closing(Attacker(ours.port)) as attacker:
                attacker.shake(version, cipherNames=["aes128gcm"])
                seal(attacker, at)
                attacker.give(data(50))
                assert try_to(attacker.answer) == "bad_record_mac"
        check_nothing_arrived(ours, Case(version), connections=7)


# -- what is offered -------------------------------------------------------------------------------

WEAK = {
    "null": 0x0001,
    "export": 0x0003,
    "rc4": 0x0005,
    "des": 0x0009,
    "3des": 0x000A,
    "dhe-export": 0x0014,
    "anonymous": 0x0034,
    "rsa": 0x002F,
    "ecdhe-rc4": 0xC011,
    "psk": 0x008C,
}


@pytest.mark.parametrize("name", WEAK)
def test_weak_ciphers_are_not_agreed_on(name: str) -> None:
    """FREAK, Logjam, Sweet32, and those without any encryption or certificate."""
    edit = changed(HELLO, lambda msg: setattr(msg, "cipher_suites", [WEAK[name]]))
    with our_server(Case(V12, "rsa")) as ours:
        assert refused(ours.port, V12, edit) == "handshake_failure"
        assert refusal(ours)


@pytest.mark.parametrize("version", [(3, 0), (3, 1), (3, 2)])
def test_old_versions_are_refused(version: tuple[int, int]) -> None:
    edit = changed(HELLO, lambda msg: setattr(msg, "client_version", version))
    with our_server(Case(), version=None) as ours:
        assert refused(ours.port, V12, edit) == "protocol_version"
        assert "protocol not within min/max" in refusal(ours)


def test_a_hello_of_sslv2_is_refused() -> None:
    """DROWN"""
    with our_server(Case(), version=None) as ours, connection(ours.port) as attacker:
        attacker.sendall(b"\x80\x2e\1\0\2\0\x15\0\0\0\x10" + bytes(37))
        assert refusal(ours)


def test_compression_is_not_agreed_on() -> None:
    """CRIME: the client itself would refuse any but none."""
    edit = changed(HELLO, lambda msg: setattr(msg, "compression_methods", [1, 0]))
    with our_server(Case(V12)) as ours, closing(Attacker(ours.port, edit)) as attacker:
        attacker.shake(V12)
        attacker.give(data(100))
        assert bytes(attacker.read(max=100, min=100)) == bytes(100)


def test_signatures_with_md5_or_sha1_are_not_made() -> None:
    """SLOTH"""

    def only(hello: Any) -> None:
        hello.getExtension(ExtensionType.signature_algorithms).sigalgs = [(1, 1), (2, 1), (2, 3)]

    for version in (V12, V13):
        with our_server(Case(version)) as ours:
            assert refused(ours.port, version, changed(HELLO, only)) == "handshake_failure"
            assert refusal(ours)


# -- sessions and certificates ---------------------------------------------------------------------


def offer_12(hello: Any, ticket: bytes) -> None:
    """By hand, since tlslite takes it for granted that a ticket is accepted."""
    hello.extensions = [it for it in hello.extensions if it.extType != ExtensionType.session_ticket]
    offered = TLSExtension(extType=ExtensionType.session_ticket).create(bytearray(ticket))
    hello.extensions.append(offered)


def offer_13(hello: Any, ticket: bytes) -> None:
    hello.getExtension(ExtensionType.pre_shared_key).identities[0].identity = bytearray(ticket)


@pytest.mark.parametrize("version", [V12, V13])
def test_forged_tickets(version: str) -> None:
    """What is not ours is not opened: a full handshake, as without."""
    with our_server(Case(version)) as ours:
        with closing(Attacker(ours.port)) as attacker:
            attacker.shake(version)
            attacker.give(data())
            attacker.answer()
            session = attacker.session
        ticket = bytes((session.tls_1_0_tickets or session.tickets)[0].ticket)
        with closing(Attacker(ours.port)) as honest:
            honest.shake(version, session=session)
        offer, kept = (offer_12, None) if version == V12 else (offer_13, session)
        for at in (0, 4, 16, len(ticket) // 2, -1):
            forged = bytearray(ticket)
            forged[at] ^= 1
            edit = changed(HELLO, lambda msg, forged=forged: offer(msg, forged))
            with closing(Attacker(ours.port, edit)) as attacker:
                attacker.shake(version, session=kept)
        assert [ours.event("tls", n)["resumed"] for n in range(7)] == [0, 1, 0, 0, 0, 0, 0]


def test_a_forged_binder() -> None:
    """A stolen ticket is nothing without its key."""

    def forge(hello: Any) -> None:
        hello.getExtension(ExtensionType.pre_shared_key).binders[0][0] ^= 1

    with our_server(Case()) as ours:
        with closing(Attacker(ours.port)) as attacker:
            attacker.shake(V13)
            attacker.give(data())
            attacker.answer()
        with closing(Attacker(ours.port, changed(HELLO, forge))) as thief:
            assert try_to(lambda: thief.shake(V13, session=attacker.session)) != ACCEPTED
        assert ours.event("tls", 1)["result"] < 0


@pytest.mark.parametrize("version", [V12, V13])
def test_who_has_no_key_has_no_certificate(version: str) -> None:
    """Another's certificate, with a signature left out or made up."""
    edits = (
        instead(m.CertificateVerify),
        changed(m.CertificateVerify, flip_first("signature")),
        changed(m.CertificateVerify, lambda msg: setattr(msg, "signature", bytearray(64))),
    )
    for edit in edits:
        with our_server(Case(version, client_cert="client")) as ours:
            assert refused(ours.port, version, edit, own="client") != ACCEPTED
            assert refusal(ours)
            check_nothing_arrived(ours, Case(version, client_cert="client"))


# -- pieces ----------------------------------------------------------------------------------------


class Caught(Exception):
    """A message instead of its way."""


def hello_bytes(version: str) -> bytes:
    def catch(msg: Any) -> Iterable[Any]:
        raise Caught(bytes(msg.write()))

    with (
        socket.create_server(("127.0.0.1", 0)) as nobody,
        closing(Attacker(nobody.getsockname()[1], catch)) as attacker,
        pytest.raises(Caught) as caught,
    ):
        attacker.shake(version)
    hello: bytes = caught.value.args[0]
    return hello


def record(text: bytes) -> bytes:
    return b"\x16\3\1" + struct.pack("!H", len(text)) + text


def check_all_refused(ours: Ours, version: str, connections: int) -> None:
    ours.wait_for_lines(1 + 2 * connections)
    results = [event["result"] for event in ours.events() if event["event"] == "tls"]
    assert len(results) == connections
    assert max(results) < 0
    FOREIGN["python"].connect(Case(version), ours.port, 100)


@pytest.mark.parametrize("version", [V12, V13])
def test_a_hello_that_is_cut_after_any_byte(version: str) -> None:
    whole = record(hello_bytes(version))
    with our_server(Case(version)) as ours:
        for n in range(len(whole)):
            with connection(ours.port) as attacker:
                attacker.sendall(whole[:n])
        check_all_refused(ours, version, len(whole))


@pytest.mark.parametrize("version", [V12, V13])
def test_a_hello_that_lacks_its_end(version: str) -> None:
    """Cut and with lengths that fit: a parser that trusts the lengths inside reads too far."""
    hello = hello_bytes(version)
    with our_server(Case(version)) as ours:
        for n in range(4, len(hello)):
            short = hello[:1] + (n - 4).to_bytes(3, "big") + hello[4:n]
            with connection(ours.port) as attacker:
                attacker.sendall(record(short))
                attacker.shutdown(socket.SHUT_WR)
                with suppress(ConnectionError):
                    while attacker.recv(65536):
                        pass
        check_all_refused(ours, version, len(hello) - 4)


@pytest.mark.parametrize("version", [V12, V13])
@pytest.mark.parametrize("size", [4, 64])
def test_messages_in_small_records(version: str, size: int) -> None:
    """mbedTLS wants the header of a message in one piece."""
    with our_server(Case(version)) as ours:
        with closing(Attacker(ours.port)) as honest:
            honest.recordSize = size
            honest.shake(version)
            honest.give(data(200))
            assert bytes(honest.read(max=200, min=200)) == bytes(200)
        assert ours.event("tls")["result"] == 0


def test_a_downgrade_shows() -> None:
    """A server of both versions says in its random numbers that it was made to speak 1.2."""
    with our_server(Case(), version=None) as ours, connection(ours.port) as attacker:
        attacker.sendall(record(hello_bytes(V12)))
        answer = attacker.recv(65536)
    assert answer[:1] + answer[5:6] == b"\x16\2"
    assert answer[11:43].endswith(b"DOWNGRD\1")


def test_early_data_is_no_data() -> None:
    """Without 0-RTT, what claims to be early data is skipped or refused, but never received."""
    early = TLSExtension(extType=ExtensionType.early_data).create(bytearray())
    edit = changed(HELLO, lambda msg: msg.extensions.insert(0, early))
    with our_server(Case()) as ours:
        for garbage in ([], [data(100)], [data(16384)] * 3):
            with closing(Attacker(ours.port, edit)) as attacker:
                chain = after(HELLO, *garbage)
                attacker.edit = lambda msg, chain=chain: chain(next(iter(edit(msg))))
                try_to(lambda: attacker.shake(V13))
        check_nothing_arrived(ours, Case(), connections=3)
