"""`python -m tests.fuzz TARGET [libFuzzer's options and folders]`: until it is told to end, or something is found."""

import sys

import atheris

with atheris.instrument_imports(include=["server", "chat_templates"]):
    from tests.fuzz.targets import TARGETS, run


def main() -> None:
    """Ends the process."""
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in TARGETS:
        sys.exit(f"usage: python -m tests.fuzz {{{','.join(TARGETS)}}} [-max_total_time=SECONDS] [FOLDER ...]")
    atheris.Setup(sys.argv, lambda data: run(TARGETS[name], data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
