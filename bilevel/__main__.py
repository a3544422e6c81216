"""``python -m bilevel`` says which version this is, and where the command line is."""

import sys
from importlib.metadata import version

TEXT = f"""\
bilevel {version("bilevel")}
This is the library: import bilevel as bl.
The command line comes with a checkout of the repository: python -m experiments.run --help
"""

if __name__ == "__main__":
    sys.stdout.write(TEXT)
