"""The probes find which mask an attention obeys: known traps are caught, our backends are clean."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from jaxllama.errors import InputError
from parity.commands.probe import probe_command
from parity.lint import catalogue
from parity.lint.attentions import resolve
from parity.lint.linter import probe
from parity.lint.probe_cases import Probed, cases
from parity.lint.probes import diagnose, head_map, identity_probe, perturbation_probe

CASES = {case.name: case for case in cases()}
app = typer.Typer()
app.command("probe")(probe_command)
app.command("other")(lambda: None)


def trap(call):
    return Probed(call.__name__, jax.jit(call))


def top_left(q, k, v, mask):
    return jax.nn.dot_product_attention(q, k, v, is_causal=True)


def inverted(q, k, v, mask):
    bias = jnp.where(mask, 0.0, -jnp.inf)
    return jax.nn.dot_product_attention(q, k, v, mask=bias.astype(bool)[:, None])


def rows_as_heads(q, k, v, mask):
    return jax.nn.dot_product_attention(q, k, v, mask=mask)


def weak_fill(q, k, v, mask):
    """exp(-120) is 0, so nothing shows until a hidden key scores 100."""
    bias = jnp.where(mask, 0.0, -120.0).astype(jnp.float32)[:, None]
    return jax.nn.dot_product_attention(q, k, v, bias=bias)


def obeyed(probed):
    return {f.what: f for f in catalogue()["K01"].check(probed) if f.severity == "error"}


def reference_weights(case):
    """Softmax attention in plain float64 NumPy."""
    group = case.q.shape[2] // case.k.shape[2]
    k = np.repeat(case.k, group, 2).astype(np.float64)
    scores = np.einsum("btnh,bsnh->bnts", case.q.astype(np.float64), k) * case.q.shape[-1] ** -0.5
    weights = np.exp(scores) * case.mask[:, None]
    return weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)


@pytest.mark.parametrize("name", ["causal", "prefill into a cache", "a row that sees nothing"])
def test_the_identity_probe_reads_the_real_weights(name):
    case = CASES[name]
    weights = identity_probe(resolve("xla"), case)
    np.testing.assert_array_equal(weights != 0, np.broadcast_to(case.mask[:, None], weights.shape))
    # Scores below 14 of 8 products, sums of 11: some 100 units of float32 at the very most.
    assert abs(weights - reference_weights(case)).max() < 100 * 2.0**-24


def test_the_identity_probe_does_not_confuse_its_turns():
    """Wrong columns would show here: more keys than H take two turns."""
    case = CASES["decode"]
    assert case.k.shape[1] > case.q.shape[-1]
    weights = identity_probe(resolve("xla"), case)
    shifted = np.roll(weights, 1, -1)
    assert abs(shifted - reference_weights(case)).max() > 0.1


def test_perturbation_finds_what_weights_cannot_show():
    case = CASES["causal"]
    given = np.broadcast_to(case.mask[:, None], (4, 6, 9, 9))
    np.testing.assert_array_equal(identity_probe(trap(weak_fill), case) != 0, given)
    moved = perturbation_probe(trap(weak_fill), case)
    assert (moved & ~given).any()
    np.testing.assert_array_equal(perturbation_probe(resolve("xla"), case), given)


@pytest.mark.parametrize("name", ["xla", "blockwise", "dot_product"])
def test_our_backends_are_clean(name):
    report = probe(resolve(name))
    assert report.findings == []
    assert report.checked == ["G01", "H01", "K01", "K02"]
    assert "promises finite" in report.unchecked["N01"]


def test_our_backends_are_questioned_with_kernel_arguments_too():
    seen = []
    ours = resolve("dot_product")

    def spy(q, k, v, mask):
        seen.append(type(mask).__name__)
        return ours.call(q, k, v, mask)

    assert obeyed(Probed("spy", spy, structured=True)) == {}
    assert {"BoundMask"} < set(seen)


def test_jax_itself_obeys_masks_but_not_empty_rows():
    report = probe(resolve("jax"))
    assert report.errors == 0
    assert {f.rule for f in report.findings} == {"K01", "N01"}
    (empty,) = [f for f in report.findings if f.rule == "K01"]
    assert "a mean of hidden values" in empty.what
    assert (empty.place.row, empty.place.query) == (1, 0)


def test_top_left_alignment_is_caught():
    found = obeyed(trap(top_left))
    assert "on `decode` it obeys causality aligned at the top left" in found
    assert "on `chunk after a cache` it obeys causality aligned at the top left" in found
    assert not any("`causal`" in what for what in found)  # T == S: right there, by luck
    finding = found["on `decode` it obeys causality aligned at the top left"]
    assert (finding.actual, finding.expected, finding.place.key) == ("hidden", "seen", 1)


def test_an_inverted_bias_is_caught():
    found = obeyed(trap(inverted))
    assert "on `decode` it obeys the mask inverted: what is hidden is seen" in found
    assert len(found) == len(CASES)  # the last case too: its other rows are live


def test_rows_read_as_heads_are_caught_even_where_nothing_fails():
    found = obeyed(trap(rows_as_heads))
    silent = "on `as many rows as heads` it obeys [B, T, S] read as [N, T, S]: rows taken for heads"
    assert silent in found
    assert "the attention fails on `causal`" in found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: jnp.ones_like(m), "no mask at all"),
        (lambda m: m & ~jnp.eye(9, dtype=bool)[None], "its own key hidden"),
        (lambda m: jnp.tril(jnp.ones_like(m)), "causality without padding"),
        (lambda m: m.swapaxes(1, 2), "another mask"),
    ],
)
def test_other_wrong_masks_are_named(change, said):
    def wrong(q, k, v, mask):
        return jax.nn.dot_product_attention(q, k, v, mask=change(mask)[:, None])

    case = CASES["right-padded"]
    weights = identity_probe(trap(wrong), case)
    assert (diagnose(weights != 0, case) or "another mask") == said


def test_head_map():
    assert head_map(resolve("xla"), cases()[0]) == [[0], [0], [0], [1], [1], [1]]
    assert head_map(catalogue()["H01"].mutant(), cases()[0]) == [[0], [1], [0], [1], [0], [1]]


DYNAMIC = [rule_id for rule_id, file in catalogue().items() if file.rule.kind == "dynamic"]


@pytest.mark.parametrize("rule_id", DYNAMIC)
def test_dynamic_rules_fire_on_mutants_and_spare_twins(rule_id):
    file = catalogue()[rule_id]
    found = list(file.check(file.mutant()))
    assert found
    assert {f.rule for f in found} == {rule_id}
    assert list(file.check(file.twin())) == []


def test_unwritten_cache_slots_are_finite():
    """What lets our backends go without N01."""
    from jaxllama.cache import KVCache
    from jaxllama.presets import preset

    small = preset("llama-3.2-1b").replace(num_hidden_layers=1)
    cache = KVCache.empty(small, 2, 5, jnp.bfloat16)
    assert bool(jnp.isfinite(cache.k).all() & jnp.isfinite(cache.v).all())


def test_an_attention_that_is_no_jax_is_questioned_all_the_same():
    def plain(q, k, v, mask):
        q, k, v, mask = (np.asarray(a) for a in (q, k, v, mask))
        k, v = (np.repeat(a, 3, 2) for a in (k, v))
        scores = np.einsum("btnh,bsnh->bnts", q, k) * 8**-0.5
        scores = np.where(mask[:, None], scores, -1e30)
        weights = np.exp(scores - scores.max(-1, keepdims=True)) * mask[:, None]
        weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
        return np.einsum("bnts,bsnh->btnh", weights, v)

    report = probe(Probed("plain", plain))
    assert [f.rule for f in report.findings] == ["N01"]
    assert "cannot differentiate" in report.unchecked["G01"]
    assert report.unchecked["K02"] == "it shows no weights to compare"


# The command


MODULE = """
import jax

@jax.jit
def backwards(q, k, v, mask):
    return jax.nn.dot_product_attention(q, k, v, mask=~mask[:, None])

number = 3
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    (tmp_path / "their_attention.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "their_attention"


def test_command_on_a_named_function(theirs, tmp_path):
    out = tmp_path / "probe.json"
    result = CliRunner().invoke(app, ["probe", f"{theirs}:backwards", "--json", str(out)])
    assert result.exit_code == 1
    assert result.output.startswith("faulty: their_attention:backwards: 10 errors")
    document = json.loads(out.read_text())
    assert document["verdict"] == "faulty"
    assert document["findings"][0]["rule"] == "K01"
    assert "inverted" in document["findings"][0]["message"]


def test_command_on_our_backend():
    result = CliRunner().invoke(app, ["probe", "xla", "--json", "-"])
    assert result.exit_code == 0
    assert json.loads(result.output)["verdict"] == "clean"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flash", "expected xla, blockwise, dot_product, cudnn, splash, jax, or module:function"),
        ("no_such_module:f", "No module named"),
        ("their_attention:missing", "no attribute 'missing'"),
        ("their_attention:number", "a int, expected a function"),
        (":f", "expected module:name"),
    ],
)
def test_bad_names(theirs, name, said):
    with pytest.raises(InputError, match=said):
        resolve(name)


def test_a_backend_that_cannot_run_here_says_so(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with pytest.raises(InputError, match="expected gpu"):
        resolve("cudnn", "f16")
    with pytest.raises(InputError, match="float32"):
        resolve("dot_product", "f64")


@pytest.mark.gpu
def test_cudnn_is_clean_on_a_gpu():
    assert [f for f in probe(resolve("cudnn")).findings if f.severity == "error"] == []
