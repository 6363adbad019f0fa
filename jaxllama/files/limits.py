"""How much of a stranger's file is looked at: every limit, and why it stands where it does.

What is beyond one is refused before it is read, in words that say the limit. Each leaves the
largest honest file known several times its room.
"""

from __future__ import annotations

_MEGABYTE = 1 << 20

# Bytes. config.json of Llama 3 has 1 kB; a dictionary of labels in one may have some hundred.
CONFIG_BYTES = 4 * _MEGABYTE
# Bytes of an index of shards, a manifest, an Orbax tree: 405B parameters have 0.2 MB.
INDEX_BYTES = 64 * _MEGABYTE
# Bytes of any file of a tokenizer. Vocabularies of 260,000 tokens with their merges have 33 MB.
TOKENIZER_BYTES = 256 * _MEGABYTE
# Bytes of a safetensors header or a PyTorch pickle: 405B parameters have 0.2 MB.
HEADER_BYTES = 16 * _MEGABYTE
# Bytes of the directory of a zip archive of PyTorch's: 405B parameters have 0.1 MB.
ZIP_DIRECTORY_BYTES = 16 * _MEGABYTE
# Bytes of a GGUF file before its tensors, the tokenizer among them.
METADATA_BYTES = TOKENIZER_BYTES
# Bytes of a result of parity; some thousand taps have 5 MB. Parsed, it takes five times its length.
RESULT_BYTES = 128 * _MEGABYTE
# Entries of one: a row of a tap has 30, and 405B parameters 160,000 rows at most.
RESULT_ENTRIES = 5_000_000

# Bytes of a file of texts to run a model on; no run takes a hundredth of it.
TEXT_BYTES = 64 * _MEGABYTE
# Of a file of texts to train on: its tokens are in memory, four bytes each.
TRAINING_BYTES = 4096 * _MEGABYTE
# Bytes of a file of masks, unpacked: one of 32,768 tokens has as many.
MASK_BYTES = 1024 * _MEGABYTE
# Traces of a capture: one of all scenarios, modes and dtypes, with its variants, has 80.
TRACES = 500

# Levels. No file of a checkpoint has ten; Python's own limit is met at some hundred.
JSON_DEPTH = 64
# Commas and opening brackets of one JSON file, which its entries are no more than: a tokenizer.json
# of 260,000 tokens has 1.8 million.
JSON_ENTRIES = 2_500_000
# Tensors of a checkpoint: 405B parameters have 1,137, quantised ones four for each.
TENSORS = 20_000
# Entries of a zip archive of PyTorch's: one for each tensor, and some more.
ZIP_ENTRIES = TENSORS + 1_000
# Characters of a tensor's name: the longest of a wrapped adapter has 150.
NAME_CHARACTERS = 500
# Files that a checkpoint's weights are split into: 405B parameters have 191.
SHARDS = 2_000
# Keys of a GGUF file; those of a tokenizer and a model are 60.
GGUF_KEYS = 10_000
# Items of all arrays of a GGUF file: tokens, types, scores and merges of 260,000 are 1.3 million.
GGUF_ITEMS = 4_000_000
# Factors of rotary frequencies in a GGUF file, half of head_dim, which is not known yet.
GGUF_ROPE_FACTORS = 1 << 16
# Tokens of a vocabulary.
TOKENS = 2_000_000
# How many times longer than it was a text may become before or after it is tokens.
TEXT_TIMES = 10_000
# A dimension of a tensor: sizes are 32-bit integers on the device.
DIMENSION = 2**31 - 1
# How often larger an array may be than what its files hold, packed, and from how many bytes on
# that is asked.
UNPACKED_TIMES, UNPACKED_BYTES = 1000, 64 * _MEGABYTE

# Characters of a chat template: the longest published ones have 20,000.
TEMPLATE_CHARACTERS = 1_000_000
# Characters that a template may make of a conversation: 4 million tokens.
RENDERED_CHARACTERS = 16_000_000
# What the process of the sandbox may use: honest templates take milliseconds and 40 MB.
SANDBOX_SECONDS = 10
SANDBOX_BYTES = 768 * _MEGABYTE
# Of the wall's clock, for machines that do much else.
SANDBOX_WAIT_SECONDS = 60
# What the process of tokenizers may use, to read one or for a short text: one of 260,000 tokens
# takes 2 s and 260 MB.
TOKENIZER_SECONDS = 10
TOKENIZER_MEMORY = 1024 * _MEGABYTE
# Of a long text, besides: characters a second (honest ones go through ten times as many), and bytes
# for each character.
TOKENIZER_SPEED, TOKENIZER_TIMES = 50_000, 400
