import pytest
from framed_tokenizers import TOKENIZERS
from tokenized_groups import BUILTIN

from rm_ray.data.tokens.tokenizer import load_tokenizer
from rm_ray.errors import InputError
from rm_ray.serving.template_frame import TemplateFrame

FRAMES = {name: TemplateFrame.of(tokenizer) for name, tokenizer in TOKENIZERS.items()}


@pytest.mark.parametrize(
    ("name", "bos", "opening", "ending", "marks"),
    [
        ("builtin", ("", 0), "<|", "<|end|>", (7,)),
        ("builtin with BOS", ("<|begin|>", 1), "<|", "<|end|>", (7,)),
        ("without an end of turn", ("", 0), "<|", "", ()),
        ("Llama 3's", ("<|begin_of_text|>", 1), "<|start_header_id|>", "<|eot_id|>", (10,)),
        ("Qwen's", ("", 0), "<|im_start|>", "<|im_end|>\n", (10,)),
        ("SmolLM2's, whose BOS opens every turn", ("<|im_start|>", 1), "system", "<|im_end|>\n",
         (10,)),
        ("Llama 2's", ("<s>", 1), "[INST]", "</s>", (4,)),
    ],
)  # fmt: skip
def test_a_frame_is_found_from_rendered_conversations(name, bos, opening, ending, marks):
    frame = FRAMES[name]
    assert (frame.bos, frame.num_bos) == bos
    assert (frame.opening, frame.ending, frame.marks) == (opening, ending, marks)


def test_a_text_of_another_template_is_refused_with_what_to_send():
    with pytest.raises(InputError) as caught:
        FRAMES["Qwen's"].complete("<|start_header_id|>user<|end_header_id|>\n\nHi")
    for said in ("'<|start_header_id|>user", "'<|im_start|>'", "apply_chat_template", "token ids"):
        assert said in str(caught.value)


def test_a_text_that_ends_with_a_token_that_the_template_never_writes_is_refused():
    frame = FRAMES["Llama 3's"]
    text = "<|start_header_id|>assistant<|end_header_id|>\n\nHi<|eot_id|>"
    assert frame.complete(text) == f"<|begin_of_text|>{text}"
    assert frame.complete(text.removesuffix("<|eot_id|>")) == f"<|begin_of_text|>{text}"
    with pytest.raises(InputError, match=r"ends with '<\|end_of_text\|>'.* with '<\|eot_id\|>'"):
        frame.complete(text.replace("<|eot_id|>", "<|end_of_text|>"))


def test_part_of_an_end_of_turn_token_is_content():
    frame = FRAMES["Llama 2's"]
    assert frame.complete("[INST] Why? [/INST] a <") == "<s>[INST] Why? [/INST] a <</s>"


def test_a_completed_text_stays_as_it_is():
    for name, frame in FRAMES.items():
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
        text = TOKENIZERS[name].apply_chat_template(messages, tokenize=False)
        assert frame.complete(text) == text == frame.complete(frame.complete(text))


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{{ messages | length }}",
    ],
)
def test_a_template_without_a_frame_takes_any_text_as_it_is(template: str):
    frame = TemplateFrame.of(load_tokenizer("builtin", chat_template=template))
    assert frame.complete("Snow is white") == "Snow is white"
    assert frame.without_end("So.<|end|>") == "So.<|end|>"


def test_a_bos_token_that_the_template_writes_only_sometimes_is_left_alone():
    tokenizer = TOKENIZERS["Llama 2's"]
    template = (
        "{% if messages[0]['role'] == 'system' %}<s>{% endif %}" + "a{{ messages[-1].content }}"
    )
    own = tokenizer.chat_template
    try:
        tokenizer.chat_template = template
        frame = TemplateFrame.of(tokenizer)
    finally:
        tokenizer.chat_template = own
    assert (frame.bos, frame.num_bos, frame.most_bos) == ("<s>", 0, 1)
    assert [frame.complete(text) for text in ("a", "<s>a", "<s><s>a")] == ["a", "<s>a", "<s>a"]


CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]

NAMES_USERS = [name for name, frame in FRAMES.items() if frame.headers[1]]


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("blanks", [" ", "\n\n"])
def test_blanks_before_a_text_are_left_out(name: str, blanks: str):
    text = TOKENIZERS[name].apply_chat_template(CHAT, tokenize=False)
    frame = FRAMES[name]
    assert frame.complete(blanks + text) == text
    assert frame.complete(blanks + text.removeprefix(frame.bos)) == text


@pytest.mark.parametrize("name", [name for name, frame in FRAMES.items() if frame.marks])
@pytest.mark.parametrize("between", ["", "\n"])
def test_the_end_of_the_last_turn_is_there_once(name: str, between: str):
    text = TOKENIZERS[name].apply_chat_template(CHAT, tokenize=False)
    end = FRAMES[name].end_mark
    for times in (1, 2, 10_000):
        assert FRAMES[name].complete(text.rstrip() + (between + end) * times) == text


def test_a_template_whose_empty_response_doubles_the_end_keeps_both():
    template = "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"
    frame = TemplateFrame.of(load_tokenizer("builtin", chat_template=template))
    assert frame.complete("Why?<|end|><|end|>") == "Why?<|end|><|end|>"


@pytest.mark.parametrize("name", NAMES_USERS)
@pytest.mark.parametrize("turns", [1, 3])
def test_a_text_that_ends_with_the_users_turn_is_refused(name: str, turns: int):
    text = TOKENIZERS[name].apply_chat_template([*CHAT, CHAT[0]][-turns:], tokenize=False)
    with pytest.raises(InputError, match="without a turn of the assistant after it"):
        FRAMES[name].complete(text)


def test_the_user_is_told_from_the_assistant_by_tokens_alone():
    assert len(NAMES_USERS) == 5
    assert FRAMES["Qwen's"].headers == ("<|im_start|>assistant", "<|im_start|>user")
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template = plain + "{% if add_generation_prompt %}assistant: {% endif %}"
    frame = TemplateFrame.of(load_tokenizer("builtin", chat_template=template))
    assert frame.headers == ("", "")
    assert frame.complete("user: Hi\nassistant: Ho\nuser: Bye\n").endswith("user: Bye\n")


def test_an_end_of_turn_token_is_taken_off_a_response_once():
    frame = TemplateFrame.of(BUILTIN)
    assert frame.without_end("So.<|end|>") == "So."
    assert frame.without_end("So.<|end|>\n") == "So."
    assert frame.without_end("So.<|end|><|end|>") == "So.<|end|>"
    assert frame.without_end("So. \n") == "So. \n"
