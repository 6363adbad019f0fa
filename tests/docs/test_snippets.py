"""Every snippet of the pages is done, in order, and prints what its page shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from snippets import MARK, alike, difference, outcomes, problem, refreshed, snippets, steps

ROOT = Path(__file__).parents[2]
# Figures of another machine: rounding may turn a word that is written, of some 180.
TOLERANCE = 0.1


@dataclass(frozen=True)
class Page:
    """A page whose snippets are run, in a folder of its own.

    Attributes:
        path: in `docs`.
        tolerance: by which share its figures may differ; cuts are for what differs by more.
        but: commands that begin so are left out.
        linked: whether its reader is in the repository: `docs` is there.
        optimised: whether a model of some size runs in it, longer than it compiles.
    """

    path: str
    tolerance: float = 0.0
    but: str = ""
    linked: bool = False
    optimised: bool = False


PAGES = (
    *(
        Page(f"tutorials/{name}.md")
        for name in ("port-a-model", "debug-a-mask", "load-train-save", "convert", "shard", "in-ci")
    ),
    Page("tutorials/read-an-attention-map.md", 0.02),
    *(
        Page(f"{name}.md")
        for name in ("verdict", "comparison", "metrics", "exit-codes", "site/index")
    ),
    Page("quality-example.md", TOLERANCE, linked=True, optimised=True),
    # Minutes of SmolLM2 are left out: what they show is tested on `tiny`.
    Page("kv-heads.md", TOLERANCE, but="parity quality", linked=True),
)
# What is to be read alone, by its page and first line, and why.
NOT_RUN = {
    ("tutorials/shard.md", "$ export JAX_NUM_CPU_DEVICES=2"): "two processes and a port of this "
    "machine; tests/jaxllama/sharding/test_hosts.py starts them"
}


def text_of(page: Page) -> str:
    return (ROOT / "docs" / page.path).read_text()


def problems(text: str, place: Path, page: Page) -> list[str]:
    """Return all that goes otherwise than a page says."""
    done = outcomes(text, place, page.but)
    return [said for one in done if (said := problem(*one, page.tolerance))]


@pytest.mark.ill_typed  # as readers have it: no annotations are checked
@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=pytest.mark.optimised if p.optimised else ()) for p in PAGES],
    ids=lambda page: page.path,
)
def test_a_page_does_what_it_says(page: Page, tmp_path: Path) -> None:
    if page.linked:
        (tmp_path / "docs").symlink_to(ROOT / "docs")
    assert problems(text_of(page), tmp_path, page) == []


def test_all_tutorials_are_run() -> None:
    there = {f"tutorials/{path.name}" for path in (ROOT / "docs/tutorials").glob("*.md")}
    assert there - {page.path for page in PAGES} - {"tutorials/README.md"} == set()


def test_the_first_verdict_takes_thirty_lines() -> None:
    page = text_of(Page("tutorials/port-a-model.md"))
    files = {step.file: step.text for step in steps(page)}
    lines = [
        line for name in ("save.py", "check_torch.py") for line in files[name].splitlines()[1:]
    ]
    written = sum(bool(line) for line in lines)
    assert written <= 30
    assert f"That took {written} lines in two files" in page


def test_what_is_not_run_says_why() -> None:
    marked = {
        (page.path, snippet.text.splitlines()[0])
        for page in PAGES
        for snippet in snippets(text_of(page))
        if snippet.marked
    }
    assert marked == set(NOT_RUN)


def left_over(text: str) -> list[str]:
    """Return blocks that look as if they were run, and are not."""
    known = ("", "text")
    return [
        f"line {one.line}: {one.language}"
        for one in snippets(text)
        if not (one.is_run or one.file or one.marked or one.language in known)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_nothing_is_left_out(page: Page) -> None:
    assert left_over(text_of(page)) == []
    assert len(steps(text_of(page))) >= 3


@pytest.mark.parametrize("block", ["```sh\nparity lint\n```\n", "```yaml\nname: parity\n```\n"])
def test_a_block_that_is_left_out_is_noticed(block: str) -> None:
    assert len(left_over(block)) == 1
    assert left_over(f"{MARK}\n{block}") == []


SOUND = """\
```python
# one.py
number = 1
```

```python
import one
print(one.number, "of", 2)
```

```text
1 of 2
```

```console
$ parity lint 'causal()' --queries 3
clean: ...

...
$ parity lint '[[1, 1], [1, 1]]' \\
    --use bool  # exit code 1
faulty: 1 error in ...
...
```
"""


def test_a_sound_page_passes(tmp_path: Path) -> None:
    assert problems(SOUND, tmp_path, Page("")) == []


@pytest.mark.parametrize(
    ("was", "is_", "said"),
    [
        ("number = 1", "number = 2", "is '2 of 2', shown as '1 of 2'"),
        ("number = 1", "1 / 0", "ZeroDivisionError"),
        ("print(one.number", "print(one.digit", "AttributeError"),
        ("clean: ...", "faulty: ...", "is 'clean: "),
        ("'causal()'", "'casual()'", "exit code 2, the page says 0"),
        ("  # exit code 1", "", "exit code 1, the page says 0"),
        ("--queries 3", "--queries 3  # exit code 1", "exit code 0, the page says 1"),
        ("1 of 2", "1 of 2\nand more", "is None, shown as 'and more'"),
        ("1 of 2\n", "1 of\n", "is '1 of 2', shown as '1 of'"),
    ],
)
def test_a_page_that_is_wrong_is_noticed(was: str, is_: str, said: str, tmp_path: Path) -> None:
    assert was in SOUND
    found = problems(SOUND.replace(was, is_, 1), tmp_path, Page(""))
    assert any(said in one for one in found), found


def test_a_file_that_is_written_again_is_read_again(tmp_path: Path) -> None:
    page = "```python\n# one.py\nn = {}\n```\n\n```python\nimport one\nprint(one.n)\n```\n"
    both = (page.format(1) + page.format(2)).replace("import one", "import one; print('is')")
    printed = [printed for step, _, printed in outcomes(both, tmp_path) if step.kind == "python"]
    assert printed == ["is\n1\n", "is\n2\n"]


def test_a_shell_does_what_commands_cannot(tmp_path: Path) -> None:
    page = (
        "```console\n$ echo one > a\n$ cat a | tr n t\note\n$ ls b  # exit code 2\nls: ...\n```\n"
    )
    assert problems(page, tmp_path, Page("")) == []
    (wrong,) = problems(page.replace("ote", "one"), tmp_path, Page(""))
    assert "'ote', shown as 'one'" in wrong


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\n...\nd\n", "a\nb\nc\nd\n", True),
        ("a\n...\nb\n...\n", "a\nx\nb\ny\n", True),
        ("a\n...\nb\n...\n", "a\nx\ny\n", False),
        ("a\n...\nd\n", "a\nb\nd\ne\n", False),
        ("...\nb\n", "b\n", True),
        ("a\n", "a\nb\n", False),
        ("a\n...\na\n", "a\n", False),
        ("took 1... s\n", "took 1.53 s\n", True),
        ("took 1... s\n", "took 2.53 s\n", False),
        ("0.05... of 3\n", "0.0515 of 3\n", True),
        ("0.05... of 3\n", "0.0415 of 3\n", False),
        ("a  b\n───\n", "a     b\n──────\n", True),
        ("a b\n", "ab\n", False),
    ],
)
def test_cuts_stand_for_what_is_left_out(shown: str, printed: str, same: bool) -> None:
    assert (difference(shown, printed) is None) is same


def test_another_word_or_figure_is_told() -> None:
    was = "worse: tiny, perplexity 1.82 -> 100.5\n BLEU  68.9  -65.8\n"
    assert difference(was, was.replace("  68", " 68"), 0.01) is None
    assert difference(was, was.replace("100.5", "100.9"), 0.01) is None
    assert difference(was, was.replace("100.5", "100.9")) is not None
    for old, new in (("100.5", "110"), ("worse", "better"), ("-65.8", "65.8"), ("\n", "\n\n")):
        assert difference(was, was.replace(old, new, 1), 0.01) is not None
    assert alike("1e-5 of 3", "1.00e-05 of 3", 0.01) and not alike("1e-5", "1e-4", 0.1)


def test_a_refreshed_output_keeps_its_cuts() -> None:
    assert refreshed("old\n\n...\n", "new\n\nmore\nand more\n") == "new\n\n...\n"
    assert refreshed("took ... s\nold\n", "took 2.5 s\nnew\n") == "took ... s\nnew\n"
    assert refreshed("a\n...\nc\n", "a\nb\nc\n") == "a\n...\nc\n"
    assert refreshed("", "new\n") == "new\n"
    assert refreshed("a  1\nb  2\n", "a 1\nb 3\n") == "a 1\nb 3\n"


def test_steps_know_where_they_stand() -> None:
    lines = SOUND.splitlines()
    for step in steps(SOUND):
        below = lines[step.line - (step.kind == "command") :]
        assert step.text.splitlines()[0][:12] in below[0]
        if step.shown is not None:
            assert SOUND[step.start :].startswith(step.shown)
