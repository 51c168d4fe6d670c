"""`GradELLM.explain` with chats as they are, and with a text that could have been written instead."""

import pytest
import torch

from gradellm_hf import Explanation, GradELLM, GradELLMConfig, InvalidInputError, explain_dataset, explain_sequences
from tests.support.small_llama import assert_same_heatmaps, small_llama
from tests.support.tiny_tokenizers import byte_level_bpe
from tests.text.test_segments import CHATML

CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?"}]
GREEDY = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture(scope="module")
def explainer():
    return GradELLM(small_llama(vocab_size=len(byte_level_bpe())), byte_level_bpe())


def test_an_explained_chat_knows_its_messages(explainer, tmp_path):
    one, two = explainer.explain([CHAT, CHAT[1:]], chat_template=CHATML, **GREEDY)
    assert [(segment["name"], one.text[segment["start"] : segment["end"]]) for segment in one.segments] == [
        ("1. system", "Be kind."),
        ("2. user", "Who?"),
    ]
    assert [segment["name"] for segment in two.segments] == ["1. user"]
    assert explainer.explain("Who?", **GREEDY).segments is None
    units = one.aggregate("message")
    assert [name for name in units.unit_names[: units.prompt_length] if name] == ["1. system", "2. user"]
    explanations = explain_dataset(explainer, [CHAT], tmp_path / "job", chat_template=CHATML, **GREEDY)
    assert explanations[0].segments == one.segments


def test_options_of_the_template_reach_it(explainer):
    tool = {"type": "function", "function": {"name": "weather", "description": "Of a city."}}
    explanation = explainer.explain(CHAT, chat_template=CHATML, tools=[tool], enable_thinking=True, **GREEDY)
    assert [segment["name"] for segment in explanation.segments] == ["tool: weather", "1. system", "2. user"]
    assert explanation.sources("message", of="segment")[0].name == "thinking"


def test_an_answer_that_thinks_and_calls_a_tool_is_explained_by_message_and_segment(explainer):
    tool = {"type": "function", "function": {"name": "weather", "description": "Of a city."}}
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    chat = [
        {"role": "user", "content": "Rain in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "Sun."},
    ]
    target = "<think>\nSo no rain.\n</think>\n\nNo. <tool_call>{}</tool_call>"
    explanation = explainer.explain(chat, target, chat_template=CHATML, tools=[tool])
    parts = explanation.sources("message", of="segment")
    assert [(part.name, part.text) for part in parts] == [("thinking", "So no rain."), ("answer", "No."), ("tool call", "{}")]
    messages = {"tool: weather", "1. user", "2. assistant", "3. tool"}
    for part in parts:
        assert {source.name for source in part.sources} <= messages
        assert sum(source.share for source in part.sources) == pytest.approx(1)
    assert {source.name for source in explanation.sources("message", of="answer")[0].sources} == messages
    grouped = explanation.aggregate("message")
    written = grouped.unit_names[grouped.prompt_length :]
    assert [name for name in written if name] == ["thinking", "answer", "tool call"]
    assert grouped.attributions[written.index("answer"), grouped.prompt_length + written.index("thinking")] > 0


def test_streaming_gives_what_explaining_gives(explainer):
    whole = explainer.explain(CHAT, chat_template=CHATML, **GREEDY)
    for step in explainer.stream(CHAT, chat_template=CHATML, **GREEDY):
        assert_same_heatmaps(step.attributions[0], whole.attributions[step.step, : step.attributions.shape[1]])
    assert step.step == 3
    with pytest.raises(InvalidInputError, match="Give a text or a chat"):
        explainer.stream([CHAT])


def test_a_foil_is_contrasted_at_the_first_token_that_differs(explainer):
    tokenizer = explainer.tokenizer
    explanation = explainer.explain("The capital is", " qz7", foil=" qx7")
    prompt = tokenizer("The capital is")["input_ids"]
    chosen, other = tokenizer(" qz7")["input_ids"], tokenizer(" qx7")["input_ids"]
    step = next(i for i, pair in enumerate(zip(chosen, other)) if pair[0] != pair[1])
    assert step > 0
    config = GradELLMConfig(target="contrast", contrast_token_ids=other[step], positive_only=False, positive_part="layer")
    sequence = torch.tensor([[*prompt, *chosen[: step + 1]]])
    expected = explain_sequences(explainer, sequence, sequence.shape[1] - 1, explain_config=config)
    assert explanation.token_ids == sequence[0].tolist()
    assert_same_heatmaps(explanation.attributions, expected.attributions[0])
    torch.testing.assert_close(explanation.target_scores, expected.target_scores[0])
    assert (explanation.attributions < 0).any()
    assert explanation.foil == tokenizer.decode(other[step])
    assert f"rather than {explanation.foil}" in explanation.render()
    assert f"rather than {explanation.foil}" in str(explanation.sources(of="answer"))


def test_what_the_model_writes_is_contrasted_with_the_foil_of_its_prompt(explainer, tmp_path):
    prompts = ["The capital is", "Paris and Rome"]
    written = explainer.explain(prompts, **GREEDY)
    contrasts = explainer.explain(prompts, foil=[" x", " y"], **GREEDY)
    for alone, contrast in zip(written, contrasts):
        assert contrast.tokens[-1] == alone.tokens[contrast.prompt_length]
        assert len(contrast.attributions) == 1
    contrasts[0].save(tmp_path / "file")
    assert Explanation.load(tmp_path / "file").foil == contrasts[0].foil


def test_a_begun_answer_is_a_message(explainer):
    contrast = explainer.explain(CHAT, " qz7", foil=" qx7", chat_template=CHATML)
    assert [segment["name"] for segment in contrast.segments] == ["1. system", "2. user", "begun answer"]


def test_a_foil_that_is_no_other_text_is_refused(explainer):
    with pytest.raises(InvalidInputError, match="nothing to contrast"):
        explainer.explain("The capital is", " Rome", foil=" Rome")
    with pytest.raises(InvalidInputError, match="`foil` must be a non-empty text for each of the 1 prompts"):
        explainer.explain("The capital is", " Rome", foil=["a", "b"])


def test_a_foil_keeps_what_the_configuration_says(explainer):
    config = GradELLMConfig(layers=1)
    contrast = explainer.explain("The capital is", " Rome", foil=" Oslo", explain_config=config)
    assert contrast.layers == [max(contrast.layers)]
    assert not (contrast.attributions < 0).any()


def test_an_output_knows_the_messages_of_the_chats_that_it_is_given(explainer):
    """As what `explain` returns does; the prompts may have been encoded by the tokenizer itself."""
    tokenizer, chats = explainer.tokenizer, [CHAT, CHAT[1:]]
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True, "padding": True}
    inputs = tokenizer.apply_chat_template(chats, chat_template=CHATML, **options)
    out = explainer.generate(**inputs, **GREEDY)
    expected = explainer.explain(chats, chat_template=CHATML, **GREEDY)
    found = out.explanations(tokenizer, chats, chat_template=CHATML)
    assert [row.segments for row in found] == [row.segments for row in expected]
    assert found[0].sources("message").to_dict() == expected[0].sources("message").to_dict()
    assert [row.segments for row in out.explanations(tokenizer)] == [None, None]
    assert [row.segments for row in out.explanations(tokenizer, ["a text", CHAT[1:]], chat_template=CHATML)] == [
        None,
        expected[1].segments,
    ]
    inputs = {name: x[:1] for name, x in inputs.items()}
    two = explainer.generate(**inputs, num_return_sequences=2, do_sample=True, max_new_tokens=2)
    assert [row.segments for row in two.explanations(tokenizer, CHAT, chat_template=CHATML)] == 2 * [expected[0].segments]


@pytest.mark.parametrize(
    ("chats", "options", "message"),
    [
        ([CHAT[1:], CHAT], {}, "The prompt of row 0 is not what the template makes of its chat"),
        ([CHAT, CHAT[1:]], {"tools": [{"type": "function", "function": {"name": "weather"}}]}, "The prompt of row 0"),
        ([CHAT, CHAT, CHAT], {}, "`chats` must be a list with the chat .or text. of each prompt, and 2 rows"),
        ("Who?", {}, "`chats` must be a list"),
        ([CHAT, CHAT[1:]], {"toolz": []}, "A chat template is given .*, not .'toolz'."),
    ],
)
def test_chats_that_the_prompts_were_not_made_of_are_refused(explainer, chats, options, message):
    tokenizer = explainer.tokenizer
    given = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True, "padding": True}
    inputs = tokenizer.apply_chat_template([CHAT, CHAT[1:]], chat_template=CHATML, **given)
    out = explainer.generate(**inputs, max_new_tokens=2)
    with pytest.raises(InvalidInputError, match=message):
        out.explanations(tokenizer, chats, chat_template=CHATML, **options)


def test_some_steps_are_those_of_the_answer_or_of_the_target(explainer):
    whole = explainer.explain(CHAT, chat_template=CHATML, **GREEDY)
    some = explainer.explain(CHAT, chat_template=CHATML, steps=[-1], **GREEDY)
    assert some.explained == [False, False, False, True]
    assert_same_heatmaps(some.attributions[-1:], whole.attributions[-1:])
    targets = explainer.explain(["Who?", "The capital is"], [" it is", " qz7 and more"], steps=slice(-2, None))
    assert [sum(row.explained) for row in targets] == [2, 2]
    assert all(row.explained[-2:] == [True, True] for row in targets)
    with pytest.raises(InvalidInputError, match="Leave `steps` out"):
        explainer.explain("Who?", " qz7", foil=" qx7", steps=[0])


def test_to_find_where_a_foil_differs_nothing_is_explained(explainer):
    calls = []
    hook = explainer.model.register_forward_hook(lambda module, args, output: calls.append(output.logits.requires_grad))
    explainer.explain("Who?", foil=" qx7", **GREEDY)  # looks at the model for the first time
    calls.clear()
    explainer.explain("Who?", foil=" qx7", **GREEDY)
    hook.remove()
    assert sum(calls) == 1
