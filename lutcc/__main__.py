"""``python -m lutcc``: the command line, where the script ``lutcc`` is not on the path."""

import sys

from lutcc.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
