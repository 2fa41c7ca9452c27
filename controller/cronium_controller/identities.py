"""The keys that one connection offers, in ssh's order, each as a pair that signs when the host wants it.

First certificates of CertificateFile, then the named keys, those first that the agent holds; then the agent's other
keys, unless IdentitiesOnly, and OpenSSH's default files where none is named. ssh puts named keys that the agent does
not hold behind the agent's other keys, and a host that counts attempts locks them out; here they are in front. A file
that cannot be used is skipped, with a warning the first time.
"""

import asyncio
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Final

from .key_files import ENCRYPTED, MISSING, KeyFile, Passphrase, UnusableKeyError, read_certificate, read_key_file
from .known_hosts import CERTIFICATE
from .ssh_library import asyncssh
from .ssh_settings import ASK_AGENT, SSHSettings

_Certificate = Any
"""asyncssh's certificate of a user key, or None."""
_Signer = Callable[[_Certificate], asyncssh.SSHKeyPair]

_RSA_CERTIFICATE: Final = b"ssh-rsa" + CERTIFICATE

_told: Final[set[tuple[str, str]]] = set()
"""Skipped files of which a warning has told, and why."""


class Identities:
    """The keys of one connection: `prepare` finds them, `following` hands them out one by one."""

    def __init__(self, settings: SSHSettings, passphrase: Passphrase | None = None) -> None:
        self._settings = settings
        self._passphrase = passphrase
        self._left: list[asyncssh.SSHKeyPair] = []
        self._agent: asyncssh.SSHAgentClient | None = None
        self.skipped: dict[str, str] = {}
        """Files that cannot be used, and why, as words behind the name."""
        self.has_signed = False
        """Whether a signature was made: the host knew the key and wanted it."""

    async def prepare(self, seconds: float) -> None:
        """Reads the files and asks the agent, for so many seconds at the most. Asks for passphrases of named keys."""
        files = [read_key_file(path) for path in self._settings.identity_files]
        held = await self._held(seconds)
        if self._settings.are_identities_named:
            public = {pair.public_data for pair in held}
            for file in files:
                if file.is_encrypted and file.public not in public and self._passphrase is not None:
                    try:
                        file.public = file.unlock(self._passphrase).public_data
                    except UnusableKeyError as error:
                        file.wrong = str(error)
        self._left = self._ordered(files, held)

    def is_empty(self) -> bool:
        """Whether there is no key to offer, or none any more."""
        return not self._left

    def following(self) -> asyncssh.SSHKeyPair | None:
        """The next key to offer; None behind the last."""
        return self._left.pop(0) if self._left else None

    def close(self) -> None:
        """Leaves the agent."""
        if self._agent is not None:
            self._agent.close()

    def new_warning(self) -> str | None:
        """A sentence that names the files that were skipped, without those that were named before in this process."""
        new = [each for each in self.skipped.items() if each not in _told]
        _told.update(new)
        return f"not used as identity: {'; '.join(f'{path} {why}' for path, why in new)}" if new else None

    async def _held(self, seconds: float) -> list[asyncssh.SSHKeyPair]:
        """The keys of the agent, in its order; none of an agent that doesn't answer."""
        path = self._settings.identity_agent
        path = os.environ.get(ASK_AGENT) if path == ASK_AGENT else path
        if not path:
            return []
        self._agent = asyncssh.SSHAgentClient(path)
        try:
            async with asyncio.timeout(seconds):
                return list(await self._agent.get_keys())
        except (TimeoutError, ValueError, OSError):
            return []

    def _ordered(self, files: Sequence[KeyFile], held: Sequence[asyncssh.SSHKeyPair]) -> list[asyncssh.SSHKeyPair]:
        by_agent = {pair.public_data: pair for pair in held}
        signers: dict[bytes, _Signer] = {}
        offers: list[tuple[bytes, bytes, _Certificate]] = []
        """Of the files: what is shown to the host, the public key in it, and the certificate that it is."""
        for file in files:
            public = file.public
            if public in by_agent:
                pass
            elif public is None or file.wrong is not None or (file.is_encrypted and self._passphrase is None):
                self._skip(file)
            else:
                signers.setdefault(public, self._from_file(file, public))
            if public is not None:
                offers.append((public, public, None))
                certificate = None if self._settings.certificate_files else read_certificate(f"{file.path}-cert.pub")
                if certificate is not None and certificate.key.public_data == public:
                    offers.append((certificate.public_data, public, certificate))
        signers |= {pair.public_data: self._from_agent(pair) for pair in held}
        listed = map(read_certificate, self._settings.certificate_files)
        ordered = [
            signers[its.key.public_data](its) for its in listed if its is not None and its.key.public_data in signers
        ]
        named = {shown for shown, _, _ in offers}
        ordered += [pair for pair in held if pair.public_data in named]
        in_files = [
            signers[public](its) for shown, public, its in offers if shown not in by_agent and public in signers
        ]
        others = [] if self._settings.identities_only else [pair for pair in held if pair.public_data not in named]
        ordered += [*in_files, *others] if self._settings.are_identities_named else [*others, *in_files]
        for pair in ordered:
            self._watch(pair)
        return ordered

    def _from_file(self, file: KeyFile, public: bytes) -> _Signer:
        key = _decoded(public)

        def unlock() -> asyncssh.SSHKey:
            try:
                return file.unlock(self._passphrase)
            except UnusableKeyError as error:
                self.skipped[file.path] = str(error)
                raise

        return lambda certificate: _FilePair(key, certificate, unlock)

    def _from_agent(self, held: asyncssh.SSHKeyPair) -> _Signer:
        def signer(certificate: _Certificate) -> asyncssh.SSHKeyPair:
            assert self._agent is not None, "it was asked for its keys"
            pair = asyncssh.agent.SSHAgentKeyPair(self._agent, held.key_algorithm, held.public_data, b"")
            pair.set_certificate(certificate)
            return pair

        return signer

    def _skip(self, file: KeyFile) -> None:
        why = file.wrong or ENCRYPTED
        if self._settings.are_identities_named or why not in (MISSING, ENCRYPTED):
            self.skipped[file.path] = why

    def _watch(self, pair: Any) -> None:
        """Notes that it signs, and corrects the algorithm of RSA certificates."""
        sign = pair.sign_async

        async def signed(data: bytes) -> bytes:
            self.has_signed = True
            signature: bytes = await sign(data)
            return signature

        choose = pair.set_sig_algorithm

        def chosen(algorithm: bytes) -> None:
            choose(algorithm)
            # asyncssh would name SHA-1 here, and try the right name only where another key is left behind this one.
            if pair.algorithm == _RSA_CERTIFICATE and pair.sig_algorithm != b"ssh-rsa":
                pair.algorithm = pair.sig_algorithm + CERTIFICATE

        pair.sign_async, pair.set_sig_algorithm = signed, chosen


@functools.lru_cache(maxsize=16)
def _decoded(public: bytes) -> asyncssh.SSHKey:
    """Decoded once, and not for each of a thousand hosts."""
    return asyncssh.public_key.decode_ssh_public_key(public)


class _FilePair(asyncssh.SSHKeyPair):
    """A key of a file, with a certificate or without. The private half is read when the host wants a signature."""

    _key_type = "local"

    def __init__(self, public: asyncssh.SSHKey, certificate: _Certificate, unlock: Callable[[], asyncssh.SSHKey]):
        algorithms = public.sig_algorithms
        super().__init__(
            public.algorithm, public.algorithm, algorithms, algorithms, public.public_data, None, certificate
        )
        self._unlock = unlock

    async def sign_async(self, data: bytes) -> bytes:
        """A signature. Raises ValueError, upon which asyncssh goes on with the next key."""
        try:
            return self._unlock().sign(data, self.sig_algorithm)
        except UnusableKeyError as error:
            raise ValueError(str(error)) from None
