"""The model as one of lm-evaluation-harness: importing this registers it there as `jaxllama`.

The harness knows models by what has been imported, so its command is reached through this package:
`python -m jaxllama.lm_eval run --model jaxllama --model_args pretrained=DIR --tasks TASK`.
"""

from __future__ import annotations

try:
    import lm_eval.models  # noqa: F401 (first: to a registry that is not empty it adds none)
    from lm_eval.api.registry import model_registry
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
    remedy = "pip install 'jaxllama[eval]'"
    raise ModuleNotFoundError(
        f"lm-evaluation-harness is not installed: {remedy}", name=error.name
    ) from None

NAME = "jaxllama"

if NAME not in model_registry:
    model_registry.register(NAME, target="jaxllama.lm_eval.model:HarnessLlama")
