"""Whether two results say the same: of `parity run --json`, or of `parity selftest --json`.

Versions, times, commands and the machine are left out; every verdict and figure is compared.

    python scripts/same_results.py before.json after.json

Exit codes: 0 the same, 1 not, 2 no such files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LEFT_OUT = {"timing", "environment", "command", "seconds", "schema_version"}


def differences(before: Any, after: Any, place: str = "") -> Iterator[str]:
    """Yield the places where two JSON documents differ, with both values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted((before.keys() | after.keys()) - LEFT_OUT):
            if key not in before or key not in after:
                yield f"{place}.{key}: only {'before' if key in before else 'after'}"
            else:
                yield from differences(before[key], after[key], f"{place}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for i, pair in enumerate(zip(before, after, strict=True)):
            yield from differences(*pair, f"{place}[{i}]")
    elif before != after:
        yield f"{place}: {str(before)[:80]} -> {str(after)[:80]}"


def main() -> int:
    """Print what differs."""
    try:
        before, after = (json.loads(Path(path).read_text()) for path in sys.argv[1:3])
    except (OSError, ValueError) as error:
        print(f"same_results: {error}", file=sys.stderr)
        return 2
    found = list(differences(before, after))
    for line in found[:20]:
        print(line.removeprefix("."))
    print(f"{len(found)} differences" if found else "the same")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
