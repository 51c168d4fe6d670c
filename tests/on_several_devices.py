"""Models over several simulated CUDA devices are explained as on one. `test_devices.py` runs this in a process of its own."""

from tests.support import simulated_devices

simulated_devices.install()  # before anything asks what devices there are

import copy  # noqa: E402

import accelerate  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from accelerate.utils import find_tied_parameters  # noqa: E402
from architectures.survey import PROMPT, random_ids  # noqa: E402
from architectures.tiny_configs import tiny_model  # noqa: E402
from dataset_job import texts, tiny_llama  # noqa: E402
from small_llama import assert_same_heatmaps  # noqa: E402
from tiny_tokenizers import byte_level_bpe  # noqa: E402
from torch import nn  # noqa: E402

from gradellm_hf import (  # noqa: E402
    GradELLM,
    GradELLMConfig,
    explain_dataset,
    explain_generate,
    explain_sequences,
    explain_stream,
    verify,
)
from gradellm_hf.dataset_explanations import load_dataset_explanations  # noqa: E402
from gradellm_hf.methods import get_method  # noqa: E402
from gradellm_hf.metrics import rank_correlation, soft_ns  # noqa: E402
from gradellm_hf.pipeline import ExplainedTextGenerationPipeline  # noqa: E402

REPLAYED = ["llama", "mistral", "gpt2", "qwen2", "qwen2_moe", "gpt_oss"]
WITHOUT_INTERFACE = ["bloom", "falcon", "gpt_neo", "mpt", "xglm", "openai-gpt"]
HYBRID = ["lfm2", "bamba", "jamba"]
STEPWISE = [*WITHOUT_INTERFACE, *HYBRID]

#: Where the layers are, from the lowest on. What comes before them is at the first place, what comes after at the last.
PLACES = {
    "two devices": ("cuda:0", "cuda:1"),
    "three devices": ("cuda:2", "cuda:0", "cuda:3"),
    "a device and the host": ("cuda:1", "cpu"),
    "two devices and the disk": ("cuda:0", "disk", "cuda:1"),
}


def device_map(model, places):
    """Where each module is."""
    layers_name, layers = max(((n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)), key=lambda x: len(x[1]))
    result = {}

    def put(module, prefix):
        place = places[0]
        for name, child in module.named_children():
            name = prefix + name
            if name == layers_name:
                result.update({f"{name}.{i}": places[i * len(places) // len(layers)] for i in range(len(layers))})
                place = places[-1]
            elif layers_name.startswith(f"{name}."):
                put(child, f"{name}.")
                place = places[-1]
            else:
                result[name] = place

    put(model, "")
    for tied in find_tied_parameters(model):  # the head has the weights of the embedding
        for name in tied:
            result.update({module: places[0] for module in result if name.startswith(f"{module}.")})
    return result


def spread(model, places, folder):
    """A copy of the model, over these places."""
    mapped = device_map(model, places)
    main = next(place for place in places if place not in ("cpu", "disk"))
    return accelerate.dispatch_model(copy.deepcopy(model), mapped, main_device=main, offload_dir=folder)


@pytest.fixture(scope="module")
def models():
    """Each type on the host, in float32."""
    made = {}

    def model(model_type):
        if model_type not in made:
            made[model_type] = tiny_model(model_type).float()
        return made[model_type]

    return model


@pytest.fixture(params=PLACES.values(), ids=PLACES)
def places(request):
    return request.param


def padded(device="cpu"):
    """A batch whose second row is padded."""
    ids = random_ids(length=PROMPT)
    mask = torch.ones_like(ids)
    ids[1, :4], mask[1, :4] = 0, 0
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def assert_same(out, expected):
    """The same text and explanation, wherever it is."""
    for name, value in expected.items():
        if name in ("sequences", "step_mask"):
            assert torch.equal(out[name].cpu(), value), name
        elif name in ("attributions", "layer_attributions", "target_scores", "token_probabilities"):
            assert_same_heatmaps(out[name].cpu(), value)


def assert_same_explanation(one, other):
    assert one.tokens == other.tokens
    assert_same_heatmaps(one.attributions, other.attributions)


def config(engine="replay", **options):
    return GradELLMConfig(engine=engine, output_layer_attributions=True, **options)


def check(model, whole, device, explain_config, **options):
    options = {"max_new_tokens": 4, "explain_config": explain_config, **options}
    assert_same(explain_generate(model, **padded(device), **options), explain_generate(whole, **padded(), **options))


@pytest.mark.parametrize("model_type", REPLAYED)
def test_both_engines_explain_as_on_one_device(models, model_type, places, tmp_path):
    whole = models(model_type)
    model = spread(whole, places, tmp_path)
    for engine in ("replay", "stepwise"):
        check(model, whole, places[0], config(engine))
    assert verify(model) < 1e-3


@pytest.mark.parametrize("model_type", STEPWISE)
def test_models_that_cannot_be_replayed_are_explained_as_on_one_device(models, model_type, places, tmp_path):
    whole = models(model_type)
    check(spread(whole, places, tmp_path), whole, places[0], config("stepwise"))
