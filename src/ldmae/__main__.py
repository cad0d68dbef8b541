"""`python -m ldmae`, as launchers start it."""

import sys


def main() -> None:
    """Runs the command line."""
    from ldmae.cli.main import app
    from ldmae.cli.output import run_app

    sys.exit(run_app(app))


if __name__ == "__main__":
    main()
