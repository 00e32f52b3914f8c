"""Chat templates: what is rendered is what transformers renders, and what a template may not do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from edgeforge.core.errors import DataError, ModelError
from edgeforge.data import Document, Message
from edgeforge.models import chat, tokenizer

if TYPE_CHECKING:
    from tests.conftest import Tales

TALK = [
    ("system", "Be brief."),
    ("user", "What colour is the fox?"),
    ("assistant", "red"),
    ("user", "And the frog? \u2603 {{ 7 * 7 }}"),
    ("assistant", "green"),
]
TEMPLATES = {
    "SmolLM2": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "blocks on lines of their own": """{{ bos_token }}
{% for message in messages %}
    {%- if message.role == 'user' -%}
[INST] {{ message.content | trim }} [/INST]
    {%- elif message.role == 'system' %}
<<{{ message.content.strip().upper() }} {{ message.content }}>>
    {%- else %} {{ message.content }}{{ eos_token }}
    {%- endif -%}
    {% if loop.last %}{% break %}{% endif %}
{% endfor %}
""",
    "macros, loops and filters": "{% macro said(m) %}{{ m['role'] | tojson }}:{{ m | tojson }}{% endmacro %}"
    "{% set ns = namespace(count=0) %}{% for m in messages %}{% set ns.count = ns.count + 1 %}{{ ns.count }}"
    "{{ said(m) }}{{ m.content }}{% endfor %}{% for n in range(2) %}{{ n }}{% endfor %}{{ messages | length }}",
    "generation": "{% for m in messages %}<{{ m.role }}>{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
}


def document(*messages: tuple[str, str]) -> Document:
    return Document(messages=tuple(Message(*one) for one in messages), where="chats.jsonl:3")


@pytest.fixture
def folder(tales: Tales, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tales.root / "tokenizer", tmp_path / "own"))


def with_template(folder: Path, template: str) -> Path:
    (folder / chat.FILE).write_text(template, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("asking", [False, True])
def test_it_renders_as_transformers_does(folder: Path, name: str, asking: bool) -> None:
    template = TEMPLATES[name]
    messages = [{"role": role, "content": content} for role, content in TALK]
    wanted = tokenizer.read(folder).apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=asking
    )
    assert chat.opened(with_template(folder, template)).render(document(*TALK), asking=asking) == wanted


def test_where_a_template_stands(folder: Path) -> None:
    talk = document(("user", "hello"))
    assert chat.opened(folder).render(talk) == "<|im_start|>user\nhello<|im_end|>\n"
    (folder / chat.FILE).unlink()
    with pytest.raises(ModelError, match=r"no chat template(.|\n)*chat_template.jinja"):
        chat.opened(folder).render(talk)
    settings = json.loads((folder / tokenizer.SETTINGS).read_text(encoding="utf-8"))
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ messages[0].content }}!"}]
    for said, wanted in (("{{ messages[0].content }}?", "hello?"), (named, "hello!")):
        (folder / tokenizer.SETTINGS).write_text(json.dumps({**settings, "chat_template": said}), encoding="utf-8")
        assert chat.opened(folder).render(talk) == wanted
    with_template(folder, "{{ messages[0].content }}.")  # goes first, as in transformers
    assert chat.opened(folder).render(talk) == "hello."


def test_where_the_assistant_speaks(folder: Path) -> None:
    text, spans = chat.opened(folder).answers(document(*TALK))
    assert text == chat.opened(folder).render(document(*TALK))
    assert [text[first:after] for first, after in spans] == ["red<|im_end|>\n", "green<|im_end|>\n"]
    text, spans = chat.opened(with_template(folder, TEMPLATES["SmolLM2"])).answers(document(*TALK[1:3]))
    assert [text[first:after] for first, after in spans] == ["red<|im_end|>\n"]
    assert chat.opened(folder).answers(document(*TALK[:2]))[1] == []


def test_answers_cannot_be_told_where_later_turns_change_earlier_ones(folder: Path) -> None:
    fickle = (
        "{% for m in messages %}<{{ m.role }}>{{ '*' if loop.last and m.role == 'assistant' }}{{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    text, spans = chat.opened(with_template(folder, fickle)).answers(document(*TALK[:3]))
    assert [text[first:after] for first, after in spans] == ["*red"]
    with pytest.raises(ModelError, match=r"changes earlier messages(.|\n)*answers_only: false"):
        chat.opened(folder).answers(document(*TALK))


# -- what a template may not do

REACHING = {
    "printing an attribute": "{{ messages.__class__ }}",
    "the usual way out": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "by a filter": "{{ messages | attr('__class__') }}",
    "by subscript": "{{ messages['__class__'] }}",
    "by a format string": "{{ '{0.__class__}'.format(messages) }}",
    "through a function": "{{ raise_exception.__globals__ }}",
    "through what jinja gives": "{{ cycler.__init__.__globals__ }}",
    "changing the messages": "{{ messages.append(1) }}",
    "only when asked": "{% if add_generation_prompt %}{{ messages.__class__ }}{% endif %}{{ messages[0].content }}",
}


@pytest.mark.parametrize("way", REACHING)
def test_a_template_that_reaches_for_more_is_refused(folder: Path, way: str) -> None:
    with pytest.raises(ModelError, match="the chat template reaches for more than the messages") as caught:
        chat.opened(with_template(folder, REACHING[way])).render(document(("user", "hello")), asking=True)
    assert caught.value.where == str(folder)
    assert "do not use this model" in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for m in messages %}", "fails: TemplateSyntaxError"),
        ("{{ messages[0].content / 2 }}", "fails: TypeError"),
        ("{{ 1 / 0 }}", "fails: ZeroDivisionError"),
        ("{% for n in range(10 ** 9) %}{% endfor %}", "fails: OverflowError"),
        ("{% include '/etc/hostname' %}", "fails: TypeError"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "fails: RecursionError"),
    ],
)
def test_a_template_that_fails_is_named(folder: Path, template: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        chat.opened(with_template(folder, template)).render(document(("user", "hello")))


def test_roles_that_the_template_does_not_know(folder: Path) -> None:
    strict = (
        "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}"
        "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    with pytest.raises(DataError, match="refuses these messages: Only user and assistant") as caught:
        chat.opened(with_template(folder, strict)).render(document(*TALK))
    assert caught.value.where == "chats.jsonl:3"
    forgetful = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="leaves out what the role 'system' says") as caught:
        chat.opened(with_template(folder, forgetful)).render(document(*TALK))
    assert caught.value.where == "chats.jsonl:3, message 1"


def test_the_date_is_always_the_same(folder: Path) -> None:
    dated = with_template(folder, "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}")
    assert chat.opened(dated).render(document(("user", "hello"))) == "26 Jul 2024 hello"


def test_the_template_travels_with_the_tokenizer(folder: Path, tmp_path: Path, tales: Any) -> None:
    from edgeforge.models import tokenizer_settings

    target = tmp_path / "target"
    target.mkdir()
    tokenizer.carry(folder, target)
    assert chat.template(target) == chat.template(folder) is not None
    found = tokenizer_settings.settings(folder, tales.data.interface)
    assert found["chat_template"] == chat.template(folder)
    assert found["model_max_length"] > 32  # a window is no limit
    before = tokenizer.digest(folder)
    assert tokenizer.digest(with_template(folder, "other")) != before
