"""Text to token ids and back: HF's tokenizer.json, Meta's tokenizer.model, chat templates."""

from jaxllama.tokenizer.apart import write_model_file
from jaxllama.tokenizer.bytes import byte_tokenizer_json
from jaxllama.tokenizer.model_file import LLAMA3_SPLIT
from jaxllama.tokenizer.tokenizer import Tokenizer

__all__ = ["LLAMA3_SPLIT", "Tokenizer", "byte_tokenizer_json", "write_model_file"]
