"""Every error code there is, in one place. Codes are stable: programs match on them, messages may be reworded.

A code says *what happened*; the message beside it says where, and what to do about it.
"""

from typing import Final

CODES: Final[dict[str, str]] = {
    # The payload, before anything of it has run.
    "payload.not_found": "no such payload, directory or script",
    "payload.unreadable": "the payload exists but cannot be read",
    "payload.storage": "the folder of the controller's payload versions cannot be written",
    "payload.digest_mismatch": "the payload's SHA-256 is not the one that was handed over",
    "payload.digest_malformed": "the digest handed over, or the sidecar file, is not a SHA-256",
    "payload.not_gzip": "the payload is not a gzip file",
    "payload.damaged": "the gzip or tar structure is broken or cut short",
    "payload.trailing_data": "bytes follow the end of the gzip member or of the archive",
    "payload.too_large": "the unpacked payload is over the cap",
    "payload.ratio": "the payload unpacks to suspiciously many times its size",
    "payload.too_many_entries": "the payload has more entries than the cap",
    "payload.unsafe_name": "a member's name is absolute, has '..', a NUL, or is too long or too deep",
    "payload.duplicate_name": "two members have the same name, or one is a file where another needs a folder",
    "payload.unsafe_type": "a member is a link, a device, a FIFO or a sparse file",
    # Who has signed the payload, on a host that asks for that (docs/signatures.md).
    "payload.unsigned": "this host runs signed payloads only, and this one has no signature; nothing was unpacked",
    "payload.signature_invalid": "the signature cannot be read, is for another purpose, or is not this payload's",
    "payload.signer_unknown": "the key that signed is not one that this host allows to sign payloads",
    "payload.signer_expired": "the key that signed is not valid at this time: it has expired, or is not valid yet",
    "payload.signer_revoked": "the key that signed is in the host's list of revoked keys",
    "payload.signers_unreadable": "the host's allowed signers or revoked keys cannot be read, or others can write them",
    "payload.signing": "the payload could not be signed with the key that was named; nothing was sent",
    # The manifest.
    "manifest.missing": "the payload has no manifest.yaml or manifest.yml",
    "manifest.not_yaml": "the manifest is not valid YAML or not UTF-8",
    "manifest.too_large": "the manifest is over the cap, or nested too deeply",
    "manifest.alias": "YAML aliases, anchors, tags or merge keys, which a manifest may not use",
    "manifest.duplicate_key": "the same key twice in one mapping",
    "manifest.unknown_key": "a key that a manifest does not have",
    "manifest.invalid": "a value of the wrong type or outside its range",
    "manifest.version": "a manifest version that this runner does not know",
    "manifest.interpreter": "an interpreter that this runner does not know",
    "manifest.entrypoint": "no entrypoint, an entrypoint outside the payload, or one that is not in it",
    # What the script needs from the host.
    "interpreter.not_found": "the interpreter is not installed on the host (exit status 127)",
    "interpreter.not_executable": "the interpreter or the script cannot be executed (exit status 126)",
    # Executions.
    "execution.id_invalid": "not an execution id: [A-Za-z0-9._-]{1,64}, not starting with '.' or '-'",
    "execution.id_conflict": "this execution id was already used for another payload or input",
    "execution.not_found": "no execution of this id on this host",
    "execution.collected": "the execution's record was collected; how it ended is all that is left",
    "execution.lost": "the supervisor died without a result; how far the script came is not known",
    "execution.elsewhere": "the execution belongs to another machine or container; its state cannot be told from here",
    "execution.set_up_timeout": "the payload could not be unpacked in time; nothing was started",
    "execution.too_large": "the script's arguments or environment are larger than Linux takes; nothing was started",
    "execution.timeout": "the script ran longer than its timeout and was ended",
    "execution.cancelled": "the execution was cancelled and the script was ended",
    "fanout.stopped": "a run on many hosts had ended, or was interrupted, before this host's turn; nothing was started",
    "execution.unkillable": "processes of the script could not be ended, not even by SIGKILL",
    "execution.spool": "the script's output could not be written down completely",
    # The runner on its host.
    "state.unusable": "the state directory cannot be used; nothing was started",
    "state.damaged": "the record of an execution was removed, cannot be read, or is not a regular file",
    "install.unusable": "no directory on this host where the runner can be installed and executed",
    "install.damaged": "files of the installed runner are not as they were installed; nothing was started",
    "install.not_adoptable": "exchanged libraries are recorded neither for root nor on a host with signers",
    "install.adopted": "the owner of an installed runner has exchanged libraries of it, and recorded that",
    "input.invalid": "input, variables or event are not valid JSON, or a file of them cannot be read",
    "usage.invalid": "an option or value that the command does not take",
    "limits.impossible": "a limit that cannot be set on this host; nothing was started",
    "limits.memory": "the script and its processes used more memory than their limit, and were ended",
    "limits.processes": "the script had more processes and threads than its limit",
    "limits.file_size": "a file of the script would have become larger than its limit",
    "containment.unavailable": "the control group that was asked for cannot be made or entered; nothing was started",
    "runner.refused": "the host refused what the runner itself needs: a process, a descriptor, a read, a write",
    # Running as another account of the host.
    "run_as.unknown_user": "the account to run as does not exist on this host",
    "run_as.refused": "this account may not become the one to run as; the message has what sudo or the system said",
    "run_as.no_runner": "the account to run as cannot be given a runner of its own",
    "runner.internal": "a defect in the runner; please report it with the message",
    # The channel between controller and host.
    "channel.protocol": "the other side sent something that is not in the protocol",
    "channel.version": "no protocol version that both sides know",
    "channel.lost": "the connection ended; what happened on the host after that is not known here",
    "channel.mismatch": "the output that arrived is not the output that the result vouches for",
    "execution.overdue": "the host has not told the end in more time than the execution can take",
    # The controller reaching a host.
    "host.unreachable": "no connection to the host",
    "host.paused": "the last calls found no way to the host, and it is left alone for a while",
    "host.key_changed": "the host's key is not the recorded one; nothing was sent",
    "host.key_unknown": "the host's key is not recorded and the policy is strict; nothing was sent",
    "host.auth_failed": "the host refused our authentication",
    "host.login_shell": "the account's login shell prints without end before a command; nothing was started",
    "host.config": "a host, key or option that cannot be used as given",
    "hosts.file": "a hosts file that cannot be used; the message names file, line and key",
    "hosts.not_found": "no hosts file, or no host or group of that name in it",
    "command.timeout": "a raw command ran longer than its timeout and was ended",
    "files.refused": "a file cannot be read or written where it is to be copied from or to; nothing was replaced",
    "files.mismatch": "the copy of a file is not what the file is; nothing was replaced",
    "deploy.unsupported": "the host's system or architecture has no runner",
    "deploy.failed": "the runner could not be put on the host or does not start there",
    "deploy.digest_mismatch": "the file that arrived on the host is not the file that was sent",
    "deploy.no_version": "no such version of the runner is on the host or here",
    "deploy.update_refused": "the host's runners cannot be used, and the update policy keeps jobs from installing one",
    "deploy.unhealthy": "a host was not well with the new runner of a roll-out",
    "deploy.unreadable": "the installed runners of a host cannot be listed",
    "install.unknown": "no build that this cronium knows; nothing says how its files should be",
    "uninstall.refused": "executions run or their results were not fetched; nothing was removed",
    "binary.missing": "there is no runner binary to deploy",
    "binary.unsafe": "another user could have written the runner binary; nothing was sent",
    "binary.no_digest": "the runner binary has no .sha256 beside it; nothing was sent",
    "binary.unsigned": "signers are named, and the runner binary has no signature beside it; nothing was sent",
    "binary.signature_invalid": "the runner binary's signature cannot be read, or is not that file's; nothing was sent",
    "binary.signer_untrusted": "the key that signed the runner binary is unknown, expired or revoked; nothing was sent",
    "binary.signers_unreadable": "the file that says who signs runner binaries cannot be used; nothing was sent",
    "output.unwritable": "standard output cannot be written, as on a full disk; what was done on hosts is done",
    "controller.internal": "a defect in cronium; please report it with the message",
    "store.unusable": "the controller's database cannot be used; nothing was submitted",
    # The runtime API, which jobs in API mode talk to.
    "api.config": "the runtime API's endpoint or token cannot be used as given; nothing was started",
    "api.key_unusable": "the key that tokens are signed with cannot be used",
    "api.address_unusable": "the runtime API cannot listen there",
    "api.tunnel_refused": "the host lets nothing on it reach the runtime API here; nothing was started",
    "api.tunnel_account": "a job that runs as another account cannot use the tunnel's socket; nothing was started",
    "api.tools_invalid": "the tools file, or a tool's settings, cannot be used",
}


def told(printed: str) -> tuple[str, str] | None:
    """Code and message of the last error that a runner told on its standard error; None when it told none."""
    import re  # of a controller only: both programs import this module when they start

    sentence = re.compile(r"cronium-runner: (?P<message>.+) \[(?P<code>[a-z_.]+)\]")
    found = [match for line in printed.splitlines() if (match := sentence.fullmatch(line.strip()))]
    known = [match for match in found if match["code"] in CODES]
    return (known[-1]["code"], known[-1]["message"]) if known else None
