"""Who is timed: this model, others, and the machine itself."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

OURS, FLOOR = "jaxllama", "floor"
EXTRA = "pip install 'jaxllama[parity]'"


@dataclass(frozen=True)
class Variant:
    """Something that is timed, in a process of its own.

    Attributes:
        name: as options and results have it.
        about: what runs, for readers.
        module: of `jaxllama.bench.peers`, whose `open_peer` is called with the name.
        needs: packages that have to be there, with the command that installs them.
    """

    name: str
    about: str
    module: str
    needs: tuple[tuple[str, str], ...] = ()

    def missing(self) -> str | None:
        """Say which package is not installed; nothing is imported."""
        lacks = [(p, how) for p, how in self.needs if importlib.util.find_spec(p) is None]
        if not lacks:
            return None
        names = ", ".join(package for package, _ in lacks)
        return f"{names}; {lacks[0][1]}"


_TORCH = (("torch", EXTRA), ("transformers", EXTRA))
VARIANTS = {
    one.name: one
    for one in (
        Variant(OURS, "jaxllama.generate, as a user calls it", "ours"),
        Variant(
            "eager", "transformers, attention 'eager', greedy loop", "transformers_llama", _TORCH
        ),
        Variant(
            "sdpa", "transformers, attention 'sdpa', greedy loop", "transformers_llama", _TORCH
        ),
        Variant(
            "compiled",
            "transformers, 'sdpa', static cache, steps by torch.compile (prefill is not compiled, "
            "as in its generate)",
            "transformers_llama",
            _TORCH,
        ),
        Variant(
            "tunix",
            "Tunix's Llama 3 in Flax NNX, prefill and greedy loop compiled as its sampler has them",
            "tunix_llama",
            (("tunix", "pip install --no-deps google-tunix"),),
        ),
        Variant(FLOOR, "what this machine reads and multiplies at best", "machine"),
    )
}
# Those of PyTorch, of which the fastest is `best_torch`.
TORCH = ("eager", "sdpa", "compiled")
