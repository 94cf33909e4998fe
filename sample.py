"""`python sample.py …` is `tinydiffusion sample …`."""

import sys

from tinydiffusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
