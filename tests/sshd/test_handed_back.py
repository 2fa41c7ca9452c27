"""A secret that a script hands back is exact for the run that asked for it, and hidden from whoever looks later."""

import json

from remote_host import RemoteHost

_SECRET = "correct-horse-battery"
_SCRIPT = """token=$(cronium.getVariable TOKEN)
cronium.output token "$token"
cronium.output rest plain
cronium.setVariable KEPT "a $token b"
"""


def test_later_commands_hide_a_secret_that_was_handed_back(shared: RemoteHost) -> None:
    words = ["--secret", "TOKEN", "--execution-id", "handed-back", shared.script(_SCRIPT, "handed/script.sh")]
    own = shared.run_json(*words, env={"TOKEN": _SECRET})
    assert own["output"] == {"token": _SECRET, "rest": "plain"}
    assert own["variables"]["KEPT"] == f"a {_SECRET} b"
    assert sorted(own["masked"]) == ["output.token", "variables.KEPT"]
    for command in ("wait", "status", "attach"):
        told = json.loads(shared.cronium(command, "--json", "handed-back").stdout)
        result = told["result"] if command == "status" else told
        assert (command, result["output"]) == (command, {"token": "***", "rest": "plain"})
        assert result["variables"]["KEPT"] == "***"
    for words_of in (
        ["history", "--json"],
        ["status", "handed-back"],
        ["ps", "--json", "--host", shared.server.target],
    ):
        done = shared.cronium(*words_of)
        assert done.returncode == 0, done
        assert _SECRET.encode() not in done.stdout + done.stderr, words_of
    for path in shared.remembered.rglob("*"):
        assert not path.is_file() or _SECRET.encode() not in path.read_bytes(), path
