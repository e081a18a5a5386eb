"""``python -m gloss_kernels`` is ``gloss-kernels info``; with further words it is ``gloss-kernels`` itself."""

import sys

from gloss_kernels.cli.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["info"]))
