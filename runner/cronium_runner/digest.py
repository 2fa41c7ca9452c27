"""SHA-256, without the other digests that hashlib loads with it: six libraries instead of one, 3 ms of each start."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import sha256
else:
    try:
        from _sha256 import sha256
    except ImportError:  # Python 3.12 calls it otherwise, and some systems leave it out
        from hashlib import sha256

__all__ = ["sha256"]
