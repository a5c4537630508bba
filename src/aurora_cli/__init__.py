"""The entry point of the ``aurora`` command, apart from the package: so the package knows, as it is imported, that the
command imports it."""

import sys

running = False  # whether this process is the command, which registers the method with peft only when it needs it


def main() -> int:
    """Run the command line; returns the exit status."""
    global running
    running = True
    from aurora_petl.interrupts import at_once

    with at_once():
        from aurora_petl.cli import main as run
    return run(sys.argv[1:])
