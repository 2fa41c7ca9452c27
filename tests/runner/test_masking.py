"""Secrets in the output: whole, split, encoded; and innocent text left alone."""

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cronium_runner.masking import Masker
from runner_process import Host

SECRET = "correct-horse+battery/staple"


def masked(secrets: list[object], *pieces: bytes) -> bytes:
    masker = Masker(secrets)
    return b"".join([*map(masker.feed, pieces), masker.flush()])


@pytest.mark.parametrize("cut", range(1, len(SECRET)))
def test_a_secret_split_across_two_reads_is_masked(cut: int) -> None:
    text = f"before {SECRET} after".encode()
    assert masked([SECRET], text[: 7 + cut], text[7 + cut :]) == b"before *** after"


def test_byte_by_byte_is_masked() -> None:
    text = f"<{SECRET}><{SECRET}>".encode()
    assert masked([SECRET], *(bytes([byte]) for byte in text)) == b"<***><***>"


@pytest.mark.parametrize("before", ["", "a", "ab", "user:"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_of_a_text_that_holds_it_does_not_give_it_away(before: str, encode: object) -> None:
    encoded = encode(f"{before}{SECRET}@host".encode())  # type: ignore[operator]
    shown = masked([SECRET], encoded)
    assert b"***" in shown
    assert len(shown) < len(encoded) - 30


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_base64_in_lines_does_not_give_it_away(end: bytes) -> None:
    for before in range(30, 60):
        encoded = base64.b64encode(f"{'x' * before}{SECRET}@host".encode())
        lines = end.join(encoded[at : at + 64] for at in range(0, len(encoded), 64))
        shown = masked([SECRET], lines)
        assert b"***" in shown
        assert len(shown) < len(lines) - 20


def test_both_alphabets_of_base64_are_masked() -> None:
    secret = "???>>>~~~???>>>~~~"
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        assert masked([secret], encode(secret.encode())) == b"***"


def test_json_and_each_line_of_a_multi_line_secret_are_masked() -> None:
    key = '-----BEGIN KEY-----\nabc"def\\ghi\nlast line here\n'
    shown = masked([key], json.dumps({"key": 'abc"def\\ghi'}).encode(), b"\nlast line here\n")
    assert shown == b'{"key": "***"}\n***\n'


def test_the_longer_of_two_secrets_wins_and_short_ones_are_left() -> None:
    assert masked(["secret", "secret-and-more", "abc"], b"secret-and-", b"more secret abc") == b"*** *** abc"


def test_strings_within_a_secret_that_is_an_object_are_masked() -> None:
    assert masked([{"user": "somebody", "keys": ["first-key", "x"]}], b"first-key of somebody x") == b"*** of *** x"


def test_what_is_held_back_when_a_secret_changes_is_not_let_go() -> None:
    old = Masker(["hunter2-secret"])
    assert old.feed(b"hunter2") == b""
    new = Masker(["hunter2-secret", "another-one"], held=old.held)
    assert new.feed(b"-secret\n") == b"***\n"


def test_what_is_held_back_is_only_what_could_go_on() -> None:
    masker = Masker([SECRET])
    assert masker.feed(b"prompt> ") == b"prompt> "
    assert masker.feed(b"correct-") == b""
    assert masker.feed(b"ion") == b"correct-ion"


@settings(max_examples=300)
@given(
    secrets=st.lists(st.binary(min_size=6, max_size=12).map(bytes.hex), min_size=1, max_size=4),
    noise=st.lists(st.binary(max_size=20), max_size=6),
    data=st.data(),
)
def test_no_split_lets_a_secret_through(secrets: list[str], noise: list[bytes], data: st.DataObject) -> None:
    text = b"".join(b"%s%s" % (secrets[index % len(secrets)].encode(), piece) for index, piece in enumerate(noise))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    shown = masked(list(secrets), *pieces)
    assert shown == masked(list(secrets), text)
    assert not any(secret.encode() in shown for secret in secrets)


def test_secrets_of_a_job_are_masked_in_both_streams_also_a_new_value(host: Host) -> None:
    script = host.script(
        "cronium.getVariable PASSWORD; cronium.getVariable PASSWORD >&2\n"
        "cronium.setVariable PASSWORD other-secret-word\n"
        "cronium.getVariable PASSWORD; echo correct-horse-battery\n",
        "s.sh",
    )
    result = host.run_json(script, "--secret", "PASSWORD", env={"PASSWORD": "correct-horse-battery"})
    assert result["stdout"]["text"] == "***\n***\n***\n"
    assert result["stderr"]["text"] == "***\n"
    assert result["stdout"]["bytes"] == 12
    assert result["variables"] == {"PASSWORD": "***"}


def test_values_of_telling_names_are_masked_wherever_they_came_from(host: Host) -> None:
    """Variables handed over, the manifest's and the login's environment, and what the script sets itself."""
    folder = host.folder / "job"
    folder.mkdir()
    (folder / "manifest.yaml").write_text(
        "version: v1\nentrypoint: script.sh\nenvironment: {STORE_PASSWORD_RO: from-the-manifest, PLAIN: just-a-word}\n"
    )
    (folder / "script.sh").write_text(
        "#!/bin/bash\n"
        "echo $STORE_PASSWORD_RO $LOGIN_TOKEN $PLAIN; cronium.getVariable db_password; cronium.getVariable REGION\n"
        "fresh=made-by-the-script\n"
        "cronium.setVariable NEW_API_KEY $fresh; echo $fresh $(printf %s $fresh | base64) >&2\n"
    )
    result = host.run_json(
        folder,
        "--var",
        "db_password=from-the-operator",
        "--var",
        "REGION=eu-west",
        env={"LOGIN_TOKEN": "from-the-login"},
    )
    assert result["stdout"]["text"] == "*** *** just-a-word\n***\neu-west\n"
    assert result["stderr"]["text"] == "*** ***\n"
    assert result["variables"] == {"NEW_API_KEY": "made-by-the-script"}, "what is handed back is the job's to decide"


def test_which_names_are_masked_can_be_chosen(host: Host) -> None:
    script = host.script("cronium.getVariable MY_TOKEN; cronium.getVariable CARD_NUMBER\n")
    words = ["--var", "MY_TOKEN=token-value", "--var", "CARD_NUMBER=1234-5678"]
    assert host.run_json(script, *words)["stdout"]["text"] == "***\n1234-5678\n"
    assert host.run_json(script, *words, "--mask", "card_*")["stdout"]["text"] == "token-value\n***\n"
    assert host.run_json(script, *words, "--mask", "")["stdout"]["text"] == "token-value\n1234-5678\n"
    both = host.run_json(script, *words, "--mask", "CARD_*", "--mask", "*_TOKEN")
    assert both["stdout"]["text"] == "***\n***\n"


def test_a_value_too_short_for_a_mask_is_told(host: Host) -> None:
    done = host.run("run", host.script("cronium.getVariable PIN\n"), "--secret", "PIN", env={"PIN": "12345"})
    assert done.stdout == b"12345\n"
    assert done.stderr.decode() == (
        "cronium-runner: warning: not masked in the output, because a value has fewer than 6 characters: PIN\n"
    )
    assert masked(["ééééé"], "ééééé".encode()) == "ééééé".encode(), "characters are counted, not bytes"


def test_the_local_report_masks_as_well(host: Host) -> None:
    script = host.script("cronium.setVariable NEW_TOKEN abcdefgh\n")
    told = host.run("test", script, "--var", "OLD_TOKEN=ijklmnop").stderr.decode()
    assert "abcdefgh" not in told
    assert "ijklmnop" not in told
    assert told.count("_TOKEN = ***") == 2


def test_a_huge_value_is_looked_for_in_pieces() -> None:
    value = "".join(f"{number:06d}" for number in range(50_000))
    masker = Masker([value])
    shown = masker.feed(f"<{value[:200_000]}".encode())
    assert len(masker.held) < 64 * 1024
    shown += masker.feed(f"{value[200_000:]}>".encode())
    assert set((shown + masker.flush()).decode()) <= set("<*>")


def test_a_secret_of_short_lines_is_masked_as_a_whole() -> None:
    """Found by fuzzing: no line of it was long enough for a mask of its own, so nothing of it was masked."""
    assert masked(["12-34\n56-78\n"], b"<12-34\n56-78\n>") == b"<***\n>"
    assert masked(["ab\nlonger line"], b"ab\nlonger line; longer line, ab") == b"***; ***, ab"
    assert masked(["12-34\n56-78"], json.dumps("12-34\n56-78").encode()) == b'"***"'
