"""What the parts of a chat are, in whatever way its template writes it."""

import pytest

from gradellm_hf import InvalidInputError
from gradellm_hf.text.encoding import encode_prompt, template_options
from gradellm_hf.text.segments import chat_segments, placed, written_segments
from tests.support.tiny_tokenizers import byte_level_bpe

CHATML = (
    "{% if tools %}<|im_start|>system\nTools:\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe user friendly.<|im_end|>\n{% endif %}"
    "{% for document in documents or [] %}[{{ document.title }}] {{ document.text }}\n{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% set content = message.content or '' %}"
    "{% if '</think>' in content and not loop.last %}{{ content.split('</think>')[-1].strip() }}"
    "{% else %}{{ content | trim }}{% endif %}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)


def found(chat, template=CHATML, **options):
    """The names and texts of the segments of a chat."""
    tokenizer = byte_level_bpe()
    options = {"chat_template": template, **options}
    rendered = encode_prompt(tokenizer, chat, options)[0]
    segments = chat_segments(tokenizer, chat, rendered, template_options(tokenizer, chat, options))
    return segments and {segment["name"]: rendered[segment["start"] : segment["end"]] for segment in segments}


def user(text, role="user", **more):
    return {"role": role, "content": text, **more}


def test_messages_are_found_whatever_they_say():
    chat = [user("user"), user("  assistant \n", "assistant"), user("user\nuser <|im_end|>\n")]
    assert found(chat) == {"1. user": "user", "2. assistant": "assistant", "3. user": "user\nuser <|im_end|>"}
    assert found([user("[INST] a [/INST]"), user("b", "assistant"), user("c")], LLAMA_2) == {
        "1. user": "[INST] a [/INST]",
        "2. assistant": "b",
        "3. user": "c",
    }


def test_parts_of_a_content_are_one_message():
    template = "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{{ p.text }} {% endfor %}{% endfor %}"
    parts = [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]
    assert found([user(parts)], template) == {"1. user": "One. Two."}


def test_tools_documents_and_calls_are_found():
    tool = {"type": "function", "function": {"name": "weather", "description": 'The "weather" of a city.'}}
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    chat = [user("Rain?"), user(None, "assistant", tool_calls=[call]), user("Yes", "tool"), user("So?")]
    segments = found(chat, tools=[tool], documents=[{"title": "Map", "text": "Oslo is north."}, {"text": "Old."}])
    assert segments["document: Map"] == "Map] Oslo is north."
    assert segments["document 2"] == "Old."
    assert segments["tool: weather"].startswith('weather", "description"') or "weather" in segments["tool: weather"]
    assert "Oslo" in segments["2. assistant"]
    assert segments["3. tool"] == "Yes"


def test_thinking_of_earlier_turns_is_left_out_as_the_template_leaves_it_out():
    chat = [user("a"), user("<think>\nhm\n</think>\n\nYes.", "assistant"), user("b")]
    assert found(chat) == {"1. user": "a", "2. assistant": "Yes.", "3. user": "b"}


def test_a_function_is_a_tool():
    def weather(city: str) -> str:
        """The weather.

        Args:
            city: Its name.
        """
        return city

    assert "city" in found([user("Rain?")], tools=[weather])["tool: weather"]


def test_a_chat_that_ends_in_an_assistant_message_is_continued():
    tokenizer, chat = byte_level_bpe(), [user("a"), user("It is", "assistant")]
    assert encode_prompt(tokenizer, chat, {"chat_template": CHATML})[0].endswith("<|im_start|>assistant\nIt is")
    closed = encode_prompt(tokenizer, chat, {"chat_template": CHATML, "continue_final_message": False})[0]
    assert closed.endswith("It is<|im_end|>\n<|im_start|>assistant\n")
    assert found(chat)["2. assistant"] == "It is"


def test_options_of_a_template_need_a_chat_and_are_checked():
    tokenizer = byte_level_bpe()
    with pytest.raises(InvalidInputError, match="are for a chat template"):
        encode_prompt(tokenizer, "text", {"enable_thinking": True})
    with pytest.raises(InvalidInputError, match="`tools` must be a list"):
        encode_prompt(tokenizer, [user("a")], {"chat_template": CHATML, "tools": "weather"})
    call = user(None, "assistant", tool_calls=[{"function": {"name": "f"}}])
    with pytest.raises(InvalidInputError, match="no content to continue"):
        encode_prompt(tokenizer, [call], {"chat_template": CHATML, "continue_final_message": True})


def test_a_template_that_looks_into_the_text_has_no_structure():
    shouting = "{% for m in messages %}{{ m.content | upper }}!{{ m.content | length }}{% endfor %}"
    assert found([user("abc")], shouting) is None
    strict = (
        "{% for m in messages %}{% if m.content != 'abc' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    assert found([user("abc")], strict) is None


def test_segments_keep_their_place_where_decoding_changes_white_space():
    segment = {"name": "1. user", "role": "user", "start": 6, "end": 12}
    assert placed([segment], "[INST]a  b c[/INST]", " [INST] a b c [/INST]") == [{**segment, "start": 8, "end": 13}]
    assert placed([segment], "[INST]a  b c[/INST]", "something else") is None


@pytest.mark.parametrize(
    ("prompt", "written", "expected"),
    [
        ("Q ", " Yes. ", [("answer", "Yes.")]),
        ("Q ", "<think>\nhm\n</think>\n\nYes.", [("thinking", "hm"), ("answer", "Yes.")]),
        ("Q <think>\n", "hm</think>Yes.", [("thinking", "hm"), ("answer", "Yes.")]),
        ("Q ", "hm</think>Yes.", [("thinking", "hm"), ("answer", "Yes.")]),
        ("Q ", "<think>hm, cut off", [("thinking", "hm, cut off")]),
        (
            "Q ",
            'So:<tool_call>\n{"a": 1}\n</tool_call> Done',
            [("answer", "So:"), ("tool call", '{"a": 1}'), ("answer", "Done")],
        ),
        ("Q ", " ", []),
    ],
)
def test_thinking_and_calls_are_parts_of_what_is_written(prompt, written, expected):
    text = prompt + written
    segments = written_segments(text, len(prompt))
    assert [(segment["name"], text[segment["start"] : segment["end"]]) for segment in segments] == expected
