"""`ExplainGenerateOutput` as a `ModelOutput` of Transformers: a dataclass, a dict, a tuple and a pytree at once."""

import copy
import dataclasses
import io
import pickle

import pytest
import torch
from accelerate.utils import send_to_device
from torch.utils import _pytree as pytree
from transformers.utils import ModelOutput

from gradellm_hf import ExplainGenerateOutput, GradELLMConfig, InvalidInputError, explain_generate
from tests.support.small_llama import padded_prompts, small_llama
from tests.support.versions import CACHE

ALWAYS = (
    "sequences",
    "attributions",
    "step_mask",
    "prompt_length",
    "target_scores",
    "token_probabilities",
    "prompt_mask",
    "layers",
    "layer_names",
    "model_name",
)


@pytest.fixture(scope="module")
def output():
    config = GradELLMConfig(layers=[1, -1], output_layer_attributions=True)
    return explain_generate(
        small_llama(),
        **padded_prompts(),
        max_new_tokens=4,
        return_dict_in_generate=True,
        output_scores=True,
        explain_config=config,
    )


def assert_same(copied, output):
    assert type(copied) is ExplainGenerateOutput
    assert list(copied) == list(output)
    for name in output:
        assert getattr(copied, name) is copied[name]
        if isinstance(output[name], torch.Tensor):
            assert torch.equal(copied[name], output[name])
        elif name not in ("scores", CACHE):
            assert copied[name] == output[name]
    assert copied.image_mask is None
    assert all(map(torch.equal, copied.scores, output.scores))


@pytest.mark.parametrize("name", ALWAYS)
def test_an_output_without_a_field_that_all_have_is_refused_by_the_name_of_the_field(output, name):
    fields = {known: output[known] for known in ALWAYS if known != name}
    for made in (lambda: ExplainGenerateOutput(**fields), lambda: ExplainGenerateOutput(fields)):
        with pytest.raises(InvalidInputError, match=rf"ExplainGenerateOutput needs `{name}` too\."):
            made()


def test_everything_that_is_missing_is_named(output):
    with pytest.raises(InvalidInputError, match="needs `prompt_mask`, `layers`, `layer_names`, `model_name` too"):
        ExplainGenerateOutput(*(output[name] for name in ALWAYS[:6]))
    with pytest.raises(InvalidInputError, match=f"needs {', '.join(f'`{name}`' for name in ALWAYS)} too"):
        ExplainGenerateOutput()


def test_what_only_some_outputs_have_may_be_left_out(output):
    out = ExplainGenerateOutput(**{name: output[name] for name in ALWAYS})
    assert list(out) == list(ALWAYS)
    optional = {field.name for field in dataclasses.fields(out)} - set(ALWAYS)
    assert optional >= {"layer_attributions", "image_mask", "explain_config", "tokens", "scores", "logits", CACHE}
    assert all(getattr(out, name) is None for name in optional)


def test_fields_are_read_by_name_and_by_number_and_what_is_none_is_not_counted(output):
    assert output["attributions"] is output.attributions is output[1] is output.to_tuple()[1]
    assert output[:3] == (output.sequences, output.attributions, output.step_mask)
    assert "image_mask" not in output
    assert output.get("image_mask", 7) == 7
    with pytest.raises(KeyError):
        output["image_mask"]
    assert len(output.to_tuple()) == len(output) == len(list(output.items())) < len(dataclasses.fields(output))
    assert isinstance(output, ModelOutput)
    assert isinstance(output, dict)


def test_a_field_is_set_by_attribute_and_by_name(output):
    out = copy.copy(output)
    out.model_name = "another/model"
    out["layers"] = [0, 1]
    assert (out["model_name"], out.layers) == ("another/model", [0, 1])
    assert output.layers == [1, 4]


def test_an_output_is_made_of_a_dict_and_of_pairs(output):
    """As data-parallel wrappers and accelerate make one of its class."""
    assert_same(ExplainGenerateOutput(dict(output)), output)
    assert_same(ExplainGenerateOutput((name, value) for name, value in output.items()), output)


@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        dataclasses.replace,
        lambda out: pickle.loads(pickle.dumps(out)),
        lambda out: send_to_device(out, "cpu"),
        lambda out: pytree.tree_map(lambda x: x, out),
    ],
    ids=["copy", "deepcopy", "replace", "pickle", "send_to_device", "pytree"],
)
def test_a_copy_has_every_field(output, copied):
    assert_same(copied(output), output)


def test_a_shallow_copy_shares_tensors_and_a_deep_one_does_not(output):
    assert copy.copy(output).attributions is output.attributions
    assert copy.deepcopy(output).attributions.data_ptr() != output.attributions.data_ptr()


def test_torch_saves_and_loads_it(output):
    file = io.BytesIO()
    torch.save(output, file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=False), output)


def test_a_pytree_maps_tensors_and_keeps_the_rest(output):
    halved = pytree.tree_map_only(torch.Tensor, lambda x: x.double() / 2 if x.is_floating_point() else x, output)
    assert type(halved) is ExplainGenerateOutput
    assert torch.equal(halved.attributions, output.attributions.double() / 2)
    assert torch.equal(halved.scores[0], output.scores[0].double() / 2)
    assert torch.equal(halved.sequences, output.sequences)
    assert (halved.prompt_length, halved.layers) == (output.prompt_length, output.layers)
