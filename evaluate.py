"""`python evaluate.py …` is `tinydiffusion evaluate …`."""

import sys

from tinydiffusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
