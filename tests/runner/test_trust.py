"""The gate: which signatures open it, by which keys, and that everything else is refused with its code."""

import base64
import dataclasses
import hashlib
import io
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import signing
from cronium_runner import libcrypto, trust
from cronium_runner.errors import RunnerError
from cronium_runner.wire import sshsig
from cronium_runner.wire.sshsig import NAMESPACE

pytestmark = signing.needs_ssh_keygen
CONTENT = bytes(range(256)) * 300
KINDS = ("ed25519", "ecdsa:256", "ecdsa:384", "ecdsa:521", "rsa:2048", "rsa:3072")


@dataclasses.dataclass
class Host:
    """Files that say who may sign, where the gate looks for them."""

    folder: Path

    def allow(self, text: str) -> None:
        (self.folder / "allowed_signers").write_text(text)

    def revoke(self, content: str | bytes) -> None:
        (self.folder / "revoked_keys").write_bytes(content.encode() if isinstance(content, str) else content)

    def check(self, armored: str | None, content: bytes = CONTENT) -> tuple[str, str]:
        return trust.check(io.BytesIO(content), str(self.folder / "none.tar.gz"), armored)

    def refused(self, armored: str | None, content: bytes = CONTENT) -> RunnerError:
        with pytest.raises(RunnerError) as refused:
            self.check(armored, content)
        return refused.value


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    monkeypatch.setattr(trust, "FOLDER", str(folder))
    monkeypatch.setattr(trust, "ALLOWED_SIGNERS", str(folder / "allowed_signers"))
    monkeypatch.setattr(trust, "REVOKED_KEYS", str(folder / "revoked_keys"))
    checked = trust._check_owned

    def check_ours(path: str, found: os.stat_result, *, is_folder: bool) -> None:
        if path.startswith(str(tmp_path)) and path != str(tmp_path):  # what is above is pytest's
            checked(path, found, is_folder=is_folder)

    monkeypatch.setattr(trust, "_check_owned", check_ours)
    monkeypatch.setattr(trust, "OWNER", os.getuid())
    return Host(folder)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A key of each kind, made once."""
    return signing.keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def ours(keys: Callable[[str], Path]) -> Path:
    return keys("ed25519")


@pytest.mark.parametrize("hash_name", ["sha256", "sha512"])
@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_each_kind_sign(
    host: Host, keys: Callable[[str], Path], tmp_path: Path, kind: str, hash_name: str
) -> None:
    line = f"alice {signing.public(keys(kind))}\n"
    armored = signing.signature(keys(kind), CONTENT, hash_name=hash_name)
    host.allow(line)
    digest, signer = host.check(armored)
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    assert signer.startswith("SHA256:")
    assert signer.endswith(" alice")
    assert signing.accepts(tmp_path, line, "alice", armored, CONTENT)
    assert host.refused(armored, CONTENT + b"\n").code == "payload.signature_invalid"
    assert host.refused(armored, CONTENT[:-1]).code == "payload.signature_invalid"


class SecurityKey:
    """A FIDO key in software: what a security key signs, and how OpenSSH writes it down."""

    def __init__(self, kind: str) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        self.kind = kind
        self.is_ed25519 = kind == sshsig.SK_ED25519
        if self.is_ed25519:
            self._private: Any = ed25519.Ed25519PrivateKey.generate()
            parts = [self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)]
        else:
            self._private = ec.generate_private_key(ec.SECP256R1())
            point = self._private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
            parts = [b"nistp256", point]
        self.blob = strings(kind.encode(), *parts, b"ssh:")
        self.public = f"{kind} {base64.b64encode(self.blob).decode()}"

    def sign(self, content: bytes) -> str:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        message = b"SSHSIG" + strings(NAMESPACE.encode(), b"", b"sha512", hashlib.sha512(content).digest())
        flags = b"\1" + struct.pack(">I", 7)
        signed = hashlib.sha256(b"ssh:").digest() + flags + hashlib.sha256(message).digest()
        if self.is_ed25519:
            value = self._private.sign(signed)
        else:
            value = strings(*map(mpint, decode_dss_signature(self._private.sign(signed, ec.ECDSA(hashes.SHA256())))))
        return armored(self.blob, strings(self.kind.encode(), value) + flags)


def strings(*fields: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(field)) + field for field in fields)


def mpint(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big")


def armored(
    key: bytes, inner: bytes, *, magic: bytes = b"SSHSIG", version: int = 1, namespace: bytes = NAMESPACE.encode(),
    reserved: bytes = b"", hash_name: bytes = b"sha512", behind: bytes = b"",
) -> str:  # fmt: skip
    fields = strings(key, namespace, reserved, hash_name, inner)
    text = base64.b64encode(magic + struct.pack(">I", version) + fields + behind).decode()
    return f"{sshsig.BEGIN}\n{text}\n-----END SSH SIGNATURE-----\n"


@pytest.mark.parametrize("kind", [sshsig.SK_ED25519, sshsig.SK_ECDSA])
def test_security_keys_sign(host: Host, tmp_path: Path, kind: str) -> None:
    key = SecurityKey(kind)
    host.allow(f"alice {key.public}\n")
    text = key.sign(CONTENT)
    host.check(text)
    assert signing.accepts(tmp_path, f"alice {key.public}\n", "alice", text, CONTENT)
    assert host.refused(text, CONTENT[1:]).code == "payload.signature_invalid"


def parsed(path: Path) -> sshsig.Signature:
    return sshsig.read(signing.signature(path, CONTENT))


def test_signatures_that_are_none_are_refused(host: Host, ours: Path) -> None:
    """Each is refused by its form, and ssh-keygen is only asked where it is as strict."""
    good = parsed(ours)
    key, inner = good.key.blob, good.blob
    host.allow(f"alice {signing.public(ours)}\n")
    host.check(armored(key, inner))
    for text, why in (
        (armored(key, inner, magic=b"SSHSIH"), "does not begin with SSHSIG"),
        (armored(key, inner, version=2), "of version 2"),
        (armored(key, inner, namespace=b"file"), "made for 'file'"),
        (armored(key, inner, reserved=b"x"), "reserved field"),
        (armored(key, inner, hash_name=b"md5"), "its hash is 'md5'"),
        (armored(key, inner, hash_name=b"sha256"), "not the signature of this payload"),
        (armored(key, inner, behind=b"\0"), "bytes follow"),
        (armored(key, inner + b"\0"), "bytes follow"),
        (armored(key + b"\0", inner), "bytes follow"),
        (armored(key[:-1], inner), "cut off"),
        (armored(key, inner[:-1]), "cut off"),
        (armored(key, strings(b"ssh-ed25519", bytes(63))), "has 64 bytes"),
        (armored(key, strings(b"ssh-ed25519", bytes(64))), "not the signature of this payload"),
        (armored(key, strings(b"ssh-rsa", good.values[0])), "cannot sign by 'ssh-rsa'"),
        (armored(key, strings(b"\xff", good.values[0])), "not ASCII"),
        (armored(strings(b"ssh-dss", b"x"), inner), "'ssh-dss' are not supported"),
        (armored(strings(b"ssh-ed25519", bytes(31)), inner), "has 32 bytes"),
        (armored(b"", b""), "cut off"),
        ("\n" + armored(key, inner), "not between"),
        (armored(key, inner) + "more\n", "not between"),
        (armored(key, inner).replace("\n", "\r\n"), "not between|not base64"),
        (armored(key, inner).replace("\n-----END", "=\n-----END"), "not base64"),
        (f"{sshsig.BEGIN}\n\n-----END SSH SIGNATURE-----\n", "not base64"),
        (sshsig.BEGIN, "not between"),
        ("A" * (sshsig.MAX_BYTES + 1), "longer than"),
    ):
        error = host.refused(text)
        assert error.code == "payload.signature_invalid", text
        assert any(word in error.message for word in why.split("|")), (why, error.message)


def test_every_cut_and_flipped_bit_is_refused(host: Host, ours: Path) -> None:
    host.allow(f"alice {signing.public(ours)}\n")
    whole = base64.b64decode("".join(signing.signature(ours, CONTENT).splitlines()[1:-1]))
    changed = [whole[:size] for size in range(len(whole))]
    changed += [whole[:at] + bytes((byte ^ 1 << at % 8,)) + whole[at + 1 :] for at, byte in enumerate(whole)]
    for content in changed:
        text = f"{sshsig.BEGIN}\n{base64.b64encode(content).decode()}\n-----END SSH SIGNATURE-----\n"
        assert host.refused(text).code in ("payload.signature_invalid", "payload.signer_unknown"), content


def test_ecdsa_numbers_have_one_form(host: Host, keys: Callable[[str], Path]) -> None:
    good = parsed(path := keys("ecdsa:256"))
    host.allow(f"alice {signing.public(path)}\n")
    algorithm = good.algorithm.encode()
    first, second = good.values
    host.check(armored(good.key.blob, strings(algorithm, strings(first, second))))
    for r, s in (
        (b"\0" + first, second),
        (b"", second),
        (b"\0", second),
        (first, b"\xff" + second),
        (first, b"\0"),
        (second, first),
        (first, b"\x7f" * 40),
    ):
        text = armored(good.key.blob, strings(algorithm, strings(r, s)))
        assert host.refused(text).code == "payload.signature_invalid"


def test_a_point_off_the_curve_is_refused(host: Host) -> None:
    point = b"\4" + bytes(31) + b"\1" + bytes(31) + b"\1"
    blob = strings(b"ecdsa-sha2-nistp256", b"nistp256", point)
    host.allow(f"alice ecdsa-sha2-nistp256 {base64.b64encode(blob).decode()}\n")
    text = armored(blob, strings(b"ecdsa-sha2-nistp256", strings(b"\1", b"\1")))
    assert host.refused(text).code == "payload.signature_invalid"


def test_a_short_rsa_key_makes_the_file_unusable(host: Host, tmp_path: Path, ours: Path) -> None:
    short = signing.key(tmp_path, "rsa:1024")
    host.allow(f"alice {signing.public(short)}\n")
    error = host.refused(signing.signature(ours, CONTENT))
    assert error.code == "payload.signers_unreadable"
    assert "2048 to 16384 bits, not 1024" in error.message


def test_who_is_not_trusted_is_refused_with_its_code(host: Host, ours: Path, keys: Callable[[str], Path]) -> None:
    text, public = signing.signature(ours, CONTENT), signing.public(ours)
    foreign = signing.public(keys("ecdsa:256"))
    fingerprint = sshsig.fingerprint(hashlib.sha256(base64.b64decode(public.split()[1])).digest())
    for line, code in (
        (f"alice {foreign}", "payload.signer_unknown"),
        ("", "payload.signer_unknown"),
        (f'alice namespaces="git" {public}', "payload.signer_unknown"),
        (f'alice valid-before="20200101Z" {public}', "payload.signer_expired"),
        (f'alice valid-after="20990101Z" {public}', "payload.signer_expired"),
        (f"alice cert-authority {public}", "payload.signers_unreadable"),
    ):
        host.allow(line + "\n")
        assert host.refused(text).code == code, line
    host.allow(f"alice {public}\n")
    host.check(text)
    for revoked in (f"{public}\n", f"# lost\n{fingerprint} alice's\n"):
        host.revoke(revoked)
        assert host.refused(text).code == "payload.signer_revoked"
    host.revoke(f"{foreign}\n")
    host.check(text)
    host.revoke("SSHKRL\n\0")
    assert host.refused(text).code == "payload.signers_unreadable"


@pytest.mark.parametrize("how", ["key: {}", "sha1: {}", "sha256: {}"])
def test_a_key_in_a_revocation_list_of_openssh_is_revoked(
    host: Host, ours: Path, keys: Callable[[str], Path], tmp_path: Path, how: str
) -> None:
    host.allow(f"alice {signing.public(ours)}\n")
    for key, is_refused in ((keys("ecdsa:256"), False), (ours, True)):
        (tmp_path / "said").write_text(how.format(signing.public(key)) + "\n")
        subprocess.run(["ssh-keygen", "-q", "-k", "-f", "revoked", "said"], cwd=tmp_path, check=True)
        host.revoke((tmp_path / "revoked").read_bytes())
        if is_refused:
            assert host.refused(signing.signature(ours, CONTENT)).code == "payload.signer_revoked"
        else:
            host.check(signing.signature(ours, CONTENT))


def test_a_payload_without_a_signature_is_refused(host: Host, ours: Path) -> None:
    host.allow(f"alice {signing.public(ours)}\n")
    for armored_text in (None, ""):
        assert host.refused(armored_text).code == "payload.unsigned"


def test_the_signature_beside_a_file_is_used(host: Host, ours: Path) -> None:
    host.allow(f"alice {signing.public(ours)}\n")
    beside = host.folder / "none.tar.gz.sig"
    beside.write_text(signing.signature(ours, CONTENT))
    host.check(None)
    beside.write_bytes(b"\x89\x01another program's")
    assert host.refused(None).code == "payload.unsigned"
    beside.write_text(f"{sshsig.BEGIN}\nroot:x:0:0\n")
    assert "root:x" not in host.refused(None).message
    beside.unlink()
    os.mkfifo(beside)
    assert host.refused(None).code == "payload.signature_invalid"


@pytest.mark.parametrize("name", ["allowed_signers", "revoked_keys"])
def test_files_that_others_can_write_are_refused(host: Host, ours: Path, name: str) -> None:
    host.allow(f"alice {signing.public(ours)}\n")
    host.revoke("")
    text = signing.signature(ours, CONTENT)
    host.check(text)
    path = host.folder / name
    for spoiled, mode in ((path, 0o664), (path, 0o646), (host.folder, 0o777)):
        spoiled.chmod(mode)
        assert host.refused(text).code == "payload.signers_unreadable"
        path.chmod(0o644)
        host.folder.chmod(0o755)
    host.check(text)
    kept = path.rename(host.folder / "kept")
    path.symlink_to(kept)
    assert host.refused(text).code == "payload.signers_unreadable"
    path.unlink()
    path.mkdir()
    assert host.refused(text).code == "payload.signers_unreadable"


def test_files_of_another_account_are_refused(host: Host, ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host.allow(f"alice {signing.public(ours)}\n")
    monkeypatch.setattr(trust, "OWNER", os.getuid() + 1)
    error = host.refused(signing.signature(ours, CONTENT))
    assert error.code == "payload.signers_unreadable"
    assert "not to root" in error.message


def test_a_file_that_cannot_be_looked_at_counts(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not trust.is_required()
    host.allow("")
    assert trust.is_required()
    monkeypatch.setattr(trust, "ALLOWED_SIGNERS", str(host.folder / "allowed_signers" / "below"))
    assert trust.is_required()


def test_the_accounts_time_zone_moves_no_end(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TZ", raising=False)
    plain = trust._host_time(2026, 3, 1, 0, 0, 0)
    monkeypatch.setenv("TZ", "UTC+23")
    assert trust._host_time(2026, 3, 1, 0, 0, 0) == plain
    assert os.environ["TZ"] == "UTC+23"


def test_a_host_without_libcrypto_refuses(host: Host, ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host.allow(f"alice {signing.public(ours)}\n")
    monkeypatch.setattr(libcrypto, "NAME", "libcrypto-that-is-not-there.so")
    libcrypto._library.cache_clear()
    error = host.refused(signing.signature(ours, CONTENT))
    monkeypatch.undo()
    libcrypto._library.cache_clear()
    assert error.code == "runner.refused"


@pytest.fixture(autouse=True)
def _own_time_zone() -> Iterator[None]:
    import time

    yield
    time.tzset()
