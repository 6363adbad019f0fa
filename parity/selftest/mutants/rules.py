"""General rules by which source is edited: one small change of one node of its syntax tree.

Messages, annotations, defaults and what only raises are left alone: a changed message is no fault
of computing.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

# What is edited, by what sees a fault in it: the compared model, what is written, the tokenizer,
# and the second reading of a file. `checkpoint/gguf/tokenizer.py` has no witness in any run.
GROUPS: dict[str, tuple[str, ...]] = {
    "model": (
        "jaxllama.attention.backends",
        "jaxllama.attention.blockwise",
        "jaxllama.attention.reference",
        "jaxllama.cache",
        "jaxllama.config",
        "jaxllama.forms",
        "jaxllama.layers.embedding",
        "jaxllama.layers.linear",
        "jaxllama.layers.norm",
        "jaxllama.masks.algebra",
        "jaxllama.masks.bound",
        "jaxllama.masks.specs",
        "jaxllama.masks.tokens",
        "jaxllama.model",
        "jaxllama.rope",
    ),
    "writing": ("jaxllama.generate", "jaxllama.request", "jaxllama.sampling"),
    "tokens": (
        "jaxllama.sandbox.templates",
        "jaxllama.text",
        "jaxllama.tokenizer.control_tokens",
        "jaxllama.tokenizer.json_file",
        "jaxllama.tokenizer.meta_chat",
        "jaxllama.tokenizer.model_file",
        "jaxllama.tokenizer.special_tokens",
        "jaxllama.tokenizer.template_chat",
        "jaxllama.tokenizer.tokenizer",
    ),
    "reading": (
        "jaxllama.checkpoint.base",
        "jaxllama.checkpoint.checks",
        "jaxllama.checkpoint.dtypes",
        "jaxllama.checkpoint.gguf.file",
        "jaxllama.checkpoint.gguf.parts",
        "jaxllama.checkpoint.gguf.read",
        "jaxllama.checkpoint.hf.read",
        "jaxllama.checkpoint.hf.safetensors_file",
        "jaxllama.checkpoint.load.arrays",
        "jaxllama.checkpoint.load.model",
        "jaxllama.checkpoint.meta.directory",
        "jaxllama.checkpoint.meta.pth_file",
        "jaxllama.checkpoint.names",
        "jaxllama.checkpoint.open",
        "jaxllama.checkpoint.orbax.arrays",
        "jaxllama.checkpoint.orbax.plain_array",
        "jaxllama.checkpoint.orbax.read",
        "jaxllama.config_formats.gguf",
        "jaxllama.config_formats.hf",
        "jaxllama.config_formats.meta",
    ),
}
MODULES = tuple(module for modules in GROUPS.values() for module in modules)


@dataclass(frozen=True)
class Mutant:
    """One edit of one module.

    Attributes:
        module: its dotted name.
        function: the outermost function or method that is edited, as `Class.method`.
        line: of the node.
        rule: id of the rule.
        number: which of the module's edits it is, in the order of `mutants_of`.
        before, after: the node's source.
        lines: first and last of the statement, a compound one's head.
    """

    module: str
    function: str
    line: int
    rule: str
    number: int
    before: str
    after: str
    lines: tuple[int, int]

    @property
    def name(self) -> str:
        """The mutant in a few words."""
        return f"{self.module}:{self.line} {self.rule}: {self.before} -> {self.after}"

    @property
    def group(self) -> str:
        """The group that its module is of."""
        return next((g for g, modules in GROUPS.items() if self.module in modules), "model")


def source_of(module: str) -> str:
    """Return a module's source."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text()


def mutants_of(module: str) -> list[Mutant]:
    """Return every edit of a module."""
    tree = ast.parse(source_of(module))
    found: list[Mutant] = []
    for function, qualname in functions(tree):
        for node, replacement, rule, lines in _edits(function):
            before, after = _said(node), _said(replacement)
            found.append(
                Mutant(module, qualname, node.lineno, rule, len(found), before, after, lines)
            )
    return found


def mutated_tree(mutant: Mutant) -> ast.Module:
    """Return the syntax tree of a mutant's module."""
    tree = ast.parse(source_of(mutant.module))
    number = 0
    for function, _ in functions(tree):
        for node, replacement, _, _ in _edits(function):
            if number == mutant.number:
                _Replaced(node, replacement).visit(tree)
                return ast.fix_missing_locations(tree)
            number += 1
    raise LookupError(mutant.name)


def functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, str]]:
    """Yield the outermost functions and methods of a module with their qualified names."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[ast.FunctionDef, str]]:
        for node in body:
            if isinstance(node, ast.FunctionDef):
                yield node, prefix + node.name
            elif isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{prefix}{node.name}.")

    yield from walk(tree.body, "")


def _said(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Replaced(ast.NodeTransformer):
    def __init__(self, node: ast.AST, replacement: ast.AST) -> None:
        self._node, self._replacement = node, replacement

    def visit(self, node: ast.AST) -> ast.AST:
        if node is self._node:
            return ast.copy_location(self._replacement, node)
        return self.generic_visit(node)


Edit = tuple[ast.expr | ast.stmt, ast.AST, str, tuple[int, int]]


def _edits(function: ast.FunctionDef) -> Iterator[Edit]:
    names = sorted(
        {n.arg for n in ast.walk(function) if isinstance(n, ast.arg)} | _stored(function)
    )
    for node, lines in _computing(function.body):
        for rule, edits in RULES.items():
            for made in edits(node):
                yield node, _placed(made, node), rule, lines
        for made in _name(node, names):
            yield node, _placed(made, node), "name", lines


def _placed(made: ast.AST, node: ast.AST) -> ast.AST:
    return ast.fix_missing_locations(ast.copy_location(made, node))


def _stored(function: ast.FunctionDef) -> set[str]:
    return {
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def _computing(body: list[ast.stmt]) -> Iterator[tuple[ast.expr | ast.stmt, tuple[int, int]]]:
    """Yield the nodes of statements that compute, outermost first, with the statement's lines."""
    for statement in body:
        if isinstance(statement, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom):
            continue
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        if _is_check(statement):
            continue
        inner = [
            child
            for name in ("body", "orelse", "finalbody")
            for child in getattr(statement, name, [])
        ]
        last = min((child.lineno - 1 for child in inner), default=statement.end_lineno or 0)
        lines = statement.lineno, max(last, statement.lineno)
        for node in _nodes(statement, {id(child) for child in inner}):
            yield node, lines
        yield from _computing(inner)


def _is_check(statement: ast.stmt) -> bool:
    """Return whether a statement only checks what is given."""
    if isinstance(statement, ast.If):
        return all(isinstance(one, ast.Raise) for one in statement.body)
    called = statement.value if isinstance(statement, ast.Expr) else None
    if isinstance(called, ast.Call):
        return "check" in ast.unparse(called.func)
    return False


def _nodes(node: ast.AST, apart: set[int]) -> Iterator[ast.expr | ast.stmt]:
    if isinstance(node, ast.JoinedStr | ast.Raise | ast.Assert) or id(node) in apart:
        return
    if isinstance(node, ast.expr | ast.stmt):
        yield node
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "args") and not isinstance(
            node, ast.Call
        ):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _nodes(child, apart)


# Rules. Each yields replacements of a node; none where it does not apply.

_OPERATORS: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub, ast.Mult),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div, ast.Add),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mod,),
    ast.Mod: (ast.FloorDiv,),
    ast.Pow: (ast.Mult,),
    ast.BitAnd: (ast.BitOr,),
    ast.BitOr: (ast.BitAnd,),
}
_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_DTYPES = {
    "float64": "float32",
    "float32": "bfloat16",
    "bfloat16": "float16",
    "int32": "int8",
    "int64": "int8",
}


def _operator(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp):
        for other in _OPERATORS.get(type(node.op), ()):
            yield ast.BinOp(node.left, other(), node.right)
        yield node.left
        yield node.right


def _unary(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        yield node.operand


def _constant(node: ast.AST) -> Iterator[ast.AST]:
    if not isinstance(node, ast.Constant):
        return
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
        yield ast.Constant(node.value - 1)
    elif isinstance(node.value, float):
        yield ast.Constant(node.value * 2 if node.value else 1.0)
        yield ast.Constant(node.value / 2 if node.value else -1.0)


def _comparison(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        other = _COMPARISONS.get(type(node.ops[0]))
        if other is not None:
            yield ast.Compare(node.left, [other()], node.comparators)


def _boolean(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)


def _axis(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Call):
        for i, word in enumerate(node.keywords):
            if word.arg == "axis":
                for axis in (0, -2):
                    if ast.unparse(word.value) != str(axis):
                        changed = copy.copy(node)
                        value = ast.parse(str(axis), mode="eval").body
                        changed.keywords = [*node.keywords]
                        changed.keywords[i] = ast.keyword("axis", value)
                        yield changed


def _contraction(node: ast.AST) -> Iterator[ast.AST]:
    """Exchange two axes of the result of an einsum."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and "->" in node.value:
        read, made = node.value.split("->")
        for i in range(len(made) - 1):
            swapped = made[:i] + made[i + 1] + made[i] + made[i + 2 :]
            yield ast.Constant(f"{read}->{swapped}")


def _slice(node: ast.AST) -> Iterator[ast.AST]:
    if not isinstance(node, ast.Slice):
        return
    one = ast.Constant(1)
    if node.lower is not None:
        yield ast.Slice(ast.BinOp(node.lower, ast.Add(), one), node.upper, node.step)
        yield ast.Slice(None, node.upper, node.step)
    if node.upper is not None:
        yield ast.Slice(node.lower, ast.BinOp(node.upper, ast.Sub(), one), node.step)
        yield ast.Slice(node.lower, None, node.step)
    if node.step is not None:
        yield ast.Slice(node.lower, node.upper, None)


def _arguments(node: ast.AST) -> Iterator[ast.AST]:
    """Exchange two arguments that follow each other; leave out a keyword."""
    if not isinstance(node, ast.Call):
        return
    args = node.args
    for i in range(len(args) - 1):
        if not any(isinstance(arg, ast.Starred) for arg in args[i : i + 2]):
            swapped = [*args[:i], args[i + 1], args[i], *args[i + 2 :]]
            yield ast.Call(node.func, swapped, node.keywords)
    for i in range(len(node.keywords)):
        yield ast.Call(node.func, args, [*node.keywords[:i], *node.keywords[i + 1 :]])


def _call(node: ast.AST) -> Iterator[ast.AST]:
    """Hand on a call's first argument, or the value whose method is called."""
    if not isinstance(node, ast.Call):
        return
    if isinstance(node.func, ast.Attribute) and not _is_module(node.func.value):
        yield node.func.value
    elif node.args and not isinstance(node.args[0], ast.Starred):
        yield node.args[0]


def _is_module(node: ast.expr) -> bool:
    return ast.unparse(node) in ("jnp", "np", "jax", "jax.nn", "jax.lax", "nnx", "math", "masks")


def _insertion(node: ast.AST) -> Iterator[ast.AST]:
    """Negate a computed value, and double it."""
    if isinstance(node, ast.BinOp) and not isinstance(node.op, ast.BitAnd | ast.BitOr):
        yield ast.UnaryOp(ast.USub(), node)
        yield ast.BinOp(node, ast.Mult(), ast.Constant(2))
    elif isinstance(node, ast.Compare | ast.BinOp):
        yield ast.UnaryOp(ast.Invert(), node)
    elif isinstance(node, ast.Call) or (
        isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load)
    ):
        yield ast.UnaryOp(ast.USub(), node)
        yield ast.BinOp(node, ast.Mult(), ast.Constant(2))


def _name(node: ast.AST, names: list[str]) -> Iterator[ast.AST]:
    """Read the variable before or after this one, in the order of the alphabet."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in names:
        at = names.index(node.id)
        for other in dict.fromkeys((names[at - 1], names[(at + 1) % len(names)])):
            if other != node.id:
                yield ast.Name(other, ast.Load())


def _dtype(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Attribute) and node.attr in _DTYPES:
        yield ast.Attribute(node.value, _DTYPES[node.attr], node.ctx)


def _branch(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.If):
        for taken in (True, False):
            yield ast.If(ast.Constant(taken), node.body, node.orelse)
    elif isinstance(node, ast.IfExp):
        yield node.body
        yield node.orelse


def _loop(node: ast.AST) -> Iterator[ast.AST]:
    """Go round a loop once less."""
    short = ast.Slice(None, ast.Constant(-1), None)
    if isinstance(node, ast.For):
        all_but_one = ast.Subscript(
            ast.Call(ast.Name("list", ast.Load()), [node.iter], []), short, ast.Load()
        )
        yield ast.For(node.target, all_but_one, node.body, node.orelse)


RULES: dict[str, Callable[[ast.AST], Iterator[ast.AST]]] = {
    "operator": _operator,
    "unary": _unary,
    "constant": _constant,
    "comparison": _comparison,
    "boolean": _boolean,
    "axis": _axis,
    "contraction": _contraction,
    "slice": _slice,
    "arguments": _arguments,
    "call": _call,
    "dtype": _dtype,
    "branch": _branch,
    "loop": _loop,
    "insertion": _insertion,
}
