"""Whether ~/.ssh/config has a say in something. asyncssh takes it apart; this is for files that don't mention it."""

import os


def may_mention(*keywords: str) -> bool:
    """Whether any of the keywords (in lower case) is in the file, in whatever sense, or the file includes others.

    One that can't be read mentions nothing: asyncssh says what is wrong with it.
    """
    try:
        with open(os.path.expanduser("~/.ssh/config"), "rb") as file:
            written = file.read().lower()
    except OSError:
        return False
    return any(keyword.encode() in written for keyword in (*keywords, "include"))
