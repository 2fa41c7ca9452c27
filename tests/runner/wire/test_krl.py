"""Lists of revoked keys in OpenSSH's binary form, made by the real `ssh-keygen`."""

import base64
import hashlib
import subprocess
from pathlib import Path

import pytest

import signing
from cronium_runner.wire import allowed_signers, krl
from cronium_runner.wire.allowed_signers import SignersError, revoked
from cronium_runner.wire.sshsig import fingerprint

HEADER = krl.MAGIC + (1).to_bytes(4, "big") + bytes(24) + bytes(4) + bytes(4)


def string(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


def section(kind: int, *entries: bytes) -> bytes:
    return bytes([kind]) + string(b"".join(map(string, entries)))


KEY = string(b"ssh-ed25519") + string(bytes(32))


def blob(key: Path) -> bytes:
    return base64.b64decode(signing.public(key).split()[1])


def shown(key: Path) -> str:
    return fingerprint(hashlib.sha256(blob(key)).digest())


@signing.needs_ssh_keygen
@pytest.mark.parametrize("how", ["key: {public}", "sha1: {public}", "sha256: {public}", "hash: {shown}", "{public}"])
def test_what_ssh_keygen_revokes_is_revoked(how: str, tmp_path: Path) -> None:
    ours, other, added = (signing.key(tmp_path) for _ in range(3))
    listed = tmp_path / "revoked"
    for key, words in ((ours, []), (added, ["-u"])):
        said = how.format(public=signing.public(key), shown=shown(key))
        (tmp_path / "said").write_text(f"{said}\n")
        subprocess.run(["ssh-keygen", "-q", "-k", *words, "-z", "7", "-f", listed, tmp_path / "said"], check=True)
    found = revoked(listed.read_bytes())
    for key, expected in ((ours, True), (added, True), (other, False)):
        assert found.has(blob(key), shown(key)) == expected
        asked = ["ssh-keygen", "-Q", "-f", str(listed), str(key.with_name(f"{key.name}.pub"))]
        assert (subprocess.run(asked, capture_output=True, check=False).returncode != 0) == expected


@signing.needs_ssh_keygen
def test_krl_that_revokes_certificates_is_refused(tmp_path: Path) -> None:
    authority = signing.key(tmp_path)
    (tmp_path / "said").write_text("serial: 7\n")
    words = ["ssh-keygen", "-q", "-k", "-f", "revoked", "-s", f"{authority}.pub", "said"]
    subprocess.run(words, cwd=tmp_path, check=True)
    with pytest.raises(SignersError, match="revokes certificates"):
        revoked((tmp_path / "revoked").read_bytes())


def test_every_section_counts() -> None:
    found = krl.read(HEADER + section(2, KEY) + section(5, b"5" * 32) + section(3, b"3" * 20) + section(2, KEY + b"2"))
    assert found == (frozenset({KEY, KEY + b"2"}), frozenset({b"3" * 20}), frozenset({b"5" * 32}))
    assert krl.read(HEADER) == (frozenset(), frozenset(), frozenset()), "a list that revokes nothing yet"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (HEADER.replace(b"\1", b"\2", 1), "of version 2"),
        (krl.MAGIC + b"\0\0\0\1" + bytes(16) + b"\0\0\0\0\0\0\0\1" + bytes(8), "flags or reserved"),
        (krl.MAGIC + b"\0\0\0\1" + bytes(24) + string(b"x") + bytes(4), "flags or reserved"),
        (HEADER + section(4, b"signature"), "is signed"),
        (HEADER + section(255, b"extension"), "section of type 255"),
        (HEADER + section(0), "section of type 0"),
        (HEADER + section(2), "section of type 2"),
        (HEADER + section(2, b""), "section of type 2"),
        (HEADER + section(2, KEY, b"\0\0\0\7x"), "section of type 2"),
        (HEADER + section(3, b"3" * 32), "section of type 3"),
        (HEADER + section(5, b"5" * 20), "section of type 5"),
        (HEADER + b"\5" + string(b"\0\0\0\x20short"), "cut off"),
        (HEADER + section(5, b"5" * 32) + b"x", "cut off"),
    ],
)
def test_krl_that_says_anything_else_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(SignersError, match=why):
        revoked(content)


def test_krl_that_is_cut_off_or_changed_is_read_or_refused() -> None:
    """Nothing but SignersError, and cut inside a section never read."""
    whole = HEADER + section(2, KEY) + section(3, b"3" * 20) + section(5, b"5" * 32)
    ends = {len(HEADER), len(HEADER + section(2, KEY)), len(whole) - len(section(5, b"5" * 32))}
    for size in range(len(krl.MAGIC), len(whole)):
        if size in ends:
            continue
        with pytest.raises(SignersError):
            revoked(whole[:size])
    for at in range(len(krl.MAGIC), len(whole)):
        for bit in range(8):
            content = bytearray(whole)
            content[at] ^= 1 << bit
            try:
                revoked(bytes(content))
            except SignersError:
                continue


def test_krl_of_many_mebibytes_is_not_read() -> None:
    with pytest.raises(SignersError, match="larger than 1024 KiB"):
        revoked(HEADER + section(2, KEY) * (allowed_signers.MAX_BYTES // len(KEY)))
