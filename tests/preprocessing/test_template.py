"""Prompt bytes of every named template, written out; Jinja templates; which bytes are trained on."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.core.config import evolve
from cascadevl.core.errors import CheckpointError, ConfigError, MessageError
from cascadevl.core.messages import Conversation
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.template import TEMPLATES, THINKING, find_template, render, to_jinja

A = "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
B = "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
PICTURE: dict[str, Any] = {"type": "image", "image": "a.png"}


def _prompt(messages: Any, spec: Spec) -> str:
    return "".join(span.text for span in render(Conversation.parse(messages), spec))


def _user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}


QUESTION = [_user("What is it?")]
ONE_PICTURE = [_user(PICTURE, "What is it?")]
TURNS = [
    {"role": "system", "content": "Be brief."},
    _user(PICTURE, PICTURE, "Which?"),
    {"role": "assistant", "content": "The second."},
    _user(PICTURE, "And now?"),
]

EXPECTED: dict[str, tuple[str, str, str]] = {
    "internvl2_5": (
        f"<|im_start|>system\n{B}<|im_end|>\n<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n",
        f"<|im_start|>system\n{B}<|im_end|>\n"
        "<|im_start|>user\n<IMG_CONTEXT>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nImage-1: <IMG_CONTEXT>\nImage-2: <IMG_CONTEXT>\nWhich?<|im_end|>\n"
        "<|im_start|>assistant\nThe second.<|im_end|>\n"
        "<|im_start|>user\n<IMG_CONTEXT>\nAnd now?<|im_end|>\n<|im_start|>assistant\n",
    ),
    "Hermes-2": (
        f"<|im_start|>system\n{A}<|im_end|><|im_start|>user\nWhat is it?<|im_end|><|im_start|>assistant\n",
        f"<|im_start|>system\n{A}<|im_end|>"
        "<|im_start|>user\n<IMG_CONTEXT>\nWhat is it?<|im_end|><|im_start|>assistant\n",
        "<|im_start|>system\nBe brief.<|im_end|>"
        "<|im_start|>user\nImage-1: <IMG_CONTEXT>\nImage-2: <IMG_CONTEXT>\nWhich?<|im_end|>"
        "<|im_start|>assistant\nThe second.<|im_end|>"
        "<|im_start|>user\n<IMG_CONTEXT>\nAnd now?<|im_end|><|im_start|>assistant\n",
    ),
    "phi3-chat": (
        f"<|system|>\n{A}<|end|><|user|>\nWhat is it?<|end|><|assistant|>\n",
        f"<|system|>\n{A}<|end|><|user|>\n<IMG_CONTEXT>\nWhat is it?<|end|><|assistant|>\n",
        "<|system|>\nBe brief.<|end|>"
        "<|user|>\nImage-1: <IMG_CONTEXT>\nImage-2: <IMG_CONTEXT>\nWhich?<|end|>"
        "<|assistant|>\nThe second.<|end|>"
        "<|user|>\n<IMG_CONTEXT>\nAnd now?<|end|><|assistant|>\n",
    ),
}
EXPECTED["internlm2-chat"] = EXPECTED["Hermes-2"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_have_the_official_bytes(name: str) -> None:
    for messages, expected in zip((QUESTION, ONE_PICTURE, TURNS), EXPECTED[name], strict=True):
        assert _prompt(messages, Spec(template=name)) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_jinja_made_of_a_template_renders_the_same_bytes(name: str) -> None:
    spec = Spec(template=name)
    jinja = evolve(spec, template="jinja", jinja=to_jinja(spec))
    for messages, expected in zip((QUESTION, ONE_PICTURE, TURNS), EXPECTED[name], strict=True):
        assert _prompt(messages, jinja) == expected


def test_persona_dots_and_commas_are_the_official_code_points() -> None:
    """In A the comma behind the name is ASCII with a space; the middle dot of B is U+00B7."""
    assert "InternVL\u002c\u0020是" in TEMPLATES["internlm2-chat"].persona
    assert "书生\u00b7万象\uff0c" in TEMPLATES["internvl2_5"].persona


def test_a_system_message_of_the_spec_replaces_the_persona_and_one_of_the_conversation_both() -> None:
    spec = Spec(system="Be kind.")
    assert _prompt(QUESTION, spec).startswith("<|im_start|>system\nBe kind.<|im_end|>\n")
    assert _prompt(TURNS, spec).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert _prompt(QUESTION, Spec(system="")).startswith("<|im_start|>system\n<|im_end|>\n<|im_start|>user\n")


def test_the_thinking_message_has_the_official_bytes() -> None:
    expected = """
You are an AI assistant that rigorously follows this response protocol:

1. First, conduct a detailed analysis of the question. Consider different angles, potential solutions, and reason \
through the problem step-by-step. Enclose this entire thinking process within <think> and </think> tags.

2. After the thinking section, provide a clear, concise, and direct answer to the user's question. Separate the \
answer from the think section with a newline.

Ensure that the thinking process is thorough but remains focused on the query. The final answer should be standalone \
and not reference the thinking section.
"""
    assert expected.strip() == THINKING
    prompt = _prompt([{"role": "system", "content": THINKING}, *QUESTION], Spec())
    assert prompt == (
        f"<|im_start|>system\n{THINKING}<|im_end|>\n<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_no_header_is_opened_behind_an_answer() -> None:
    messages = [*QUESTION, {"role": "assistant", "content": "A cat."}]
    assert _prompt(messages, Spec()).endswith("<|im_start|>assistant\nA cat.<|im_end|>\n")


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for p in m.content %}{% if p.type == 'image' %}<IMG_CONTEXT>\n{% else %}{{ p.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _jinja(source: str) -> Spec:
    return Spec(template="jinja", jinja=source)


def test_a_folders_own_template_is_rendered_without_a_persona() -> None:
    assert _prompt(ONE_PICTURE, _jinja(CHATML)) == (
        "<|im_start|>user\n<IMG_CONTEXT>\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    system = evolve(_jinja(CHATML), system="Be kind.")
    assert _prompt(QUESTION, system).startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n")


@pytest.mark.parametrize(
    "spec", [*(Spec(template=name) for name in TEMPLATES), _jinja(CHATML)], ids=[*TEMPLATES, "jinja"]
)
def test_exactly_the_answers_and_their_end_are_trained_on(spec: Spec) -> None:
    stop = "<|end|>" if spec.template == "phi3-chat" else "<|im_end|>"
    messages = [*TURNS, {"role": "assistant", "content": "Nothing. "}]
    spans = render(Conversation.parse(messages), spec)
    assert [span.text for span in spans if span.trained] == [f"The second.{stop}", f"Nothing. {stop}"]


def test_a_template_that_rewrites_earlier_turns_is_rendered_right_and_not_trained_on() -> None:
    """As reasoning models do: the thinking of all answers but the last is dropped."""
    source = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content if loop.last else m.content.split('/t')[-1] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "hm/ta"},
        {"role": "user", "content": "r"},
    ]
    spans = render(Conversation.parse(messages), _jinja(source))
    assert [(span.text, span.trained) for span in spans] == [("[user]q[assistant]a[user]r[assistant]", False)]


def test_a_conversation_may_begin_with_an_answer_if_its_template_allows() -> None:
    spec = Spec()
    messages = [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Hi."}]
    jinja = _jinja(to_jinja(spec))
    assert _prompt(messages, jinja) == _prompt(messages, spec)


def test_a_template_may_refuse_in_its_own_words() -> None:
    source = "{% if messages[0].role != 'system' %}{{ raise_exception('a system turn, please') }}{% endif %}x"
    with pytest.raises(MessageError, match="refuses this conversation: a system turn, please"):
        _prompt(QUESTION, _jinja(source))
    with pytest.raises(MessageError, match="refuses this conversation: 'nobody' is undefined"):
        _prompt(QUESTION, _jinja("{{ nobody.name }}"))


def test_a_template_is_told_the_time_at_which_it_is_rendered() -> None:
    """Not that at which it was compiled: a server runs for days."""
    spec = _jinja("{{ strftime_now('%H:%M:%S.%f') }}")
    assert _prompt(QUESTION, spec) != _prompt(QUESTION, spec)


def test_a_template_that_is_no_jinja_is_refused() -> None:
    with pytest.raises(ConfigError, match="not valid Jinja"):
        _prompt(QUESTION, _jinja("{% for %}"))


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for i in range(99999999999) %}{% endfor %}",
    ],
)
def test_templates_are_rendered_in_a_sandbox(source: str) -> None:
    with pytest.raises(MessageError, match="refuses this conversation"):
        _prompt(QUESTION, _jinja(source))


def test_a_video_is_refused_with_what_to_do() -> None:
    messages = [_user({"type": "video", "video": "a.mp4"}, "What happens?")]
    for spec in (Spec(), _jinja(CHATML)):
        with pytest.raises(MessageError, match="send the frames as pictures"):
            _prompt(messages, spec)


def test_an_unknown_template_is_refused_with_the_known() -> None:
    with pytest.raises(CheckpointError, match=r"Unknown chat template 'vicuna'. Supported: internvl2_5, Hermes-2"):
        find_template("vicuna")


@given(st.lists(st.text(max_size=10), min_size=1, max_size=5))
def test_texts_split_into_parts_are_the_same_prompt(texts: list[str]) -> None:
    if "".join(texts).strip():
        assert _prompt([_user(*texts)], Spec()) == _prompt([_user("".join(texts))], Spec())
