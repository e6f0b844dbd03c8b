"""Prompt bytes of every named template, written out; Jinja templates; which bytes are trained on."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.core.config import evolve
from cascadevl.core.errors import CheckpointError, ConfigError, MessageError
from cascadevl.core.messages import Conversation
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.template import TEMPLATES, THINKING, find_template, render, to_jinja, with_tokens

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
C = (
    "You are InternVL, a large language model trained by Shanghai AI Laboratory.\nKnowledge cutoff: 2024-06\n"
    "Current date: 2025-08-06\n\nReasoning: low\n\n"
    "# Valid channels: final. Channel must be included for every message."
)
EXPECTED["internvl3_5_gpt_oss"] = (
    f"<|start|>system<|message|>{C}<|end|><|start|>user<|message|>What is it?<|end|><|start|>assistant",
    f"<|start|>system<|message|>{C}<|end|><|start|>user<|message|><IMG_CONTEXT>\nWhat is it?<|end|><|start|>assistant",
    "<|start|>system<|message|>Be brief.<|end|>"
    "<|start|>user<|message|>Image-1: <IMG_CONTEXT>\nImage-2: <IMG_CONTEXT>\nWhich?<|end|>"
    "<|start|>assistant<|channel|>final<|message|>The second.<|end|>"
    "<|start|>user<|message|><IMG_CONTEXT>\nAnd now?<|end|><|start|>assistant",
)
EXPECTED["internvl_zh"] = (
    "</s><human>: What is it?</s><bot>:",
    "</s><human>: <IMG_CONTEXT>\nWhat is it?</s><bot>:",
    "Be brief.</s><human>: Image-1: <IMG_CONTEXT>\nImage-2: <IMG_CONTEXT>\nWhich?</s><bot>: The second. "
    "<human>: <IMG_CONTEXT>\nAnd now?</s><bot>:",
)

THOUGHT = [*QUESTION, {"role": "assistant", "content": "<think>\nTwo ears.\n</think>\n\nA cat.\n"}]
EXPECTED_THOUGHT = {
    "internvl2_5": f"<|im_start|>system\n{B}<|im_end|>\n<|im_start|>user\nWhat is it?<|im_end|>\n"
    "<|im_start|>assistant\n<think>\nTwo ears.\n</think>\n\nA cat.\n<|im_end|>\n",
    "Hermes-2": f"<|im_start|>system\n{A}<|im_end|><|im_start|>user\nWhat is it?<|im_end|>"
    "<|im_start|>assistant\n<think>\nTwo ears.\n</think>\n\nA cat.\n<|im_end|>",
    "phi3-chat": f"<|system|>\n{A}<|end|><|user|>\nWhat is it?<|end|>"
    "<|assistant|>\n<think>\nTwo ears.\n</think>\n\nA cat.\n<|end|>",
    "internvl3_5_gpt_oss": f"<|start|>system<|message|>{C}<|end|><|start|>user<|message|>What is it?<|end|>"
    "<|start|>assistant<|channel|>analysis<|message|>Two ears.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>A cat.<|return|>",
    "internvl_zh": "</s><human>: What is it?</s><bot>: <think>\nTwo ears.\n</think>\n\nA cat.\n ",
}
EXPECTED_THOUGHT["internlm2-chat"] = EXPECTED_THOUGHT["Hermes-2"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_have_the_official_bytes(name: str) -> None:
    for messages, expected in zip((QUESTION, ONE_PICTURE, TURNS), EXPECTED[name], strict=True):
        assert _prompt(messages, Spec(template=name)) == expected
    assert _prompt(THOUGHT, Spec(template=name)) == EXPECTED_THOUGHT[name]


@pytest.mark.parametrize("name", TEMPLATES)
def test_jinja_made_of_a_template_renders_the_same_bytes(name: str) -> None:
    spec = Spec(template=name)
    jinja = evolve(spec, template="jinja", jinja=to_jinja(spec))
    for messages, expected in zip((QUESTION, ONE_PICTURE, TURNS), EXPECTED[name], strict=True):
        assert _prompt(messages, jinja) == expected
    assert _prompt(THOUGHT, jinja) == EXPECTED_THOUGHT[name]


SAID = st.lists(st.sampled_from(["<think>", "</think>", "a", " ", "\n", "{{ b }}", '"', "漢"]), max_size=6).map("".join)


@given(
    name=st.sampled_from(sorted(TEMPLATES)),
    said=st.lists(st.tuples(SAID, st.booleans(), SAID), min_size=1, max_size=3),
    ends_with_answer=st.booleans(),
)
def test_jinja_renders_any_conversation_as_we_do(name: str, said: list[Any], ends_with_answer: bool) -> None:
    messages: list[dict[str, Any]] = []
    for question, shown, answer in said:
        messages.append(_user(*[PICTURE] * shown, "Q" + question))
        messages.append({"role": "assistant", "content": answer})
    spec = Spec(template=name)
    messages = messages if ends_with_answer else messages[:-1]
    assert _prompt(messages, evolve(spec, template="jinja", jinja=to_jinja(spec))) == _prompt(messages, spec)


def test_answers_of_gpt_oss_are_trained_on_with_their_channels() -> None:
    """`<|end|>` closes an answer that is past, but is not what the model is to say behind one."""
    messages = [*TURNS, {"role": "assistant", "content": "<think>Hm.</think>Nothing. "}]
    spans = render(Conversation.parse(messages), Spec(template="internvl3_5_gpt_oss"))
    assert [span.text for span in spans if span.trained] == [
        "<|channel|>final<|message|>The second.",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Nothing.<|return|>",
    ]


def test_each_template_stops_at_its_own_token() -> None:
    assert {name: template.stop for name, template in TEMPLATES.items()} == {
        "internvl2_5": "<|im_end|>",
        "Hermes-2": "<|im_end|>",
        "internlm2-chat": "<|im_end|>",
        "phi3-chat": "<|end|>",
        "internvl3_5_gpt_oss": "<|return|>",
        "internvl_zh": "</s>",
    }


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


CLOSED = [name for name in TEMPLATES if name not in ("internvl3_5_gpt_oss", "internvl_zh")]


@pytest.mark.parametrize("spec", [*(Spec(template=name) for name in CLOSED), _jinja(CHATML)], ids=[*CLOSED, "jinja"])
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


def test_a_template_that_prints_the_bos_does_not_double_it() -> None:
    """The processor puts it in front; transformers adds none to a prompt that begins with it."""
    spec = _jinja("{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}{{ eos_token }}")
    messages = [{"role": "user", "content": "Hi."}]
    assert _prompt(messages, evolve(spec, bos="<s>")) == _prompt(messages, spec) == "[Hi.]"


def test_a_template_is_told_the_tokens_it_asks_for_and_is_else_as_it_was() -> None:
    source = "\n{{- bos_token }}{% for m in messages %}[{{ m.content }}]{{ eos_token }}{% endfor %}"
    told = with_tokens(source, bos_token="<s>", eos_token='"</s>')
    messages = [{"role": "user", "content": "Hi."}]
    assert _prompt(messages, _jinja(told)) == '<s>[Hi.]"</s>'
    assert _prompt(messages, evolve(_jinja(told), bos="<s>")) == '[Hi.]"</s>'
    assert with_tokens("\nno tokens", bos_token="<s>", eos_token=None) == "\nno tokens"
    assert _prompt(messages, _jinja(with_tokens("\n{{ eos_token }}", eos_token="x"))) == "\nx"


def test_an_unknown_template_is_refused_with_the_known() -> None:
    with pytest.raises(CheckpointError, match=r"Unknown chat template 'vicuna'. Supported: internvl2_5, Hermes-2"):
        find_template("vicuna")


@given(st.lists(st.text(max_size=10), min_size=1, max_size=5))
def test_texts_split_into_parts_are_the_same_prompt(texts: list[str]) -> None:
    if "".join(texts).strip():
        assert _prompt([_user(*texts)], Spec()) == _prompt([_user("".join(texts))], Spec())
