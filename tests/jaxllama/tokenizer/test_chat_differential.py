"""Chats: held to transformers' environment of templates, and to Meta's own chat format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, event, given, settings
from hypothesis import strategies as st
from llama_models.datatypes import RawMessage
from llama_models.llama3.chat_format import ChatFormat
from llama_models.llama3.tokenizer import Tokenizer as MetasOwn
from token_files import (
    CHATML,
    SPECIALS,
    meta_tokenizer_model,
    tokenizer_config,
    tokenizer_json,
    write_tokenizer,
)
from transformers import PreTrainedTokenizerFast

from jaxllama.errors import CheckpointError, InputError
from jaxllama.tokenizer import Tokenizer

# Pieces of templates: what stands before the messages, what is written of each, what after them.
OPENINGS = [
    "{{ bos_token }}",
    "{%- set ns = namespace(count=0, role='') -%}",
    "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}",
    "{% for d in documents or [] %}<{{ d['title'] }}>{{ d.text }}{% endfor %}",
    "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}",
    "{% if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}"
    "{{ date_string }}",
    "{% macro said(m) %}({{ m.role }}){% endmacro %}{{ said(messages[0]) }}",
    "{{ dict(a=1) | tojson }}{{ dict.fromkeys(['x']) | tojson }}",
    "{{ unk_token }}{{ cls_token }}|{{ eos_token }}|{{ pad_token }}",
    "{% set s = messages | selectattr('role', 'equalto', 'system') | list %}{{ s | length }}",
    "{{ strftime_now('') }}{{ strftime_now('%%') }}",
]
BODIES = [
    "<|head|>{{ m['role'] }}<|tail|>{{ m['content'] }}<|turn|>",
    "{{ m.content | trim }}{{ eos_token }}",
    "{% generation %}{{ m['content'] }}{% set inner = 1 %}{% endgeneration %}{{ inner }}",
    "{% if m.role == 'system' %}{% continue %}{% endif %}{{ loop.index0 }}",
    "{% if loop.index > 2 %}{% break %}{% endif %}",
    "{{ m | tojson }}",
    "{{ m['content'] | tojson(ensure_ascii=True) }}",
    "{{ m | tojson(sort_keys=True, separators=(',', ':')) }}",
    "{{ m | tojson(False, 1) }}",
    "{% set ns.count = (ns.count or 0) + 1 %}{{ ns.count }}",
    "{{ m.reasoning_content }}|{{ m.thinking }}",
    "{% if m.tool_calls is defined %}{{ m.tool_calls[0].function.name }}{% endif %}",
    "{{ m['content'] + '\\n' }}",
    "{{ m['content'].split('<|turn|>')[0] }}",
    "{{ m.content.upper() if m.content is string else m.content[0].text }}",
    "  {%- if loop.last %} last{% endif -%}  \n",
    "{{ m.content.__class__ }}",
    "{{ {}.x.y }}",
    "{{ m.content.append(1) }}",
]
ENDINGS = [
    "{% if add_generation_prompt %}<|head|>assistant<|tail|>{% endif %}",
    "{{ ns.count }}",
    "",
    "{{ messages[-1]['role'] }}{{ '%s' % '<|turn|>' }}",
]
WORDS = [*SPECIALS, "a", " b", "é\n", "<|tu", "rn|>", "\U000f0000", "{{ x }}", "&"]


def texts() -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(WORDS), max_size=5).map("".join)


def messages() -> st.SearchStrategy[list[dict[str, Any]]]:
    call = [{"type": "function", "function": {"name": "<|turn|>", "arguments": {"x": 1}}}]
    message = st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "user", "assistant", "system", "tool"]),
            "content": st.one_of(
                texts(), texts(), texts(), st.none(), texts().map(lambda t: [{"text": t}])
            ),
        },
        optional={
            "reasoning": texts(),
            "thinking": st.none() | texts(),
            "tool_calls": st.just(call),
        },
    )
    return st.lists(message, min_size=1, max_size=4)


@st.composite
def templates(draw: st.DrawFn) -> str:
    opening = "".join(draw(st.lists(st.sampled_from(OPENINGS), max_size=3, unique=True)))
    bodies = "".join(draw(st.lists(st.sampled_from(BODIES), min_size=1, max_size=3)))
    loop = f"{{% for m in messages %}}{bodies}{{% endfor %}}"
    return opening + loop + draw(st.sampled_from(ENDINGS))


def options() -> st.SearchStrategy[dict[str, Any]]:
    tool = {"type": "function", "function": {"name": "f<|turn|>", "description": "é"}}
    return st.fixed_dictionaries(
        {"add_generation_prompt": st.booleans()},
        optional={
            "tools": st.sampled_from([[], [tool]]),
            "documents": st.just([{"title": "<|head|>t", "text": "x"}]),
            "date_string": texts(),
        },
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """Return both readers of one directory, in which two control tokens are no special ones."""
    content = tokenizer_json(plain=["<|tail|>", "<|turn|>"])
    config = tokenizer_config(cls_token="<|head|>", image_token="<pad>")
    folder = write_tokenizer(
        tmp_path_factory.mktemp("chat"), tokenizer_json=content, tokenizer_config_json=config
    )
    return Tokenizer.from_directory(folder), PreTrainedTokenizerFast.from_pretrained(folder)


def with_template(pair: tuple[Tokenizer, Any], template: str, folder: Path) -> Tokenizer:
    """Give both readers another template."""
    pair[1].chat_template = template
    found = {"chat_template.jinja": template.encode()}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        found[name] = (folder / name).read_bytes()
    return Tokenizer.from_files(found, source="test")


@given(templates(), messages(), options())
@settings(max_examples=400, phases=[Phase.generate])
def test_chats_are_those_of_transformers(
    pair: tuple[Tokenizer, Any], template: str, messages: list[Any], options: dict[str, Any]
) -> None:
    theirs = pair[1]
    ours = with_template(pair, template, Path(theirs.name_or_path))
    try:
        text = theirs.apply_chat_template(messages, tokenize=False, **options)
    except Exception as error:
        event(f"refused: {type(error).__name__}")
        for refuse in (ours.render_chat, ours.encode_chat):
            with pytest.raises((InputError, CheckpointError), match="chat template"):
                refuse(messages, **options)
        return
    assert ours.render_chat(messages, **options) == text
    for specials in (False, True):
        expected = theirs.apply_chat_template(
            messages, return_dict=False, sanitize_control_tokens=not specials, **options
        )
        assert ours.encode_chat(messages, specials=specials, **options) == expected


def test_marks_matter(pair: tuple[Tokenizer, Any]) -> None:
    """The two ways of encoding differ where a user writes control tokens, and there alone."""
    ours = pair[0]
    for content, differs in (("x", False), ("<|turn|><|head|>system", True)):
        talk = [{"role": "user", "content": content}]
        assert (ours.encode_chat(talk) != ours.encode_chat(talk, specials=True)) == differs
        assert ours.decode(ours.encode_chat(talk)) == ours.render_chat(talk)


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, ChatFormat]:
    file = tmp_path_factory.mktemp("meta") / "tokenizer.model"
    file.write_bytes(meta_tokenizer_model())
    return Tokenizer.from_directory(file.parent), ChatFormat(MetasOwn(file))


METAS_WORDS = ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|image|>", "\n\n", "\n"]
METAS_WORDS += [" ", "the 12", "é", "<|python_tag|>", " t"]


@st.composite
def dialogs(draw: st.DrawFn) -> list[dict[str, Any]]:
    text = st.lists(st.sampled_from(METAS_WORDS), max_size=5).map("".join)
    listed = st.lists(text.map(lambda t: {"type": "text", "text": t}), max_size=3)
    dialog = []
    for _ in range(draw(st.integers(1, 4))):
        role = draw(st.sampled_from(["user", "system", "assistant", "tool"]))
        message = {"role": role, "content": draw(text | text | listed)}
        if draw(st.booleans()):
            message["context"] = draw(st.none() | text)
        if draw(st.booleans()):
            message["stop_reason"] = draw(
                st.sampled_from([None, "end_of_turn", "end_of_message", "out_of_tokens"])
            )
        dialog.append(message)
    return dialog


@given(dialogs(), st.booleans())
@settings(max_examples=250)
def test_metas_chats_are_those_of_llama_models(
    meta: tuple[Tokenizer, ChatFormat], dialog: list[Any], prompted: bool
) -> None:
    ours, theirs = meta
    expected = theirs.encode_dialog_prompt([RawMessage(**one) for one in dialog]).tokens
    if not prompted:
        expected = expected[: len(expected) - len(theirs._encode_header("assistant"))]
    ids = ours.encode_chat(dialog, add_generation_prompt=prompted)
    assert ids == expected
    assert ours.render_chat(dialog, add_generation_prompt=prompted) == ours.decode(ids)


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (
            {"role": "system2", "content": "x"},
            "message 0 has role 'system2'; Meta's format has user",
        ),
        ({"role": "user", "content": None}, "message 0: content is None, expected text"),
        ({"role": "user", "content": [{"type": "image"}]}, "images are not supported"),
        ({"role": "assistant", "content": "", "tool_calls": [1]}, "give the call as its content"),
        pytest.param("x", "message 0 is a str", marks=pytest.mark.ill_typed),
    ],
)
def test_messages_that_meta_has_no_form_for(
    meta: tuple[Tokenizer, ChatFormat], message: Any, match: str
) -> None:
    with pytest.raises(InputError, match=match):
        meta[0].encode_chat([message])


def test_metas_format_has_no_tools(meta: tuple[Tokenizer, ChatFormat]) -> None:
    talk = [{"role": "user", "content": "x"}]
    with pytest.raises(InputError, match="no place for tools; write it into a system message"):
        meta[0].encode_chat(talk, tools=[{}])
    with pytest.raises(InputError, match="plain text: there is no chat with control tokens"):
        meta[0].encode_chat(talk, specials=True)


BROKEN = {
    "{% if %}": "line 1: TemplateSyntaxError",
    "{{ messages | no_such }}": "TemplateAssertionError: No filter named 'no_such'",
    "{{ no_such() }}": "UndefinedError: 'no_such' is undefined",
    "{{ ''.__class__.__mro__ }}": "SecurityError",
    "{% for i in range(10 ** 9) %}{% endfor %}": "OverflowError: Range too big",
    "{{ 1 // 0 }}": "ZeroDivisionError",
}


@pytest.mark.parametrize("template", BROKEN)
def test_faults_of_a_template_are_its_own(tmp_path: Path, template: str) -> None:
    write_tokenizer(tmp_path, chat_template_jinja=template)
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_directory(tmp_path).render_chat([{"role": "user", "content": "x"}])
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}: the chat template ")
    assert BROKEN[template] in said and "mend the template" in said and "messages" not in said


@pytest.mark.parametrize(
    ("template", "message", "match"),
    [
        (CHATML, {"role": "user", "content": ["x"]}, "cannot take these messages: TypeError"),
        (CHATML, {"role": "user"}, "cannot take these messages: UndefinedError"),
        ("{{ raise_exception('no tools') }}", {"role": "x"}, "refuses these messages: no tools"),
        (CHATML, {"role": "user", "content": {1}}, "message 0 holds a set, expected text"),
        pytest.param(CHATML, "x", "message 0 is a str", marks=pytest.mark.ill_typed),
    ],
)
def test_faults_of_messages_are_theirs(
    tmp_path: Path, template: str, message: Any, match: str
) -> None:
    write_tokenizer(tmp_path, chat_template_jinja=template)
    with pytest.raises(InputError, match=match):
        Tokenizer.from_directory(tmp_path).render_chat([message])


def test_a_conversation_of_nothing_is_none(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_directory(write_tokenizer(tmp_path))
    with pytest.raises(InputError, match="no messages"):
        tokenizer.render_chat([])


def test_templates_by_name(tmp_path: Path) -> None:
    named = [{"name": n, "template": n} for n in ("default", "tool_use")]
    write_tokenizer(tmp_path, tokenizer_config_json=tokenizer_config(chat_template=named))
    tokenizer, talk = Tokenizer.from_directory(tmp_path), [{"role": "user", "content": "x"}]
    assert tokenizer.render_chat(talk) == "default"
    assert tokenizer.render_chat(talk, tools=[{}]) == "tool_use"
    config = tokenizer_config(chat_template=[{"name": "rag", "template": "rag"}])
    write_tokenizer(tmp_path, tokenizer_config_json=config)
    with pytest.raises(InputError, match="templates rag, and none called default"):
        Tokenizer.from_directory(tmp_path).render_chat(talk)


def test_control_tokens_that_the_files_name(tmp_path: Path) -> None:
    """`chat_control_tokens` says which added tokens are such; the template is not asked."""
    content = tokenizer_json(plain=["<|tail|>", "<|turn|>"])
    config = tokenizer_config(eos_token="</s>", chat_control_tokens=["<|turn|>"])
    write_tokenizer(tmp_path, tokenizer_json=content, tokenizer_config_json=config)
    ids = Tokenizer.from_directory(tmp_path).encode_chat(
        [{"role": "user", "content": "<|turn|><|tail|>"}]
    )
    assert 259 not in ids and ids.count(261) == 3
