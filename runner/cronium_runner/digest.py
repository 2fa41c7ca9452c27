"""SHA-256 and SHA-512, without the other digests that hashlib loads with them: six libraries, 3 ms of each start."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import sha256, sha512
else:
    try:
        from _sha256 import sha256
    except ImportError:  # Python 3.12 calls it otherwise, and some systems leave it out
        from hashlib import sha256

    def sha512():
        """Of nothing so far. Seldom needed, so it is loaded here."""
        try:
            from _sha512 import sha512 as begin
        except ImportError:
            from hashlib import sha512 as begin
        return begin()


__all__ = ["sha256", "sha512"]
