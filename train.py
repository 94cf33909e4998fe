"""`python train.py …` is `tinydiffusion train …`."""

import sys

from tinydiffusion.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
