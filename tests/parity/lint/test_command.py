"""`parity lint` and `parity explain`: files in, text or JSON out, one clear line for bad input."""

import json

import ml_dtypes
import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from jaxllama.errors import InputError
from jaxllama.files import limits
from parity.commands.explain import explain_command
from parity.commands.lint import lint_command
from parity.lint.files import load_array, load_file
from parity.lint.samples import LEFT_PADDED, additive, tril
from parity.lint.spec_text import parse_spec

app = typer.Typer()
app.command("lint")(lint_command)
app.command("explain")(explain_command)
SEEN = (tril()[None] & LEFT_PADDED[:, None, :])[:, None]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refused(*arguments):
    result = run(*arguments)
    assert isinstance(result.exception, InputError), result.output
    assert "Traceback" not in result.output
    return str(result.exception)


@pytest.fixture
def saved(tmp_path):
    def save(name, **arrays):
        path = tmp_path / name
        first = next(iter(arrays.values()))
        if path.suffix == ".npy":
            np.save(path, first)
        elif path.suffix == ".npz":
            np.savez(path, **arrays)
        else:
            torch.save({k: torch.from_numpy(v) for k, v in arrays.items()}, path)
        return path

    return save


def test_a_clean_mask_exits_0(saved):
    path = saved("m.npy", mask=SEEN)
    valid = json.dumps(LEFT_PADDED.astype(int).tolist())
    result = run("lint", path, "--valid", valid, "--empty-row", "zero")
    assert result.exit_code == 0
    assert result.output.startswith("clean: ")
    assert "not checked, for want of" in result.output
    assert "q 4  ..###" in result.output


def test_a_faulty_mask_exits_1_and_says_what_where_and_what_to_do(saved):
    result = run("lint", saved("m.npy", mask=np.ones((1, 1, 4, 4), bool)))
    assert result.exit_code == 1
    assert result.output.startswith("faulty: 1 error in ")
    assert "(query 0, key 1 and 5 more)" in result.output.replace("row 0, ", "")
    assert "build it with causal()" in result.output


def test_warnings_alone_exit_0(saved):
    result = run("lint", saved("m.npy", mask=additive(tril(), -np.inf, shown=1.0)[None, None]))
    assert result.exit_code == 0
    assert result.output.startswith("suspect: 1 warning")


@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_files_bring_their_own_facts(saved, suffix):
    causal = np.broadcast_to(tril(), (2, 1, 5, 5)).copy()
    path = saved(f"m.{suffix}", mask=causal, attention_mask=LEFT_PADDED.astype(np.int64))
    result = run("lint", path)
    assert result.exit_code == 1
    assert "error M09" in result.output
    assert "M09" not in run("lint", f"{path}:mask").output.split("not checked")[0]


def test_json_to_a_file_and_to_stdout(saved, tmp_path):
    path, out = saved("m.npy", mask=tril().astype(np.float32)[None, None]), tmp_path / "r.json"
    assert run("lint", path, "--json", out).exit_code == 1
    document = json.loads(out.read_text())
    assert document == json.loads(run("lint", path, "--json", "-").output)
    assert document["schema_version"] == 1
    assert document["verdict"] == "faulty"
    (finding,) = document["findings"]
    assert finding["rule"] == "M01"
    assert finding["severity"] == "error"
    assert set(finding) >= {"message", "what", "actual", "expected", "remedy", "place", "count"}


def test_a_spec_in_place_of_a_file():
    result = run("lint", "causal() & window(3) | prefix(2)", "--queries", 5)
    assert result.exit_code == 1
    assert "error W02" in result.output
    ok = run("lint", "(causal() | prefix(2)) & window(3)", "--queries", 5, "--expect", "none")
    assert ok.exit_code == 0
    zero = run("lint", "causal()", "--queries", 5, "--window", 0)
    assert "error W02" in zero.output


def test_cache_options(saved):
    mask = np.zeros((1, 1, 1, 9), bool)
    mask[..., :5] = True
    path = saved("m.npy", mask=mask)
    assert run("lint", path, "--cache-length", 4, "--capacity", 9).exit_code == 0
    late = run("lint", path, "--cache-length", 3, "--capacity", 9)
    assert late.exit_code == 1
    assert "error C02" in late.output
    assert "error C03" in run("lint", path, "--cache-length", 4).output


def test_explain():
    text = run("explain", "m05").output
    assert text.startswith("# M05: empty row")
    assert "pytorch#41508" in text
    for name in ("Z1", "nonsuch"):
        said = refused("explain", name)
        assert all(f" {known}" in said for known in ("M05", "W02", "rope-theta", "weight-zeros"))


def test_bfloat16_survives_both_kinds_of_file(tmp_path):
    mask = additive(tril(), -np.inf, dtype=ml_dtypes.bfloat16)[None, None]
    np.save(tmp_path / "m.npy", mask)
    torch.save(torch.from_numpy(mask.astype(np.float32)).bfloat16(), tmp_path / "m.pt")
    for name in ("m.npy", "m.pt"):
        loaded = load_array(str(tmp_path / name))
        assert loaded.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(loaded.astype(np.float32), mask.astype(np.float32))


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_bad_files_are_refused_and_nothing_in_them_is_run(tmp_path, saved, capsys):
    whole = saved("m.npy", mask=SEEN).read_bytes()
    (tmp_path / "cut.npy").write_bytes(whole[:-7])
    (tmp_path / "text.npz").write_bytes(b"not an archive")
    (tmp_path / "empty.pt").write_bytes(b"")
    np.save(tmp_path / "object.npy", np.array([Evil()]), allow_pickle=True)
    torch.save({"mask": Evil()}, tmp_path / "evil.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "code.py").write_text("mask = [[1]]")
    (tmp_path / "text.npy").write_text("1 1 0")
    names = "cut.npy text.npz empty.pt object.npy evil.pt list.pt no.npy code.py text.npy"
    for name in names.split():
        said = refused("lint", tmp_path / name)
        assert name in said
        assert "\n" not in said and "allow_pickle" not in said
    assert "give a .npy, .npz, .pt, .pth file or a spec" in refused("lint", tmp_path / "code.py")
    for name in ("text.npy", "object.npy"):
        assert "holds Python objects, which are never loaded" in refused("lint", tmp_path / name)
    assert "executed" not in capsys.readouterr().out


def test_which_array_must_be_said(saved):
    path = saved("m.npz", left=SEEN, right=SEEN)
    assert "say which" in refused("lint", path)
    assert "no array 'mask'" in refused("lint", f"{path}:mask")
    assert set(load_file(path)) == {"left", "right"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--use", "float"], "--use 'float': expected one of bool, additive"),
        (["--valid", "[[1, 1], [1]]"], "not a list of lists"),
        (["--valid", "[[0.5]]"], "expected integers or bool"),
        (["--input-ids", "nothing.npy"], "no such file"),
        (["--expect", "causal() & other()"], "`other()` is not part of one"),
        (["--expect", "segments()"], "segments"),
        (["--scores-dtype", "int8"], "expected one of f64"),
    ],
)
def test_bad_options(saved, options, said):
    path = saved("m.npy", mask=additive(tril(), -np.inf)[None, None])
    assert said in refused("lint", path, *options)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "causal().bind()",
        "causal() and padding()",
        "causal(align=open('x'))",
        "causal(2, 3)",
        "window('3')",
        "causal(",
        "",
    ],
)
def test_spec_texts_that_are_none(text):
    with pytest.raises(InputError, match=r"spec|expected"):
        parse_spec(text)


def test_spec_texts_round_trip():
    for text in (
        "causal() & padding() & window(4)",
        "(causal() | prefix(2)) & ~segments() & chunked(8)",
        'causal(align="bottom_right") & ~index(0, 3)',
    ):
        rule, problems = parse_spec(text)
        assert (str(rule), problems) == (text, ())


def test_masks_that_unpack_to_more_than_any_has(tmp_path, monkeypatch):
    """A megabyte of zeros packed holds a gigabyte; an expanded tensor repeats what it holds."""
    monkeypatch.setattr(limits, "MASK_BYTES", 1000)
    np.savez_compressed(tmp_path / "zeros.npz", mask=np.zeros((1, 40, 40), bool))
    torch.save(torch.ones(1).expand(1, 40, 40), tmp_path / "ones.pt")
    for name in ("zeros.npz", "ones.pt"):
        with pytest.raises(InputError, match=r"bytes once unpacked, at most 1000 are accepted"):
            load_file(tmp_path / name)
    np.savez_compressed(tmp_path / "few.npz", mask=np.zeros((1, 20, 20), bool))
    assert load_file(tmp_path / "few.npz")["mask"].shape == (1, 20, 20)


@pytest.mark.parametrize(
    "header",
    [
        b"(" * 8999,
        b"{'descr': '|b1', 'fortran_order': False, 'shape': (99999999999999999999, 4)}",
        b"{'descr': '|b1', 'fortran_order': False, 'shape': (-1, 4)}",
        b"{1, 2}",
    ],
)
def test_headers_that_no_array_has(tmp_path, header):
    head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    (tmp_path / "m.npy").write_bytes(head)
    assert "not a readable .npy array file" in refused("lint", tmp_path / "m.npy")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("~" * 1900 + "causal()", "recursion"),
        ("causal()&" * 300 + "causal()", "2708 characters, at most 2000"),
        ("/a" * 25_000, "50000 characters"),
        ("[" * 50_000, "not a list of lists"),
        ("x" * 5000 + ".npy", "no such file"),
    ],
)
def test_texts_too_long_or_too_deep_are_one_error(text, said):
    assert said in refused("lint", text)
