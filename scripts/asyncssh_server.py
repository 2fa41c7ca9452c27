"""asyncssh's own SSH server, for a demonstration on a machine without OpenSSH's sshd.

It runs commands as the account that started it, in a thread of its own, and knows one throw-away key.
"""

import asyncio
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncssh


class Server(asyncssh.SSHServer):
    """Forwards sockets, as OpenSSH's does by default: the way from the host to the platform in API mode."""

    def unix_server_requested(self, listen_path: str) -> bool:
        del listen_path  # the account's own folders are its own matter
        return True


@contextmanager
def serve(folder: Path, environment: dict[str, str]) -> Iterator[tuple[int, Path]]:
    """The server's port and the private key that it lets in, while the block runs."""
    folder.mkdir(mode=0o700, parents=True)
    identity = folder / "id_ed25519"
    client_key = asyncssh.generate_private_key("ssh-ed25519")
    client_key.write_private_key(str(identity))
    client_key.write_public_key(str(folder / "authorized_keys"))

    async def run_command(process: asyncssh.SSHServerProcess[bytes]) -> None:
        started = await asyncio.create_subprocess_shell(
            process.command or "exit 1",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
            cwd=os.path.expanduser("~"),
        )
        await process.redirect(stdin=started.stdin, stdout=started.stdout, stderr=started.stderr)
        process.exit(await started.wait())

    async def listen() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            authorized_client_keys=str(folder / "authorized_keys"),
            server_factory=Server,
            process_factory=run_command,
            sftp_factory=True,
            encoding=None,
        )

    async def end() -> None:
        listening.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    listening = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    try:
        yield listening.get_port(), identity
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
