"""Time the model beside others: the same as `jaxllama bench`."""

import sys

from jaxllama.__main__ import script

if __name__ == "__main__":
    script(["bench", *sys.argv[1:]])
