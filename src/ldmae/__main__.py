"""`python -m ldmae`, as launchers start it."""

import sys


def main() -> None:
    """Runs the command line."""
    from ldmae.cli import app
    from ldmae.terminal import run_app

    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
