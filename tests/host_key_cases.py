"""known_hosts files and what OpenSSH makes of each: whether it connects, and which line it records.

Texts are templates: `{name}` is the host as known_hosts spells it, `{bare}` the same without a port, `{ed}`, `{ec}` and
`{rsa}` are the server's keys, `{other}` and `{other_ec}` keys of other servers, `{ca}`, `{other_ca}` and `{rsa_ca}`
authorities, `{hash_name}`, `{hash_web}` hashes.
"""

import base64
import hmac
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncssh

NONE: Final = "none"
CERTIFICATE: Final = "-cert-v01@openssh.com"


@dataclass(frozen=True)
class Case:
    """One state of the files. `user` are the contents of UserKnownHostsFile, None of one that isn't there."""

    what: str
    user: tuple[str | None, ...] = ("",)
    system: str = ""
    server: str = "plain"
    options: dict[str, str] = field(default_factory=dict)
    revoked: str | None = None
    """A file of `Keys.revoked`."""
    is_refused: bool = False
    recorded: str | None = None
    """The line that is added to the first file; `{hash_name}` for any hash of the name."""
    is_asked: bool = False
    """Whether `ssh` is asked as well in an ordinary run; the command asks it about every case."""


def case(what: str, *user: str | None, **changes: Any) -> Case:
    """A case whose options are the keywords that Case does not have."""
    options = {name: changes.pop(name) for name in list(changes) if name[0].isupper()}
    lines = tuple(text if text is None or text.startswith("/") or text == NONE else text + "\n" for text in user)
    return Case(what, lines or ("",), options=options, **changes)


ED, NEW_EC = "{name} {ed}", "{name} {ec}"
CASES: Final = [
    case("nothing is known", recorded=ED, is_asked=True),
    case("the file is missing", None, recorded=ED),
    case("the key is known", ED, is_asked=True),
    case("the key has changed", "{name} {other}", is_refused=True, is_asked=True),
    case("a key of another kind of the server", NEW_EC, is_asked=True),
    case("an RSA key of the server", "{name} {rsa}"),
    case("only a key of a kind that the server lacks", "{name} {other_384}", is_refused=True, is_asked=True),
    case("one of two kinds has changed", "{name} {rsa}\n{name} {other_ec}", is_refused=True),
    case("two keys, one is the server's", "{name} {other}\n{name} {ed}"),
    case("the second file knows it", "", ED, is_asked=True),
    case("the second file knows another", "", "{name} {other}", is_refused=True),
    case("the system's file knows it", "", system=ED, is_asked=True),
    case("the system's file knows another", "", system="{name} {other}", is_refused=True, is_asked=True),
    case("the system's file knows another, the user's the key", ED, system="{name} {other}"),
    case("without a port: the same key", "{bare} {ed}", is_asked=True),
    case("without a port: another key", "{bare} {other}", recorded=ED, is_asked=True),
    case("without a port: revoked", "@revoked {bare} {ed}", recorded=ED),
    case("another port", "[127.0.0.1]:1 {other}", recorded=ED),
    case("revoked", "{name} {ed}\n@revoked {name} {ed}", is_refused=True, is_asked=True),
    case("revoked everywhere", "@revoked * {ed}", is_refused=True),
    case("another key is revoked", "@revoked * {other}", recorded=ED),
    case("one kind is revoked, another known", "{name} {rsa}\n@revoked {name} {ed}", is_asked=True),
    case("revoked by the system", ED, system="@revoked {name} {ed}", is_refused=True),
    case("a hashed name", "{hash_name} {ed}"),
    case("a hashed name, changed", "{hash_name} {other}", is_refused=True, is_asked=True),
    case("a hash that is none", "|1|AAA|BBB {other}", recorded=ED),
    case("a hash of a newer kind", "|2|{hash_name} {other}", recorded=ED),
    case("hashes are wanted", HashKnownHosts="yes", recorded="{hash_name} {ed}", is_asked=True),
    case("a pattern", "[127.0.*]:* {ed}"),
    case("a pattern, changed", "* {other}", is_refused=True),
    case("a question mark", "[127.?.0.1]:* {other}", is_refused=True),
    case("a negated pattern", "*,!{name} {other}", recorded=ED, is_asked=True),
    case("several names", "elsewhere,{name},web {ed}"),
    case("odd lines before the right one", "{name}\n{name} ssh-newkind AAAA\n{name} ssh-ed25519 AAAA\n@what {name} "
         "{other}\n@revoked @revoked {name} {ed}\n\xe4\xf6\xfc \xdf\n{name} {ed}", is_asked=True),
    case("odd lines alone", "{name}\n{name} ssh-newkind AAAA\n{name} ssh-ed25519 AAAA\n@what {name} {other}\n"
         "{name} 1024 35 12345", recorded=ED),
    case("a type that is not the key's", "{name} ecdsa-sha2-nistp256 {other_blob}", recorded=ED),
    case("a name of a signature for a type", "{name} rsa-sha2-512 {rsa_blob}"),
    case("a comment behind the key", "{name} {other} me@here", is_refused=True),
    case("a comment instead of a key", "{name} # {other}", recorded=ED),
    case("a commented line", "# {name} {other}", recorded=ED),
    case("tabs", "\t {name}\t {other}", is_refused=True),
    case("lines that end as in DOS", "{name} {other}\r", is_refused=True),
    case("strict: unknown", StrictHostKeyChecking="yes", is_refused=True, is_asked=True),
    case("strict: known", ED, StrictHostKeyChecking="yes"),
    case("strict: known without a port", "{bare} {ed}", StrictHostKeyChecking="yes"),
    case("no file for users", NONE, is_refused=True, is_asked=True),
    case("no file for users, known to the system", NONE, system=ED),
    case("a file that keeps nothing", "/dev/null"),
    case("a folder instead of a file", "/tmp"),
    case("a file that cannot be written", "/proc/known_hosts"),
    case("an alias", "web {ed}", HostKeyAlias="web"),
    case("an alias, changed", "web {other}", HostKeyAlias="web", is_refused=True, is_asked=True),
    case("an alias, new", HostKeyAlias="web", recorded="web {ed}", is_asked=True),
    case("an alias has no port", "[web]:{port} {other}", HostKeyAlias="web", recorded="web {ed}"),
    case("an alias in capitals", "web {other}", HostKeyAlias="WEB", is_refused=True),
    case("an alias in capitals, hashed", "{hash_web} {other}", HostKeyAlias="WEB", is_refused=True),
    case("an alias in capitals, new", HostKeyAlias="WEB", recorded="web {ed}"),
    case("the kinds of key that are wanted", HostKeyAlgorithms="rsa-sha2-512", recorded="{name} {rsa}"),
    case("one more kind of key is wanted", "{name} {rsa}", HostKeyAlgorithms="+ssh-rsa", is_asked=True),
    case("one kind of key is not wanted", "{name} {rsa}", HostKeyAlgorithms="-ecdsa*"),
    case("one kind of key is preferred", "{name} {rsa}", HostKeyAlgorithms="^ssh-ed25519", is_refused=True),
    case("a list of kinds of key", "{name} {rsa}", HostKeyAlgorithms="ssh-ed25519,rsa-sha2-512", is_refused=True),
    # certificates
    case("a certificate, nothing is known", server="certified", recorded=ED, is_asked=True),
    case("the authority is known", "@cert-authority {name} {ca}", server="certified"),
    case("the authority is known without a port", "@cert-authority {bare} {ca}", server="certified", is_asked=True),
    case("the authority is known, strict", "@cert-authority * {ca}", server="certified", StrictHostKeyChecking="yes",
         is_asked=True),
    case("another authority", "@cert-authority {name} {other_ca}", server="certified", recorded=ED),
    case("another authority, strict", "@cert-authority * {other_ca}", server="certified", is_refused=True,
         StrictHostKeyChecking="yes"),
    case("an authority, a plain key", "@cert-authority {name} {ca}", recorded=ED, is_asked=True),
    case("an authority without a port, a plain key", "@cert-authority {bare} {ca}", recorded=ED),
    case("a certificate, its key is known", ED, server="certified"),
    case("a certificate, its key is known, strict", "{bare} {ed}", server="certified", StrictHostKeyChecking="yes"),
    case("a certificate, its key has changed", "{name} {other}", server="certified", is_refused=True),
    case("a certificate instead of the old key", "{name} {other}\n@cert-authority {name} {ca}", server="certified"),
    case("the authority is revoked", "@cert-authority {name} {ca}\n@revoked {name} {ca}", server="certified",
         is_refused=True, is_asked=True),
    case("the key in the certificate is revoked", "@cert-authority {name} {ca}\n@revoked {name} {ed}",
         server="certified", is_refused=True),
    case("an alias in the certificate", "@cert-authority web {ca}", server="certified", HostKeyAlias="web",
         StrictHostKeyChecking="yes"),
    case("an alias that the certificate lacks", "@cert-authority * {ca}", server="certified", HostKeyAlias="nope",
         is_refused=True, StrictHostKeyChecking="yes"),
    case("a certificate for another host", "@cert-authority {name} {ca}", server="elsewhere", recorded=ED),
    case("a certificate for another host, strict", "@cert-authority {name} {ca}", server="elsewhere", is_refused=True,
         StrictHostKeyChecking="yes"),
    case("a certificate for another host, changed", "{name} {other}\n@cert-authority {name} {ca}", server="elsewhere",
         is_refused=True),
    case("a certificate that has expired", "@cert-authority {name} {ca}", server="expired", recorded=ED),
    case("a certificate that has expired, strict", "@cert-authority {name} {ca}", server="expired", is_refused=True,
         StrictHostKeyChecking="yes"),
    case("a certificate with a pattern", "@cert-authority {name} {ca}", server="pattern", is_refused=True,
         StrictHostKeyChecking="yes"),
    case("a certificate for every host", "@cert-authority {name} {ca}", server="every", StrictHostKeyChecking="yes"),
    case("a certificate that was signed with SHA-1", "@cert-authority {name} {rsa_ca}", server="sha1", is_refused=True,
         StrictHostKeyChecking="yes"),
    # RevokedHostKeys
    case("a list revokes another key", ED, revoked="other"),
    case("a list revokes the key", ED, revoked="key", is_refused=True, is_asked=True),
    case("a list revokes the authority", "@cert-authority {name} {ca}", server="certified", revoked="authority",
         is_refused=True),
    case("a list that cannot be read", ED, revoked="odd", is_refused=True),
    case("a list that is missing", ED, revoked="missing", is_refused=True, is_asked=True),
    *(
        case(f"a KRL revokes {what}", "@cert-authority {name} {ca}", server="certified", revoked=f"krl_{name}",
             is_refused=name not in ("other", "serial_8"), is_asked=name in ("serial_7", "other"))
        for name, what in {
            "other": "another key", "key": "the key", "sha256": "the key's digest", "ca": "the authority",
            "serial_7": "the certificate's number", "serial_8": "another number", "range": "a range of numbers",
            "bitmap": "many numbers", "id": "the certificate's id",
        }.items()
    ),
    case("a KRL revokes numbers, a plain key", ED, revoked="krl_serial_7"),
]  # fmt: skip

SERVERS: Final[tuple[str, ...]] = ("plain", "certified", "elsewhere", "expired", "pattern", "every", "sha1")


class Keys:
    """The keys of all servers and authorities, in files below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        kinds = {"ec": "ecdsa-sha2-nistp256", "other_ec": "ecdsa-sha2-nistp256", "other_384": "ecdsa-sha2-nistp384"}
        self.private = {
            name: asyncssh.generate_private_key(kinds.get(name, "ssh-ed25519"))
            for name in ("ed", "ec", "other", "other_ec", "other_384", "ca", "other_ca")
        }
        self.private |= {name: asyncssh.generate_private_key("ssh-rsa", key_size=2048) for name in ("rsa", "rsa_ca")}
        for name, key in self.private.items():
            key.write_private_key(folder / name)
            key.write_public_key(folder / f"{name}.pub")
            (folder / name).chmod(0o600)
        self.certificates = {name: self._certificate(name) for name in SERVERS[1:]}
        for name, certificate in self.certificates.items():
            certificate.write_certificate(folder / f"{name}-cert.pub")

    def public(self, name: str) -> str:
        """A public key as known_hosts has it."""
        return " ".join(self.private[name].export_public_key().decode().split()[:2])

    def blobs(self, server: str) -> dict[str, bytes]:
        """What a server shows, by the algorithm that is agreed on."""
        ed = self.private["ed"].public_data
        if server != "plain":
            return {f"ssh-ed25519{CERTIFICATE}": self.certificates[server].public_data, "ssh-ed25519": ed}
        rsa = self.private["rsa"].public_data
        return {
            "ssh-ed25519": ed,
            "ecdsa-sha2-nistp256": self.private["ec"].public_data,
            "rsa-sha2-512": rsa,
            "rsa-sha2-256": rsa,
        }

    def server_options(self, server: str) -> list[str]:
        """Lines of sshd_config."""
        names = ("ed", "ec", "rsa") if server == "plain" else ("ed",)
        lines = [f"HostKey {self.folder / name}" for name in names]
        return lines if server == "plain" else [*lines, f"HostCertificate {self.folder / f'{server}-cert.pub'}"]

    def _certificate(self, name: str) -> asyncssh.SSHCertificate:
        principals = {"elsewhere": ["elsewhere"], "pattern": ["127.0.*"], "every": []}.get(name, ["127.0.0.1", "web"])
        authority = self.private["rsa_ca" if name == "sha1" else "ca"]
        return authority.generate_host_certificate(
            self.private["ed"],
            name,
            serial=7,
            principals=principals,
            valid_before=1_600_000_000 if name == "expired" else int(time.time()) + 86400,
            sig_alg="ssh-rsa" if name == "sha1" else (),
        )

    def revoked(self, name: str) -> Path:
        """A file for RevokedHostKeys; made when it is asked for."""
        path = self.folder / f"revoked_{name}"
        lists = {"other": self.public("other"), "key": f"# a comment\n{self.public('ed')}", "odd": "nonsense"}
        lists["authority"] = self.public("ca")
        if name in lists:
            path.write_text(lists[name] + "\n")
        elif name.startswith("krl_") and not path.exists():
            specification = self.folder / "specification"
            specification.write_text(self._specification(name.removeprefix("krl_")))
            words = ["ssh-keygen", "-q", "-k", "-f", str(path), "-s", str(self.folder / "ca.pub"), str(specification)]
            subprocess.run(words, check=True, stdin=subprocess.DEVNULL)
        return path

    def _specification(self, name: str) -> str:
        return {
            "other": f"key: {self.public('other')}",
            "key": f"key: {self.public('ed')}",
            "sha256": f"sha256: {self.public('ed')}",
            "ca": f"key: {self.public('ca')}",
            "serial_7": "serial: 7",
            "serial_8": "serial: 8",
            "range": "serial: 5-9",
            "bitmap": "\n".join(f"serial: {number}" for number in (1, 3, 7, 9, 11, 13, 15)),
            "id": "id: certified",
        }[name] + "\n"


class Files:
    """The known_hosts files of one case, for one of the two that decide about it."""

    def __init__(self, case: Case, keys: Keys, folder: Path, port: int) -> None:
        self.case = case
        self._keys = keys
        self._name = f"[127.0.0.1]:{port}"
        self._port = port
        self.user: list[Path] = []
        folder.mkdir(parents=True)
        for number, text in enumerate(case.user):
            if text is not None and (text.startswith("/") or text == NONE):
                self.user += [] if text == NONE else [Path(text)]
                continue
            self.user.append(folder / f"known_hosts{number}")
            if text is not None:
                self.user[-1].write_bytes(self._filled(text).encode("latin-1"))
        self.system = folder / "system"
        self.system.write_text(self._filled(case.system))
        self._before = self._content()

    def recorded(self) -> bytes:
        """What was added to the first file, a hash as the template has it."""
        added = self._content().removeprefix(self._before)
        name, _, rest = added.partition(b" ")
        parts = name.split(b"|")
        if len(parts) == 4 and _hash(self._name, base64.b64decode(parts[2])).encode() == name:
            name = b"{hash_name}"
        return name + b" " + rest if rest else added

    def expected(self) -> bytes:
        """The same as the table has it."""
        template = self.case.recorded
        if template is None:
            return b""
        return self._filled(template.replace("{hash_name}", "{{hash_name}}") + "\n").encode()

    def _content(self) -> bytes:
        mine = [path for path in self.user[:1] if path.parent == self.system.parent and path.exists()]
        return b"".join(path.read_bytes() for path in mine)

    def _filled(self, template: str) -> str:
        public = {name: self._keys.public(name) for name in self._keys.private}
        return template.format(
            name=self._name,
            bare="127.0.0.1",
            port=self._port,
            hash_name=_hash(self._name),
            hash_web=_hash("web"),
            other_blob=public["other"].split()[1],
            rsa_blob=public["rsa"].split()[1],
            **public,
        )


def _hash(name: str, salt: bytes | None = None) -> str:
    salt = salt or os.urandom(20)
    return "|1|" + "|".join(
        base64.b64encode(each).decode() for each in (salt, hmac.digest(salt, name.encode(), "sha1"))
    )
