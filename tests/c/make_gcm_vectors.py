"""Write gcm_vectors.txt: make_gcm_vectors.py NIST_FOLDER WYCHEPROOF_JSON >gcm_vectors.txt

NIST's files are gcmEncryptExtIV*.rsp and gcmDecrypt*.rsp of CAVP's gcmtestvectors.zip (public
domain); every fifth of their sections is taken, so that each pair of lengths of text, additional
data and tag is there. Wycheproof's is testvectors_v1/aes_gcm_test.json of C2SP/wycheproof
(Apache-2.0), all of it.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

FIELDS = ("Key", "IV", "AAD", "PT", "CT", "Tag")
LENGTHS = ("PTlen", "AADlen", "Taglen")


def line(verdict: str, values: list[str]) -> str:
    return " ".join([verdict, *(value or "-" for value in values)])


def sections(text: str) -> Iterator[tuple[dict[str, int], list[str]]]:
    """Each section's lengths, and the text of each of its cases."""
    for part in re.split(r"\n(?=\[Keylen)", text)[1:]:
        lengths = {name: int(size) for name, size in re.findall(r"\[(\w+) = (\d+)\]", part)}
        yield lengths, part.split("Count = ")[1:]


def from_nist(path: Path) -> Iterator[str]:
    """One case of every fifth section; to decrypt, in turn one that passes and one that fails."""
    seen: dict[str, list[int]] = {name: [] for name in LENGTHS}
    refused = False
    for lengths, cases in sections(path.read_text().replace("\r", "")):
        for name, known in seen.items():
            if lengths[name] not in known:
                known.append(lengths[name])
        if sum(seen[name].index(lengths[name]) for name in LENGTHS) % 5:
            continue
        case = next(case for case in cases if ("FAIL" in case) == refused)
        values = dict(re.findall(r"(\w+) =[ ]?(\w*)", case))
        yield line("bad" if refused else "good", [values.get(field, "") for field in FIELDS])
        refused = "Decrypt" in path.name and not refused


def from_wycheproof(path: Path) -> Iterator[str]:
    for group in json.loads(path.read_text())["testGroups"]:
        for test in group["tests"]:
            values = [test[name] for name in ("key", "iv", "aad", "msg", "ct", "tag")]
            yield line("good" if test["result"] == "valid" else "bad", values)


def main() -> None:
    nist, wycheproof = map(Path, sys.argv[1:])
    print("# Made by make_gcm_vectors.py: verdict key nonce additional plain cipher tag, in hex")
    for path in sorted(nist.glob("gcm*.rsp")):
        print(f"# NIST CAVP {path.name}")
        print(*from_nist(path), sep="\n")
    print("# Wycheproof aes_gcm_test.json")
    print(*from_wycheproof(wycheproof), sep="\n")


if __name__ == "__main__":
    main()
