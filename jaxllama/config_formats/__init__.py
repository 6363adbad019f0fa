"""The published spellings of one model config, one file a format: HF, Meta, GGUF."""
