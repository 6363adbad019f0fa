"""What a model's quality is measured on: lines of a file, as the tokenizer's ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxllama.checkpoint import Checkpoint
from jaxllama.errors import InputError, argument, join_problems
from jaxllama.files.texts import read_lines, read_utf8


@dataclass(frozen=True)
class QualityExample:
    """A line of the file.

    Attributes:
        line: its number, from 1.
        text: what is foretold; of a prompt's line the reference.
        prompt: what stands before it and is not foretold; None on a line of text alone.
    """

    line: int
    text: str
    prompt: str | None = None


@dataclass(frozen=True)
class EncodedExample:
    """A line as ids.

    Attributes:
        example: the line.
        prompt: ids of the prompt; none without one.
        text: ids of what is foretold; without a prompt the first has nothing before it and is not.
    """

    example: QualityExample
    prompt: tuple[int, ...]
    text: tuple[int, ...]

    @property
    def foretold(self) -> int:
        """How many tokens the perplexity is over."""
        return len(self.text) - (not self.prompt)


def read_examples(path: Path) -> list[QualityExample]:
    """Return the lines of a file: JSON objects with a text, or with a prompt and a reference.

    Raises:
        InputError: no such file, empty, not UTF-8, too long, or broken lines, all with numbers.
    """
    lines = read_lines(path, read_utf8(path), _fields_of)
    return [QualityExample(number, text, prompt) for number, (text, prompt) in lines]


def _fields_of(value: Any) -> tuple[str, str | None]:
    fields = value if isinstance(value, dict) else {}
    held = {name: said for name, said in fields.items() if isinstance(said, str) and said.strip()}
    named = {"text", "prompt", "reference"} & set(fields)
    if named == {"text"} and "text" in held:
        return held["text"], None
    if named == {"prompt", "reference"} and named <= set(held):
        return held["reference"], held["prompt"]
    raise InputError("an object with a text, or with a prompt and a reference, that are not empty")


def encode_examples(
    examples: Sequence[QualityExample], checkpoint: Checkpoint, length: int, source: str
) -> list[EncodedExample]:
    """Return lines as ids of the checkpoint's tokenizer.

    A reference is encoded by itself, without the tokens that the tokenizer puts before a text, so
    that the prompt's ids are those that the model writes after.

    Args:
        examples: at least one.
        checkpoint: whose tokenizer is used.
        length: most tokens that a model is given at once.
        source: what to call the lines.

    Raises:
        InputError: a line is too short, or too long with its prompt, an id is outside the
            vocabulary, or there is no tokenizer; all lines at once.
    """
    if checkpoint.tokenizer_loader is None:
        raise InputError(f"{checkpoint.label}: has no tokenizer to read texts by; add its files")
    tokenizer = checkpoint.tokenizer()
    vocabulary, found, problems = checkpoint.config.vocab_size, [], list[str]()
    for one in examples:
        prompt = () if one.prompt is None else tuple(tokenizer.encode(one.prompt))
        text = tuple(tokenizer.encode(one.text, bos=None if one.prompt is None else False))
        made = EncodedExample(one, prompt, text)
        needed = len(text) - made.foretold + 1
        strange = [i for i in (*prompt, *text) if not 0 <= i < vocabulary]
        if made.foretold < 1:
            problems.append(
                f"line {one.line} has {len(text)} token{'s' * (len(text) != 1)}, expected at least "
                f"{needed}; give a longer text"
            )
        elif prompt and len(prompt) + len(text) > length:
            problems.append(
                f"line {one.line}: prompt and reference have {len(prompt) + len(text)} tokens, at "
                f"most {length} are given at once; give a larger {argument('length')}"
            )
        elif strange:
            problems.append(
                f"line {one.line} has token id {strange[0]}, outside the vocabulary of "
                f"{vocabulary}; use the checkpoint's own tokenizer"
            )
        found.append(made)
    if problems:
        raise InputError(join_problems(source, problems))
    return found
