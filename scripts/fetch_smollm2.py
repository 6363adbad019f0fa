"""Fetch SmolLM2-135M-Instruct once, and print the Hugging Face directory it was made into."""

import sys

from jaxllama.checkpoint import fetch_smollm2
from jaxllama.errors import JaxLlamaError

if __name__ == "__main__":
    try:
        print(fetch_smollm2())
    except JaxLlamaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
