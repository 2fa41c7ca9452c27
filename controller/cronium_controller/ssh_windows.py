"""Receive windows of asyncssh's channels, granted only for bytes that were delivered.

asyncssh 2.24 sends the whole window again with the first buffered piece that it delivers after `resume_reading`, also
while the rest stays buffered. A reader that pauses and resumes then holds one window more each time: `cronium exec` of
1.6 GB held 1.2 GiB. Here a piece that still waits is not counted as read, so a paused channel holds one window at most.
"""

from typing import Any, Final

_JOINED: Final = 64 * 1024
"""Bytes up to which small buffered pieces become one: a window of single bytes would take a hundred times its size."""
_NEEDED: Final = ("_accept_data", "_deliver_data")


def install(asyncssh: Any) -> None:
    """Corrects all channels of the library. Does nothing where a later version has other methods."""
    channel = asyncssh.channel.SSHChannel
    if not all(hasattr(channel, name) for name in _NEEDED):
        return
    accept, deliver = channel._accept_data, channel._deliver_data
    adjust, number = asyncssh.constants.MSG_CHANNEL_WINDOW_ADJUST, asyncssh.packet.UInt32

    def accept_joined(self: Any, data: bytes, datatype: int | None = None) -> None:
        accept(self, data, datatype)
        if len(self._recv_buf) > 1:
            _join_last(self._recv_buf)

    def deliver_counted(self: Any, data: bytes, datatype: int | None) -> None:
        if self._encoding:  # text is decoded there; no channel of this project has any
            deliver(self, data, datatype)
            return
        half = self._init_recv_window / 2
        if self._recv_window < half:
            waiting = sum(len(piece) for piece, _ in self._recv_buf)
            read = self._init_recv_window - self._recv_window - waiting
            if read > half:
                self._recv_window += read
                self.send_packet(adjust, number(read))
        if self._session is not None:
            self._session.data_received(data, datatype)

    channel._accept_data, channel._deliver_data = accept_joined, deliver_counted


def _join_last(waiting: list[tuple[bytes, int | None]]) -> None:
    (before, kind), (last, other) = waiting[-2:]
    if kind == other and len(before) + len(last) <= _JOINED:
        waiting[-2:] = [(before + last, kind)]
