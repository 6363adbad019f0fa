"""LoRA adapters as PEFT saves them: merged into the weights they were trained on, and written."""

from jaxllama.checkpoint.lora.merge import merge_lora
from jaxllama.checkpoint.lora.write import save_lora

__all__ = ["merge_lora", "save_lora"]
