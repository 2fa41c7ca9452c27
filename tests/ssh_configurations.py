"""Small configurations of OpenSSH, and what `ssh -G` and our own reader make of each: the conformance test's table.

`{folder}` in a text is the row's folder. Texts are Latin-1, so that a row may have bytes that are no UTF-8.
"""

import os
import pwd
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cronium_controller import ssh_asking, ssh_lines, ssh_reader, ssh_values
from cronium_controller.errors import ControllerError
from cronium_controller.ssh_reader import Asked
from cronium_controller.ssh_settings import SSHSettings


@dataclass(frozen=True)
class Row:
    """One configuration and the host that is asked for."""

    what: str
    user: str
    host: str = "web"
    system: str = ""
    files: dict[str, str] = field(default_factory=dict)
    port: int | None = None
    account: str | None = None
    modes: dict[str, int] = field(default_factory=dict)
    """Modes of files that are not 0600."""
    is_simple: bool | None = None
    """Whether no program is run for it; None where that doesn't matter."""

    @property
    def asked(self) -> Asked:
        return Asked(self.host, self.port, self.account)


ROWS: Final = [
    Row("nothing is written", "", is_simple=True),
    Row("address, port and user", "Host web\n HostName 10.0.0.1\n Port 2222\n User me\n", is_simple=False),
    Row("another host's block", "Host other\n HostName 10.0.0.1\n Port 2222\n", is_simple=True),
    Row("the first value wins", "Host web\n Port 1\nHost *\n Port 2\n User a\n User b\n"),
    Row("lines before the first Host", "User early\nHost web\n User late\n"),
    Row("patterns", "Host w?b *.org\n Port 3\nHost w*\n User star\n"),
    Row("patterns that differ", "Host w?b?\n Port 3\nHost ?*?\n User three\n"),
    Row("a negated pattern", "Host * !web\n Port 4\nHost !other *\n User most\n"),
    Row("only a negated pattern", "Host !other\n Port 4\n", is_simple=True),
    Row("patterns are case sensitive", "Host WEB\n Port 5\n", is_simple=True),
    Row("a name in capitals", "Host web\n Port 5\nHost WEB\n User loud\n", host="WEB"),
    Row("an equals sign", "Host=web\n Port=2222\n User = me\n HostName\t=\t10.0.0.2\n"),
    Row("quotes", 'Host "web"\n Port "2222"\n IdentityFile "/keys/with space"\n'),
    Row("a comment with an apostrophe", "# don't\nHost web # isn't other\n Port 2222\n"),
    Row("a comment behind a value", "Host web\n Port 22 # note\n User me # 'x\n"),
    Row("a comment without a space", "Host web\n Port 2222 #note\n#Port 5\n"),
    Row("Latin-1 in a comment", "# f\xfcr B\xfcro\nHost web\n Port 2222\n"),
    Row("Latin-1 in another block", "Host b\xfcro\n User j\xfcrgen\nHost web\n Port 2222\n"),
    Row("UTF-8 in a value", "Host web\n IdentityFile /keys/b\xc3\xbcro\n"),
    Row("lines that end as in DOS", "Host web\r\n Port 2222\r\n User me\r\n"),
    Row("tabs and form feeds", "\tHost\tweb\n\t\tPort\t2222\t\f\n"),
    Row("keywords in capitals", "HOST web\n PORT 2222\n hostname 10.0.0.1\n"),
    Row("an Include", "Include {folder}/more\nHost web\n Port 1\n", files={"more": "Host web\n Port 2\n User in\n"}),
    Row(
        "an Include with a pattern, in order",
        "Include {folder}/*.conf\n",
        files={"b.conf": "User b\nPort 7\n", "a.conf": "User a\n", "c.txt": "User c\n"},
    ),
    Row("an Include in another's block", "Host other\n Include {folder}/m\n", files={"m": "Host web\n Port 9\n"}),
    Row(
        "an Include in the host's block",
        "Host web\n Include {folder}/m\n User behind\n",
        files={"m": "Port 9\nHost other\n User hidden\n"},
    ),
    Row("an Include of nothing", "Include {folder}/none {folder}/*.none\nHost web\n Port 2\n"),
    Row("an Include of itself, in the end", "Include {folder}/a\n", files={"a": "Include {folder}/a\n"}),
    Row("an Include that others can write", "Include {folder}/m\n", files={"m": "User x\n"}, modes={"m": 0o666}),
    Row("a file that others can write", "Host web\n Port 2\n", modes={"user": 0o622}),
    Row("Match host", "Match host web\n Port 2\nMatch host other\n Port 3\n"),
    Row(
        "Match host looks at HostName", "Host web\n HostName real\nMatch host real\n Port 2\nMatch host web\n User x\n"
    ),
    Row("Match originalhost", "Host web\n HostName real\nMatch originalhost web\n Port 2\n"),
    Row("Match host with a list", "Match host !web,*\n Port 2\nMatch host db,w*\n User x\n"),
    Row("Match host in capitals", "Match host WEB\n Port 2\n"),
    Row("Match user", "Match user deploy\n Port 2\nHost web\n User deploy\nMatch user deploy\n HostName x\n"),
    Row("Match user of the command line", "Match user deploy\n Port 2\n", account="deploy"),
    Row("Match localuser", "Match localuser {local}\n Port 2\nMatch localuser other\n User x\n"),
    Row("Match all", "Host other\n Port 2\nMatch all\n Port 3\n"),
    Row("Match with !", "Match !host other\n Port 2\nMatch !host web\n User x\n"),
    Row("Match with an equals sign", "Match host=web\n Port 2\n"),
    Row("Match of two criteria", "Match host web user you\n Port 2\nMatch host web !user you\n User x\n"),
    Row("Match exec", 'Match exec "true"\n Port 2\nMatch exec false\n User x\n'),
    Row("Match exec that is negated", "Match !exec false\n Port 2\nMatch !exec true\n User x\n"),
    Row("Match exec with an equals sign", 'Match exec "test a = a"\n Port 2\nMatch exec "test a = b"\n User x\n'),
    Row(
        "Match exec with tokens",
        'Host web\n HostName real\n Port 9\nMatch exec "test %n-%h-%p-%r-%u = web-real-9-{local}-{local}"\n User x\n',
    ),
    Row("Match exec behind a criterion", 'Match host other exec "touch {folder}/ran"\n Port 2\n'),
    Row("Match final", "Host web\n HostName real\nMatch final host real\n Port 2\n"),
    Row("Match final, and Host in the second pass", "Match final all\n User x\nHost web\n Port 2\n", host="WEB"),
    Row("Match without criteria", "Match host\n Port 2\n"),
    Row("Match with an unknown criterion", "Match wind north\n Port 2\n"),
    Row("ProxyJump", "Host web\n ProxyJump me@[::1]:2222,b\n"),
    Row("ProxyJump none", "Host web\n ProxyJump none\nHost *\n ProxyJump gate\n"),
    Row("ProxyCommand none stops a ProxyJump", "Host web\n ProxyCommand none\nHost *\n ProxyJump gate\n"),
    Row("ProxyCommand before ProxyJump", "Host web\n ProxyCommand nc %h %p\n ProxyJump gate\n"),
    Row("ProxyJump before ProxyCommand", "Host web\n ProxyJump gate\n ProxyCommand nc %h %p\n"),
    Row("ProxyCommand as it is written", "Host web\n ProxyCommand = sh -c 'exec  nc \"$0\" %p' %h # %% x\n"),
    Row("ProxyCommand with an open quote", "Host web\n ProxyCommand nc 'x\n"),
    Row("ProxyJump with tokens", "Host web\n HostName real\n ProxyJump gate-%h\n"),
    Row("identities add up", "Host web\n IdentityFile ~/a\nHost *\n IdentityFile %d/b-%r\n IdentityFile ~/a\n"),
    Row("no identity", "Host web\n IdentityFile none\n"),
    Row("an identity by a variable", "Host web\n IdentityFile ${{HOME}}/key\n"),
    Row("certificates", "Host web\n CertificateFile ~/c-cert.pub\n IdentitiesOnly yes\n"),
    Row("an agent", "Host web\n IdentityAgent ~/agent-%n\n"),
    Row("no agent", "Host web\n IdentityAgent none\n"),
    Row("the usual agent", "Host web\n IdentityAgent SSH_AUTH_SOCK\n"),
    Row("an agent by a variable", "Host web\n IdentityAgent $OTHER_AGENT\n"),
    Row("known_hosts files", "Host web\n UserKnownHostsFile /k/%h-%k /k/2\n GlobalKnownHostsFile /g/1\n"),
    Row("known_hosts files with spaces", 'Host web\n UserKnownHostsFile "/k/a b" /k/2 "/k/c d"\n'),
    Row("no known_hosts file", "Host web\n UserKnownHostsFile none\n GlobalKnownHostsFile none\n"),
    Row("an alias", "Host web\n HostKeyAlias Real%h\n HostName real\n"),
    Row("strict", "Host web\n StrictHostKeyChecking yes\n RevokedHostKeys ~/revoked\n"),
    Row("not strict", "Host web\n StrictHostKeyChecking no\n RevokedHostKeys none\n"),
    Row("off", "Host web\n StrictHostKeyChecking off\n"),
    Row("accept-new", "Host web\n StrictHostKeyChecking accept-new\n"),
    Row("hashed names", "Host web\n HashKnownHosts yes\n", is_simple=True),
    Row(
        "harmless options",
        "Host *\n SendEnv A B\n SetEnv X=y\n Compression yes\n ServerAliveInterval 9\n",
        is_simple=True,
    ),
    Row("the system's file counts behind the user's", "User mine\n", system="User theirs\nPort 2222\n"),
    Row("a block ends with its file", "Host other\n", system="Port 2222\n"),
    Row("the system's file alone", "", system="Host *\n SendEnv LANG LC_*\n HashKnownHosts yes\n", is_simple=True),
    Row("an address family and an address here", "Host web\n AddressFamily inet6\n BindAddress ::1\n"),
    Row("a time", "Host web\n ConnectTimeout 1m30\n", is_simple=True),
    Row("no time", "Host web\n ConnectTimeout none\n"),
    Row(
        "kinds of authentication",
        "Host web\n PreferredAuthentications publickey,password\n PasswordAuthentication no\n",
    ),
    Row("HostName with a token", "Host web\n HostName %h.example.org\n"),
    Row("HostName with a percent sign", "Host web\n HostName fe80::1%%eth0\n"),
    Row("HostName with a wrong token", "Host web\n HostName %p.example.org\n"),
    Row("HostName in capitals", "Host web\n HostName Real.Example\n"),
    Row("an IPv6 address", "Host ::1\n Port 2\n", host="::1"),
    Row("the command line's port and user win", "Host *\n Port 2\n User x\n", port=2222, account="me"),
    Row("an unknown option", "Host other\n NoSuchOption yes\n"),
    Row("an unknown option that is ignored", "IgnoreUnknown NoSuch*\nHost web\n NoSuchOption yes\n Port 2\n"),
    Row("nothing behind a keyword", "Host web\n Port\n"),
    Row("an impossible port", "Host other\n Port 99999\n"),
    Row("a port that is a word", "Host web\n Port ssh\n"),
    Row("a quote that is not closed", "Host other\n User 'me\n"),
    Row("neither yes nor no", "Host web\n IdentitiesOnly maybe\n"),
    Row("one word too many", "Host web\n Port 2 3\n"),
    Row(
        "canonical names, and the host is in no domain", "CanonicalizeHostname yes\nCanonicalDomains invalid\nPort 2\n"
    ),
    Row(
        "canonical names without a way back",
        "CanonicalizeHostname yes\nCanonicalDomains invalid\nCanonicalizeFallbackLocal no\n",
    ),
]


def write(row: Row, folder: Path) -> None:
    """Writes the files of a row: those of a home in `folder`/home, and `folder`/system."""
    (folder / "home" / ".ssh").mkdir(parents=True)
    filled = {"folder": str(folder), "local": pwd.getpwuid(os.getuid()).pw_name}
    texts = {"home/.ssh/config": row.user, "system": row.system, **row.files}
    modes = {"home/.ssh/config": row.modes.get("user", 0o600), **row.modes}
    for name, text in texts.items():
        path = folder / name
        path.write_bytes(text.format_map(filled).encode("latin-1"))
        path.chmod(modes.get(name, 0o600))
    (folder / "both").write_text(f"Include {folder}/home/.ssh/config\nInclude {folder}/system\n")


def theirs(row: Row, folder: Path) -> SSHSettings | None:
    """What `ssh -G` says, once `write` has written the row's files; None when it refuses them."""
    words = ["ssh", "-G", "-F", str(folder / "both")]
    if row.port is not None:
        words += ["-p", str(row.port)]
    if row.account is not None:
        words += ["-l", row.account]
    done = subprocess.run([*words, "--", row.host], stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        return None
    printed = done.stdout.decode("utf-8", "surrogateescape")
    printed = printed.replace(f" {pwd.getpwuid(os.getuid()).pw_dir}/", f" {folder}/home/")
    configuration = ssh_lines.load(str(folder / "system"))
    found = ssh_reader.survey(configuration, row.asked)
    return comparable(ssh_values.settings_of(row.asked, ssh_asking._parsed(printed, configuration), found))


def ours(row: Row, folder: Path) -> SSHSettings | None:
    """What our own reader says of the same files; None when it refuses them. HOME has to be `folder`/home."""
    configuration = ssh_lines.load(str(folder / "system"))
    found = ssh_reader.survey(configuration, row.asked)
    try:
        values = found.values if found.is_simple else ssh_reader.read(configuration, row.asked)
        return comparable(ssh_values.settings_of(row.asked, values, found))
    except ControllerError:
        return None


def comparable(settings: SSHSettings) -> SSHSettings:
    """Settings without the lists of algorithms: `ssh -G` prints its own defaults, changed by what is written."""
    return replace(settings, ciphers=None, macs=None, key_exchanges=None, host_key_algorithms=None)
