"""`python -m tinydiffusion`, the same as the command `tinydiffusion`."""

import sys

from tinydiffusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
