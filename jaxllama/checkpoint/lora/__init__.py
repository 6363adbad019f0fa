"""LoRA adapters as PEFT saves them, merged into the weights they were trained on."""

from jaxllama.checkpoint.lora.merge import merge_lora

__all__ = ["merge_lora"]
