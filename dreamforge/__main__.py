"""The command `dreamforge`, also as `python -m dreamforge`."""

import sys

from dreamforge.shadowing import find_shadowed_package


def main() -> int:
    """Run one command, unless another distribution shadows a package of Dream Forge."""
    reason = find_shadowed_package()
    if reason is not None:
        sys.stderr.write(f"dreamforge: {reason}\n")
        return 1
    from dreamforge.cli.main import main as command  # noqa: PLC0415 - it imports the packages that may be shadowed

    return command()


if __name__ == "__main__":
    sys.exit(main())
