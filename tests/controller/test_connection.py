"""What a connection to a real OpenSSH server survives, and what it says when it doesn't; tests/sshd has the rest."""

import pytest

from cronium_controller.connection import open_connection
from remote_host import RemoteHost

pytestmark = pytest.mark.sshd


async def test_a_key_recorded_by_this_connection_survives_the_renewal_of_session_keys(remote: RemoteHost) -> None:
    remote.server.stop()
    remote.server._options = ["RekeyLimit 1M"]
    remote.server.start()
    connection = await open_connection(remote.host, remote.access())
    done = await connection.run("head -c 5000000 /dev/zero")
    assert (done.exit_status, len(done.stdout)) == (0, 5_000_000)
    await connection.close()


async def test_a_lost_connection_is_an_error_and_no_exit_status(remote: RemoteHost) -> None:
    connection = await open_connection(remote.host, remote.access())
    done = await connection.run("kill -9 $PPID")
    assert done.exit_status is None
