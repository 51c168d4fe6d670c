"""Models that read images: exact against an independent reference, and a heatmap over the patches of an image."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from gradellm_hf import (
    ExplainGenerateOutput,
    GradELLMConfig,
    InvalidInputError,
    UnsupportedArchitectureError,
    explain_generate,
    explain_sequences,
    verify,
)
from gradellm_hf.architecture.facts import look_at
from gradellm_hf.sequences.explained import extended_prompt
from tests.support.architectures.lifted_precision import lifted_precision
from tests.support.architectures.step_reference import _heatmap, record_attention
from tests.support.tiny_multimodal import CONFIGURATIONS, GRID, IMAGE, VISION_START, Prompt, prompt_with_images, tiny_multimodal
from tests.support.versions import CACHE, TAKES_MODALITIES, since

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("error::gradellm_hf.GradELLMWarning"),  # that another engine was needed
]

TOLERANCE, STEPS = 1e-9, 4
CONFIG = GradELLMConfig(positive_only=False, output_layer_attributions=True)
GREEDY = {"max_new_tokens": STEPS, "do_sample": False, "suppress_tokens": [IMAGE, VISION_START]}
#: One image; two images with text between them; none. The rows are of different lengths.
BATCH = [[2, 5], [3, 1, 3], [9]]

#: In 5.0 to 5.17, `generate` gives the first copy of a row the images of the second: its logits are not those of the row alone.
copies_with_images = since("5.24", "right images for the copies of a row that has several")
#: In 5.0 to 5.17, `generate` passes none on with any of the chunks: the logits are the same whatever the image.
images_in_chunks = since("5.24", "images in a prompt that is read in chunks")

model_of = functools.cache(tiny_multimodal)


@lifted_precision()
def expected_heatmaps(name: str, prompt: Prompt, sequences: Tensor) -> Tensor:
    """Signed heatmaps of the text layers, `[R, L, N, S]`: one forward pass over all of the text and the images per step.

    There is no cache, and the model works out for itself what it wants to know of positions.

    Args:
        prompt: Has a row for each of `sequences`.
    """
    model = model_of(name, "eager")
    rows, prompt_length = prompt.image_mask.shape
    steps = []
    for end in range(prompt_length, sequences.shape[1]):
        inputs = {**prompt.inputs, "input_ids": sequences[:, :end], "use_cache": False}
        for per_position, generated in (("attention_mask", 1), ("token_type_ids", 0), ("mm_token_type_ids", 0)):
            if per_position in inputs:
                tail = inputs[per_position].new_full((rows, end - prompt_length), generated)
                inputs[per_position] = torch.cat([inputs[per_position], tail], dim=1)
        if "qwen" not in name or not prompt.image_mask.any():  # else the positions follow the images
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with record_attention(rows) as calls:
            logits = model(**inputs).logits[:, -1]
        calls = calls[-model.config.text_config.num_hidden_layers :]  # the vision layers come first
        gradients = torch.autograd.grad(logits.gather(1, sequences[:, end, None]).sum(), [call.output for call in calls])
        length = sequences.shape[1]
        heatmaps = [_heatmap(call, gradient, rows, length, end) for call, gradient in zip(calls, gradients, strict=True)]
        steps.append(torch.stack(heatmaps, dim=1))
    return torch.stack(steps, dim=2)


def explained(model: PreTrainedModel, prompt: Prompt, **options: Any) -> ExplainGenerateOutput:
    with lifted_precision():
        return explain_generate(model, **prompt.inputs, **{"explain_config": CONFIG, **GREEDY, **options})


def assert_exact(out: ExplainGenerateOutput, name: str, prompt: Prompt) -> None:
    expected = expected_heatmaps(name, prompt, out.sequences)
    assert out.layer_attributions.shape == expected.shape
    error = (out.layer_attributions - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE
    assert not out.attributions[:, :, : out.prompt_length][~out.prompt_mask[:, None].expand(-1, STEPS, -1)].any()


def copies_of(name: str, row: list[int], copies: int) -> Prompt:
    """The prompt with one row `copies` times, each with its images."""
    single = prompt_with_images(name, [row])
    inputs = {key: value.repeat(copies, *[1] * (value.ndim - 1)) for key, value in single.inputs.items()}
    return Prompt(inputs, single.image_mask.repeat(copies, 1))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_batch_of_texts_with_and_without_images_is_explained_exactly(name):
    model, prompt = model_of(name), prompt_with_images(name, BATCH)
    out = explained(model, prompt)
    with lifted_precision():
        assert torch.equal(out.sequences, model.generate(**prompt.inputs, **GREEDY))
    assert torch.equal(out.image_mask, prompt.image_mask)
    assert_exact(out, name, prompt)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_only_the_layers_of_the_text_decoder_count(name):
    layers = look_at(model_of(name)).attention
    decoder = model_of(name).get_decoder()
    assert [id(layer) for layer in layers] == [id(layer.self_attn) for layer in decoder.layers]
    assert verify(model_of(name)) < 1e-6


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_stepwise_engine_says_the_same(name):
    model, prompt = model_of(name), prompt_with_images(name, BATCH)
    stepwise = GradELLMConfig(positive_only=False, output_layer_attributions=True, engine="stepwise")
    actual = explained(model, prompt, explain_config=stepwise)
    assert_exact(actual, name, prompt)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen3_vl", "gemma3", "mistral3", "idefics3"])
def test_several_sequences_for_a_prompt_are_explained_exactly(name):
    """Three samples of one prompt; a prompt that is longer than the window is read again, with three copies of its image."""
    prompt = prompt_with_images(name, [[3, 4]])
    torch.manual_seed(0)
    out = explained(model_of(name), prompt, do_sample=True, num_return_sequences=3)
    assert len(out.sequences.unique(dim=0)) == 3
    assert_exact(out, name, copies_of(name, [3, 4], 3))
    assert torch.equal(out.image_mask, prompt.image_mask.expand(3, -1))


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen3_vl", "gemma3", "mistral3", "idefics3"])
@pytest.mark.parametrize("returned", [1, 2])
def test_beams_are_explained_exactly(name, returned):
    prompt = prompt_with_images(name, [[3, 4]])
    out = explained(model_of(name), prompt, num_beams=3, num_return_sequences=returned)
    assert_exact(out, name, copies_of(name, [3, 4], returned))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_heatmap_over_the_patches_of_an_image_can_be_drawn(name):
    prompt = prompt_with_images(name, [[2, 5], [4, 3]])
    out = explained(model_of(name), prompt, explain_config=GradELLMConfig(positive_part="layer"))
    expected = expected_heatmaps(name, prompt, out.sequences).clamp(min=0).sum(1)
    for row in range(2):
        patches = out.attributions[row, 0, : out.prompt_length][out.image_mask[row]].reshape(GRID[name])
        torch.testing.assert_close(patches, expected[row, 0][out.sequences[row] == IMAGE].view(GRID[name]).to(patches))
        assert patches.sum() > 0


@pytest.mark.parametrize(
    "name", ["qwen2_vl", "idefics3", *(pytest.param(name, marks=copies_with_images) for name in ("llava", "gemma3"))]
)
def test_beams_of_a_batch_find_the_images_of_their_own_rows(name):
    out = explained(model_of(name), prompt_with_images(name, BATCH), num_beams=2)
    assert_exact(out, name, prompt_with_images(name, BATCH))


@images_in_chunks
@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_a_prompt_read_in_chunks_is_explained_exactly(name):
    prompt = prompt_with_images(name, [[2, 9], [3, 2, 3]])
    assert_exact(explained(model_of(name), prompt, prefill_chunk_size=5), name, prompt)


@images_in_chunks
def test_token_types_of_a_prompt_read_in_chunks_are_put_together():
    """Gemma 3 gets those of all positions up to the end of a chunk."""
    model, prompt = tiny_multimodal("gemma3"), prompt_with_images("gemma3", [[2, 9]])
    for config in (model.config, model.config.text_config):
        config.sliding_window = 64
    for layer in model.get_decoder().layers:
        layer.self_attn.sliding_window = layer.self_attn.sliding_window and 64
    whole, chunked = (explained(model, prompt, prefill_chunk_size=size) for size in (None, 7))
    torch.testing.assert_close(chunked.layer_attributions, whole.layer_attributions, rtol=0, atol=1e-10)


@images_in_chunks
def test_images_that_were_read_in_chunks_and_have_left_the_window_are_refused():
    with pytest.raises(InvalidInputError, match="leave `prefill_chunk_size`") as error:
        explained(model_of("gemma3"), prompt_with_images("gemma3", [[2, 9]]), prefill_chunk_size=7)
    assert error.value.generated.sequences.shape == (1, 15 + STEPS)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "qwen3_vl"])
def test_a_second_turn_on_the_cache_of_the_first_is_explained_exactly(name):
    """The image is only in the cache, and the positions of what follows depend on it."""
    model, prompt = tiny_multimodal(name), prompt_with_images(name, [[2, 5]])
    first = explained(model, prompt, return_dict_in_generate=True)
    more = torch.tensor([[7, 8, 9]])
    text = torch.cat([first.sequences, more], dim=1)
    mask = torch.ones_like(text)
    with lifted_precision():
        out = explain_generate(model, text, attention_mask=mask, explain_config=CONFIG, **{CACHE: first.cache}, **GREEDY)
    whole = {**prompt.inputs, "input_ids": text, "attention_mask": mask}
    if "mm_token_type_ids" in whole:
        whole["mm_token_type_ids"] = (text == IMAGE).int()
    assert_exact(out, name, Prompt(whole, text == IMAGE))


@pytest.mark.parametrize("name", ["gemma3", "mistral3"])
def test_a_second_turn_of_text_that_has_left_the_window_is_explained_exactly(name):
    """It is read again, with the positions of the first turn."""
    model, prompt = model_of(name), prompt_with_images(name, [[9], [6]])
    first = explained(model, prompt, return_dict_in_generate=True)
    text = torch.cat([first.sequences, torch.tensor([[7, 8, 9], [10, 11, 12]])], dim=1)
    mask = torch.nn.functional.pad(prompt.inputs["attention_mask"], (0, text.shape[1] - 9), value=1)
    whole = Prompt({"input_ids": text, "attention_mask": mask}, text == IMAGE)
    assert_exact(explained(model, whole, **{CACHE: first.cache}), name, whole)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3"])
def test_a_static_cache_is_explained_exactly(name):
    prompt = prompt_with_images(name, [[2, 5], [3, 3]])
    assert_exact(explained(model_of(name), prompt, cache_implementation="static"), name, prompt)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3"])
def test_inference_mode_changes_nothing(name):
    prompt = prompt_with_images(name, [[2, 5]])
    with torch.inference_mode():
        out = explained(model_of(name), prompt)
    assert torch.equal(out.layer_attributions, explained(model_of(name), prompt).layer_attributions)


def test_frames_of_a_video_are_marked_and_explained_exactly():
    model, prompt = model_of("qwen2_vl"), prompt_with_images("qwen2_vl", [[2, 5]])
    inputs = dict(prompt.inputs)
    inputs["pixel_values_videos"], inputs["video_grid_thw"] = inputs.pop("pixel_values"), inputs.pop("image_grid_thw")
    inputs["input_ids"] = inputs["input_ids"].masked_fill(prompt.image_mask, model.config.video_token_id)
    if TAKES_MODALITIES:
        inputs["mm_token_type_ids"] = 2 * inputs["mm_token_type_ids"]
    video = Prompt(inputs, prompt.image_mask)
    out = explained(model, video, suppress_tokens=[IMAGE, VISION_START, model.config.video_token_id])
    assert torch.equal(out.image_mask, prompt.image_mask)
    assert_exact(out, "qwen2_vl", video)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_prompt_that_ends_in_an_image_is_refused(name):
    with pytest.raises(InvalidInputError, match=r"row\(s\) \[1\] ends in an image"):
        explained(model_of(name), prompt_with_images(name, [[2, 5], [3, 0]]))


@since("5.17", "positions of new tokens among what `generate` hands on")
def test_what_is_known_of_a_prompts_positions_goes_on_over_the_new_tokens_as_in_generate():
    """The last token of the prompt belongs to a picture, as its types say; the new ones are text."""
    known = {
        "position_ids": torch.tensor([[0, 0, 1, 5], [3, 4, 5, 6]]),
        "token_type_ids": torch.tensor([[0, 0, 1, 1], [1, 0, 0, 0]]),
        "mm_token_type_ids": torch.tensor([[0, 0, 2, 1], [1, 0, 0, 2]]),
    }
    expected = dict(known)
    for _ in range(STEPS):
        expected = model_of("qwen2_vl")._update_model_kwargs_for_generation({}, expected)
    ids, step_mask = torch.ones(2, 4 + STEPS, dtype=torch.long), torch.ones(2, STEPS, dtype=torch.bool)
    actual = extended_prompt(ids, 4, STEPS, step_mask, None, known).per_position
    assert actual.keys() == known.keys()
    for name in known:
        assert torch.equal(actual[name], expected[name])


def test_a_prompt_that_attends_in_both_directions_is_refused():
    with pytest.raises(UnsupportedArchitectureError, match="`paligemma` attends in both directions"):
        explained(tiny_multimodal("paligemma"), prompt_with_images("llava", [[2, 5]]))


def test_text_with_images_is_refused_where_there_are_none_to_go_with_it():
    prompt = prompt_with_images("llava", [[2, 5]])
    with pytest.raises(InvalidInputError, match="Use `explain_generate`"):
        explain_sequences(model_of("llava"), prompt.inputs["input_ids"], 9)


def test_a_model_of_images_explains_text_that_is_given():
    text = prompt_with_images("qwen2_vl", [[12], [9]])
    out = explained(model_of("qwen2_vl"), text)
    given = explain_sequences(model_of("qwen2_vl"), out.sequences, 12, text.inputs["attention_mask"], explain_config=CONFIG)
    assert_exact(out, "qwen2_vl", text)
    torch.testing.assert_close(given.attributions, out.attributions.float(), rtol=1e-4, atol=1e-4)
    assert not out.image_mask.any()


def test_the_id_of_an_image_may_lie_beyond_the_vocabulary():
    model, prompt = tiny_multimodal("gemma3"), prompt_with_images("gemma3", BATCH)
    expected = explain_generate(model, **prompt.inputs, **GREEDY)
    beyond = model.config.text_config.vocab_size + 3
    model.config.image_token_id = beyond
    ids = prompt.inputs["input_ids"].masked_fill(prompt.image_mask, beyond)
    out = explain_generate(model, **{**prompt.inputs, "input_ids": ids}, **GREEDY)
    assert torch.equal(out.image_mask, expected.image_mask)
    assert torch.equal(out.sequences[:, -STEPS:], expected.sequences[:, -STEPS:])
    torch.testing.assert_close(out.attributions, expected.attributions)
    with pytest.raises(InvalidInputError, match=f"holds the token id {beyond + 1}"):
        explain_generate(model, **{**prompt.inputs, "input_ids": ids.masked_fill(prompt.image_mask, beyond + 1)}, **GREEDY)
