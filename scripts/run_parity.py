"""Compare JAX with PyTorch: the same as `parity run`."""

import sys

from parity.__main__ import script

if __name__ == "__main__":
    sys.argv.insert(1, "run")
    script()
