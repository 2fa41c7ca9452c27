"""One fuzz target under atheris, as a process of its own: `python atheris_targets.py TARGET [libFuzzer options]`.

Only cronium_runner and the controller's reader of agent frames are instrumented: their branches are what the engine
looks for. The targets are those of hypothesis. A case that fails is kept by libFuzzer (-artifact_prefix=…), and ends
the process with a status other than 0.
"""

import sys
from pathlib import Path

import atheris  # type: ignore[import-untyped]

TESTS = Path(__file__).resolve().parents[1]
READER = [f"cronium_controller.{name}" for name in ("channel", "execution", "inbox", "patience", "received")]


def main() -> None:
    """Fuzzes until libFuzzer ends the process."""
    name, *options = sys.argv[1:]
    sys.path.insert(0, str(TESTS))
    # Everything of the runner has to be loaded here: what is loaded later is not seen by the engine.
    with atheris.instrument_imports(include=["cronium_runner", *READER]):
        import cronium_runner.interpreter
        import cronium_runner.prepare
        import cronium_runner.strict_yaml  # noqa: F401
        from faults.fuzz_catalogue import TARGETS

    atheris.Setup([sys.argv[0], *options], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
