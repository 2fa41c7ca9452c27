"""How another account gets the runner: it finds its own copy, or is handed one.

The target can't read our 0700 install directory, and nothing of ours may write where the target rules. So everything
here is done by a small POSIX shell script that runs as the target: it looks for an installed runner in the target's own
directories that no other account can exchange (`safe_path`), or takes an archive of ours from its standard input,
checks its SHA-256, unpacks it and lets it install itself by the rules of `location` and `bundle`. How a process becomes
the target's is `run_as`'s.

In:  mode (`find` or `install`), the bundle's folder name, the target's uid, the archive's SHA-256, then the roots that
     may hold runners, in order. For `install` the archive on standard input. HOME is the target's.
Out: lines on standard output: `MARK here` at once, then `MARK runner PATH`, `MARK none` or `MARK failed WHY`.
"""

import os
from collections.abc import Callable
from typing import Final, NamedTuple

from . import bundle, location, ustar
from .account import Account
from .digest import sha256
from .errors import RunnerError
from .wire import safe_shell

MARK: Final = "cronium-run-as:"

SCRIPT: Final = (
    safe_shell.FUNCTIONS
    + r"""
mode=$1 folder=$2 uid=$3 digest=$4
shift 4
umask 022
echo "cronium-run-as: here"
fail() { echo "cronium-run-as: failed $*"; exit 0; }

# Ours, a real directory, and closed to everybody else: another user may have made it first.
is_private() {
  set -- $(LC_ALL=C ls -ldn "$1" 2>/dev/null)
  case "${1-} ${3-}" in drwx------*" $uid") return 0 ;; esac
  return 1
}

if [ "$mode" = find ]; then
  for root; do
    is_private "$root" && is_private "$root/$folder" && safe_path "$root/$folder" 2>/dev/null || continue
    if "$root/$folder/cronium-runner" version >/dev/null 2>&1; then
      echo "cronium-run-as: runner $root/$folder/cronium-runner"
      exit 0
    fi
  done
  echo "cronium-run-as: none"
  exit 0
fi

work=
trap 'if [ -n "$work" ]; then rm -rf "$work"; fi' EXIT
trap 'exit 1' HUP INT TERM
why="no directory to install it in"
for root; do
  case $root in
    "$HOME"/*)
      [ -d "$HOME" ] || { why="$why; $HOME is not there"; continue; }
      ;;
    *) [ -d "${root%/*}" ] || continue ;;
  esac
  said=$(make_safe "$root" 2>&1) || { why="$why; ${said#cronium-unsafe: }"; continue; }
  is_private "$root" || { why="$why; $root is not ours alone"; continue; }
  # What was left by an installation that was killed is nobody's after an hour.
  find "$root" -maxdepth 1 -name '.upload-*' -mmin +60 -exec rm -rf {} + 2>/dev/null
  work=$root/.upload-as-$$
  mkdir -m 700 "$work" 2>/dev/null || { why="$why; $root cannot be written"; work=; continue; }
  printf '#!/bin/sh\nexit 0\n' >"$work/probe" && chmod 700 "$work/probe" && "$work/probe" 2>/dev/null && break
  rm -rf "$work"
  work=
  why="$why; $root cannot hold programs"
done
[ -n "$work" ] || fail "$why"
cat >"$work/archive" || fail "$root has no room"
if command -v sha256sum >/dev/null; then found=$(sha256sum "$work/archive")
elif command -v openssl >/dev/null; then found=$(openssl dgst -sha256 -r "$work/archive")
elif command -v shasum >/dev/null; then found=$(shasum -a 256 "$work/archive")
else fail "there is none of sha256sum, openssl and shasum to check it with"
fi
[ "${found%% *}" = "$digest" ] || fail "what arrived has another SHA-256"
command -v tar >/dev/null || fail "there is no tar to unpack it with"
mkdir -m 700 "$work/runner" && tar -xf "$work/archive" -C "$work/runner" || fail "it cannot be unpacked in $root"
"$work/runner/cronium-runner" install "$root/$folder" >/dev/null || fail "it does not install itself in $root"
echo "cronium-run-as: runner $root/$folder/cronium-runner"
"""
)


class Archive(NamedTuple):
    """The installed runner as one nameless tar file. `descriptor` is read from its start, and can't be written."""

    descriptor: int
    sha256: str


def words(mode: str, account: Account, own: bundle.Bundle, sha256: str = "-") -> list[str]:
    """The command that runs the script; who runs it must be the account."""
    roots = location.roots_of(account.uid, account.home)
    return ["/bin/sh", "-c", SCRIPT, "sh", mode, own.folder, str(account.uid), sha256, *roots]


def answer(printed: bytes, account: Account, own: bundle.Bundle) -> str | None:
    """The path of the account's runner, or None when it has none yet. `printed` is what the script said, and more.

    Nothing of it is believed but the choice among the paths that there can be. Raises RunnerError
    `run_as.no_runner` when the script could not install it.
    """
    lines = printed.decode("utf-8", "replace").splitlines()
    said = [line.removeprefix(MARK).strip() for line in lines if line.startswith(MARK)][1:]
    last = said[-1] if said else "failed without a word"
    paths = [os.path.join(root, own.folder, bundle.EXECUTABLE) for root in location.roots_of(account.uid, account.home)]
    if last.startswith("runner ") and last.removeprefix("runner ") in paths:
        return last.removeprefix("runner ")
    if last == "none":
        return None
    others = " ".join(line for line in lines if not line.startswith(MARK))
    told = " ".join(part for part in (last.removeprefix("failed "), others[-200:]) if part)
    raise RunnerError(
        "run_as.no_runner",
        f"the runner cannot be given to {account.name}: {told!r:.600}; nothing was started; mend that, or install it "
        f"as {account.name}",
    )


def was_reached(printed: bytes) -> bool:
    """Whether the script ran at all: else something refused to run it, and what was printed says why."""
    return any(line.startswith(MARK.encode()) for line in printed.splitlines())


def archive(own: bundle.Bundle, read_file: Callable[[str], bytes]) -> Archive:
    """Packs the bundle. The descriptor is the caller's to close. Raises OSError; RunnerError for a damaged bundle, and
    one that its owner has exchanged libraries of: the other account has not."""
    if own.adopted:
        raise RunnerError(
            "run_as.no_runner",
            f"this runner has libraries that its owner exchanged ({', '.join(own.adopted)}), and is given to no other "
            "account; nothing was started; install the runner as that account",
        )
    writing, reading, is_sealable = _nameless_file()
    digest = sha256()
    with os.fdopen(writing, "wb") as file:

        def put(piece: bytes) -> None:
            digest.update(piece)
            file.write(piece)

        for path, mode, size in own.files:
            content = read_file(path)
            built = own.digests.get(path)
            if len(content) != size or (built is not None and sha256(content).hexdigest() != built):
                raise RunnerError("install.damaged", f"our own runner's {path} is damaged: install the runner again")
            put(ustar.file_header(path, size, mode) + content + ustar.padding(size))
        listing = own.text.encode("ascii")
        put(ustar.file_header(bundle.CONTENTS, len(listing), 0o600) + listing + ustar.padding(len(listing)))
        for path, target in own.links:
            put(ustar.link(path, target))
        put(ustar.END)
    if is_sealable:
        _seal(reading)
    os.lseek(reading, 0, os.SEEK_SET)
    return Archive(reading, digest.hexdigest())


def _nameless_file() -> tuple[int, int, bool]:
    """Two descriptors of one new file, to write and to read, and whether it can be sealed.

    The file is in memory where the kernel allows that (since 3.17), else on disk. On disk the second descriptor, which
    the target gets, is read-only; the target's account cannot open the file for writing.
    """
    try:
        writing = os.memfd_create("cronium-runner", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:  # a container's filter of system calls may refuse it, too
        import tempfile

        writing, path = tempfile.mkstemp(prefix="cronium-runner-")
        try:
            return writing, os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), False
        finally:
            os.unlink(path)
    return writing, os.dup(writing), True


def _seal(descriptor: int) -> None:
    """The target gets this very descriptor: it may read what is there, and never change it."""
    import fcntl

    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
