"""Convert a checkpoint: the same as `jaxllama convert`."""

import sys

from jaxllama.cli import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
