"""Numbers and strings of SSH's encodings (RFC 4251, section 5), as public keys and key files consist of them."""

from collections.abc import Iterator


class Reader:
    """What is left of some bytes. Everything raises ValueError where they are cut off."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._place = 0

    def is_left(self) -> bool:
        """Whether anything is."""
        return self._place < len(self._content)

    def take(self, count: int) -> bytes:
        """The next so many bytes."""
        taken = self._content[self._place : self._place + count]
        if len(taken) < count:
            raise ValueError("it is cut off")
        self._place += count
        return taken

    def number(self, count: int) -> int:
        """An unsigned number of so many bytes."""
        return int.from_bytes(self.take(count), "big")

    def string(self) -> bytes:
        """A string, or the bytes of an mpint."""
        return self.take(self.number(4))

    def strings(self) -> Iterator[bytes]:
        """Strings to the end."""
        while self.is_left():
            yield self.string()

    def sections(self) -> Iterator[tuple[int, bytes]]:
        """A byte and a string each, to the end."""
        while self.is_left():
            yield self.number(1), self.string()


def key_type(key: bytes) -> bytes:
    """The type of a public key: the first string of its encoding; empty where there is none."""
    try:
        return Reader(key).string()
    except ValueError:
        return b""
