"""Runs the validators, on a stack of its own unless told where a service is. `make e2e-m4` runs it."""

import argparse
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from dreamforge.demo.stack import DemoStack, StackError, exit_on_signals

VALIDATORS = ("validate_m4.py", "validate_m5.py")


def main() -> int:
    """Run them all; 0 only if every check of each went well."""
    parser = argparse.ArgumentParser(prog="make e2e-m4", description=__doc__)
    parser.add_argument("--base", default="", help="where a service is; else one is started, and stopped again")
    base = parser.parse_args().base
    exit_on_signals()
    try:
        if base:
            return validate(base)
        with tempfile.TemporaryDirectory(prefix="dreamforge-") as home, DemoStack(Path(home)) as stack:
            print(f"A stack of its own runs at {stack.base_url}.", flush=True)  # noqa: T201  # for whoever waits
            return validate(stack.base_url)
    except StackError as error:
        print(error, file=sys.stderr)  # noqa: T201  # the command's answer
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def validate(base: str) -> int:
    """Run each validator against a service, also after one that failed."""
    folder = Path(__file__).resolve().parent
    codes = []
    for name in VALIDATORS:
        print(f"\n{name}", flush=True)  # noqa: T201  # its report follows
        codes.append(subprocess.run([sys.executable, folder / name, "--base", base], check=False).returncode)
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
