"""A certificate as the dict that `ssl.SSLSocket.getpeercert` makes of it.

The interpreter decodes only certificates of its own connections. mbedTLS has accepted what comes
here, so this is no judge of certificates: it tells what is in one.
"""

from __future__ import annotations

import ssl
from typing import Any, Final

Name = tuple[tuple[tuple[str, str], ...], ...]
TLV = tuple[int, bytes]  # tag and contents

# OpenSSL's long names; whatever is not here shows as its number.
_ATTRIBUTES: Final = {
    "0.9.2342.19200300.100.1.1": "userId",
    "0.9.2342.19200300.100.1.25": "domainComponent",
    "1.2.840.113549.1.9.1": "emailAddress",
    "1.2.840.113549.1.9.2": "unstructuredName",
    "1.3.6.1.4.1.311.60.2.1.1": "jurisdictionLocalityName",
    "1.3.6.1.4.1.311.60.2.1.2": "jurisdictionStateOrProvinceName",
    "1.3.6.1.4.1.311.60.2.1.3": "jurisdictionCountryName",
    "2.5.4.3": "commonName",
    "2.5.4.4": "surname",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "countryName",
    "2.5.4.7": "localityName",
    "2.5.4.8": "stateOrProvinceName",
    "2.5.4.9": "streetAddress",
    "2.5.4.10": "organizationName",
    "2.5.4.11": "organizationalUnitName",
    "2.5.4.12": "title",
    "2.5.4.13": "description",
    "2.5.4.15": "businessCategory",
    "2.5.4.17": "postalCode",
    "2.5.4.20": "telephoneNumber",
    "2.5.4.41": "name",
    "2.5.4.42": "givenName",
    "2.5.4.43": "initials",
    "2.5.4.44": "generationQualifier",
    "2.5.4.46": "dnQualifier",
    "2.5.4.65": "pseudonym",
    "2.5.4.97": "organizationIdentifier",
}
_ENCODINGS: Final = {0x1E: "utf-16-be", 0x1C: "utf-32-be", 0x14: "latin-1"}  # else UTF-8
_MONTHS: Final = [
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
]
_ALT_NAMES: Final = "2.5.29.17"
_CRL_POINTS: Final = "2.5.29.31"
_AUTHORITY_INFO: Final = "1.3.6.1.5.5.7.1.1"
_OCSP: Final = "1.3.6.1.5.5.7.48.1"
_CA_ISSUERS: Final = "1.3.6.1.5.5.7.48.2"


def decode(der: bytes) -> dict[str, Any]:
    """Raises ssl.SSLError for what is not a certificate."""
    try:
        return _decode(der)
    except (IndexError, ValueError) as exc:
        raise ssl.SSLError(1, "the certificate cannot be decoded; binary_form=True works") from exc


def split_der(data: bytes) -> list[bytes]:
    """Several certificates in DER, one behind the other, as a list of them."""
    pieces = []
    while data:
        _, _, end = _header(data, 0)
        pieces.append(data[:end])
        data = data[end:]
    return pieces


def _header(data: bytes, at: int) -> tuple[int, int, int]:
    """The tag of the item at that place, where its contents begin and where they end."""
    tag, size, at = data[at], data[at + 1], at + 2
    if size & 0x80:
        count = size & 0x7F
        size, at = int.from_bytes(data[at : at + count], "big"), at + count
    if at + size > len(data):
        raise ValueError("cut short")
    return tag, at, at + size


def _items(data: bytes) -> list[TLV]:
    items, at = [], 0
    while at < len(data):
        tag, begin, at = _header(data, at)
        items.append((tag, data[begin:at]))
    return items


def _decode(der: bytes) -> dict[str, Any]:
    fields = _items(_items(_items(der)[0][1])[0][1])
    version = 1
    if fields[0][0] == 0xA0:
        version = int.from_bytes(_items(fields.pop(0)[1])[0][1], "big") + 1
    begin, end = _items(fields[3][1])
    decoded: dict[str, Any] = {
        "subject": _name(fields[4][1]),
        "issuer": _name(fields[2][1]),
        "version": version,
        "serialNumber": _serial(fields[0][1]),
        "notBefore": _time(*begin),
        "notAfter": _time(*end),
    }
    for tag, contents in fields[6:]:
        if tag == 0xA3:
            decoded.update(_extensions(_items(contents)[0][1]))
    return decoded


def _extensions(data: bytes) -> dict[str, Any]:
    found = {}
    for _, extension in _items(data):
        parts = _items(extension)
        found[_oid(parts[0][1])] = _items(parts[-1][1])[0][1]  # in an OCTET STRING
    access = _access(found.get(_AUTHORITY_INFO, b""))
    shown = {
        "subjectAltName": tuple(map(_general_name, _items(found.get(_ALT_NAMES, b"")))),
        "OCSP": tuple(uri for method, uri in access if method == _OCSP),
        "caIssuers": tuple(uri for method, uri in access if method == _CA_ISSUERS),
        "crlDistributionPoints": _crl_points(found.get(_CRL_POINTS, b"")),
    }
    return {name: value for name, value in shown.items() if value}


def _access(data: bytes) -> list[tuple[str, str]]:
    pairs = [_items(entry) for _, entry in _items(data)]
    return [(_oid(method[1]), _text(place[1])) for method, place in pairs if place[0] == 0x86]


def _crl_points(data: bytes) -> tuple[str, ...]:
    uris = []
    for _, point in _items(data):
        for tag, name in _items(point):
            if tag == 0xA0:  # distributionPoint, with the full name of it
                full = [inner for kind, inner in _items(name) if kind == 0xA0]
                uris += [_text(uri) for part in full for kind, uri in _items(part) if kind == 0x86]
    return tuple(uris)


def _general_name(item: TLV) -> tuple[str, Any]:
    tag, data = item
    kinds = {0x81: "email", 0x82: "DNS", 0x86: "URI"}
    if tag in kinds:
        return kinds[tag], _text(data)
    if tag == 0xA4:
        return "DirName", _name(_items(data)[0][1])
    if tag == 0x87:
        return "IP Address", _address(data)
    if tag == 0x88:
        return "Registered ID", _oid(data)
    return {0xA3: "X400Name", 0xA5: "EdiPartyName"}.get(tag, "othername"), "<unsupported>"


def _address(data: bytes) -> str:
    if len(data) == 4:
        return ".".join(map(str, data))
    if len(data) == 16:
        return ":".join(f"{data[at] << 8 | data[at + 1]:X}" for at in range(0, 16, 2))
    return "<invalid>"


def _name(data: bytes) -> Name:
    return tuple(
        tuple(_attribute(attribute) for _, attribute in _items(group)) for _, group in _items(data)
    )


def _attribute(data: bytes) -> tuple[str, str]:
    (_, kind), (tag, value) = _items(data)
    number = _oid(kind)
    return _ATTRIBUTES.get(number, number), _text(value, _ENCODINGS.get(tag, "utf-8"))


def _text(data: bytes, encoding: str = "utf-8") -> str:
    return data.decode(encoding, "backslashreplace")


def _oid(data: bytes) -> str:
    numbers, number = [], 0
    for byte in data:
        number = number << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(number)
            number = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(map(str, [first, numbers[0] - 40 * first, *numbers[1:]]))


def _serial(data: bytes) -> str:
    number = int.from_bytes(data, "big", signed=True)
    digits = f"{abs(number):X}"
    return "-" * (number < 0) + "0" * (len(digits) % 2) + digits


def _time(tag: int, data: bytes) -> str:
    """As OpenSSL shows it: "Jan  5 09:34:43 2018 GMT"."""
    text = data.decode("ascii")
    if tag == 0x17:  # UTCTime, with two digits for the year
        text = ("19" if text[0] >= "5" else "20") + text
    year, rest = text[:4], text[4:]
    month, day, hour, minute, second = (int(rest[at : at + 2]) for at in range(0, 10, 2))
    return f"{_MONTHS[month - 1]} {day:2} {hour:02}:{minute:02}:{second:02} {year} GMT"
