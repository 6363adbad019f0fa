"""Convert a checkpoint: the same as `jaxllama convert`."""

import sys

from jaxllama.__main__ import script

if __name__ == "__main__":
    script(["convert", *sys.argv[1:]])
