"""`parity lint -`: a mask on standard input, told by its first bytes."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch

from jaxllama.errors import InputError
from parity.lint.samples import LEFT_PADDED, tril

SEEN = (tril()[None] & LEFT_PADDED[:, None, :])[:, None]


def saved(save, *arrays, **named) -> bytes:
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


CONTENT = {
    "npy": saved(np.save, SEEN),
    "npz": saved(np.savez, mask=SEEN, attention_mask=LEFT_PADDED),
    "pt": saved(lambda file: torch.save(torch.from_numpy(SEEN), file)),
    "list": b"\n[[1, 0], [1, 1]]\n",
}


@pytest.mark.parametrize("kind", CONTENT)
def test_a_mask_is_read(run_lint, kind):
    result = run_lint("-", "--empty-row", "zero", "--lengths", "[5, 5]", stdin=CONTENT[kind])
    if kind == "list":
        assert isinstance(result.exception, InputError)  # lengths of other rows
        result = run_lint("-", stdin=CONTENT[kind])
        assert result.output.startswith("clean: ")
    elif kind == "npz":
        assert "both valid and lengths" in str(result.exception)
    else:
        assert "M07" in result.output, result.exception  # what is hidden is said to be real


def test_what_lies_beside_it_is_read_too(run_lint):
    result = run_lint("-", "--empty-row", "zero", stdin=CONTENT["npz"])
    assert (result.exit_code, result.output[:6]) == (0, "clean:")
    result = run_lint("--", "-:attention_mask", stdin=CONTENT["npz"])
    assert "2 x 5 bool" in result.output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "standard input: empty; fetch it again: expected what"),
        (b"<html>", "standard input: a web page"),
        (CONTENT["npy"][:-9], "standard input: not a readable .npy"),
        (CONTENT["npz"][:200], "standard input: not a readable .npz"),
        (b"[[1, 0], [1]]", "rows of unequal length|not a list of lists"),
    ],
)
def test_what_is_no_mask_is_refused(run_lint, content, said):
    result = run_lint("-", stdin=content)
    assert isinstance(result.exception, InputError), result.output
    assert re.search(said, str(result.exception)), str(result.exception)


def test_it_is_read_once(run_lint):
    result = run_lint("-", "--valid", "-", stdin=CONTENT["npy"])
    assert "can be read once" in str(result.exception)


def test_a_list_is_typed_in_place(run_lint):
    result = run_lint("[[1, 0], [1, 1]]")
    assert result.output.startswith("clean: ")
    assert run_lint("[[1, 1], [1, 1]]").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--lengths", "[3, 5]", "--padding", "left"), 0, "valid  --vvv"),
        (("--lengths", "[3, 5]"), 1, "valid  vvv--"),
        (("--lengths", "[3, 5]", "--padding", "middle"), 1, ""),
    ],
)
def test_lengths_on_the_command_line(run_lint, arguments, code, said):
    result = run_lint("-", "--empty-row", "zero", *arguments, stdin=CONTENT["npy"])
    assert (result.exit_code, said in result.output) == (code, True)
