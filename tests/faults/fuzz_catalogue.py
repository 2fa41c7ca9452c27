"""Every fuzz target by its name, with inputs to begin from."""

import logging
import random
import resource
import sys
import time
from typing import Final

import payload_bytes as pb
from faults import fuzz_agent, fuzz_channel, fuzz_helpers, fuzz_targets, fuzz_whole
from faults.fuzz_targets import Target

TARGETS: Final[dict[str, Target]] = {
    "extraction": fuzz_targets.extraction,
    "manifest": fuzz_targets.manifests,
    "frames": fuzz_targets.frame_stream,
    "agent": fuzz_agent.agent_frames,
    "channel": fuzz_channel.channel_frames,
    "helper requests": fuzz_helpers.helper_requests,
    "helper grammar": fuzz_helpers.helper_grammar,
    "exact JSON": fuzz_targets.exact_json,
    "masking": fuzz_targets.masking,
    "guardian": fuzz_targets.guardian_words,
    "results": fuzz_targets.results,
    "submissions": fuzz_targets.submissions,
    "whole submissions": fuzz_whole.whole_submissions,
    "command words": fuzz_targets.command_words,
}

LONGEST_INPUT: Final = 1024
"""Bytes an input is made from: enough for every grammar here, short enough to be quick."""


def seeds(name: str) -> list[bytes]:
    """Inputs for an engine that changes inputs: some that go deep into every grammar, and real ones for raw bytes."""
    chosen = random.Random(name)
    made = [chosen.randbytes(chosen.choice((20, 100, 400, LONGEST_INPUT))) for _ in range(200)]
    if name == "manifest":
        made += [b"\x07" + example for example in fuzz_targets.EXAMPLES]
    if name == "extraction":
        made += [b"\x0f" + pb.make_payload({"manifest.yaml": b"x", "a/b": b"y"})]
    if name == "exact JSON":
        made += [b'\x02{"a": [1.10, "\\ud83d\\ude00", null]}']
    return made


def main(name: str, cases: int) -> None:
    """Runs so many random cases of a target without an engine, and prints what came of them and the peak memory."""
    logging.disable(logging.CRITICAL)
    chosen, began = random.Random(name), time.monotonic()
    for _ in range(cases):
        TARGETS[name](chosen.randbytes(chosen.choice((20, 100, 400, LONGEST_INPUT, LONGEST_INPUT))))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{cases:,} cases, 0 failures, {time.monotonic() - began:.0f} s, resident memory up to {resident} MiB")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
