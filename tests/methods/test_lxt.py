"""AttnLRP by lxt in a process of its own: against the rules written out by hand, and what becomes of that process.

Most of it needs an environment with lxt, whose interpreter `GRADELLM_LXT_PYTHON` names; see `attn_lrp`.
"""

import copy
import gc
import json
import os
import subprocess
import sys
import tempfile

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen2Config

from gradellm_hf import GradELLMError, UnsupportedArchitectureError
from gradellm_hf.demo_model import _gguf_file
from gradellm_hf.methods import attn_lrp, lxt_adapter, lxt_worker
from gradellm_hf.methods.lxt_worker import older_config
from tests.support import ROOT
from tests.support.small_llama import assert_same_heatmaps, padded_prompts, random_ids, small_llama
from tests.support.tiny_models import tiny_model

pytestmark = pytest.mark.slow

P, N = 6, 3
LXT = os.environ.get("GRADELLM_LXT_PYTHON", "")
needs_lxt = pytest.mark.skipif(not LXT, reason="GRADELLM_LXT_PYTHON names no environment with lxt")
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where temporary files go."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def workers():
    return [child for child in psutil.Process().children() if any("lxt_worker" in word for word in child.cmdline())]


# Without lxt


def test_an_interpreter_must_be_named_and_exist(monkeypatch):
    monkeypatch.delenv("GRADELLM_LXT_PYTHON", raising=False)
    with pytest.raises(GradELLMError, match=r"GRADELLM_LXT_PYTHON.*venv lxt-env.*transformers==4.*lxt"):
        attn_lrp()
    monkeypatch.setenv("GRADELLM_LXT_PYTHON", "/nowhere/python")
    with pytest.raises(GradELLMError, match=r"no interpreter '/nowhere/python'.*venv lxt-env"):
        attn_lrp()


def test_an_environment_without_lxt_is_named_and_nothing_is_left(folder):
    before = workers()
    with pytest.raises(GradELLMError, match=r"No module named 'lxt'.*venv lxt-env"):
        attn_lrp(python=sys.executable)(small_llama(), random_ids(1, P + N), P)
    assert not list(folder.iterdir())
    assert workers() == before


@pytest.mark.skipif(os.name != "posix", reason="programs are files with a mode")
@pytest.mark.parametrize(
    ("program", "message"),
    [("#!/bin/sh\necho no memory >&2\nexit 3\n", "its process ended: no memory"), ("\0", "could not be started")],
)
def test_a_process_that_ends_by_itself_is_an_error(tmp_path, program, message, folder):
    interpreter = tmp_path / "python"
    interpreter.write_text(program)
    interpreter.chmod(0o755)
    with pytest.raises(GradELLMError, match=message):
        attn_lrp(python=interpreter)(small_llama(), random_ids(1, P + N), P)
    assert list(folder.iterdir()) == [interpreter]


def test_the_worker_answers_in_json_and_ends_with_its_input_and_its_folder(tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    command = [sys.executable, "-I", lxt_worker.__file__, str(there)]
    done = subprocess.run(command, input='{"task": "explain", "steps": 1}\n', capture_output=True, text=True, check=True)
    assert "error" in json.loads(done.stdout)
    assert not there.exists()


def test_weights_that_were_unpacked_are_handed_over_as_they_are_and_the_model_stays_as_it_was(tmp_path):
    gguf = _gguf_file()
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    quantizer, config = model.hf_quantizer, copy.deepcopy(vars(model.config))
    lxt_adapter._save(model, tmp_path / "model")
    assert model.hf_quantizer is quantizer
    assert vars(model.config).keys() == config.keys()
    assert json.loads((tmp_path / "model" / "config.json").read_text()).get("quantization_config") is None
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name]), name


def test_configs_are_translated_into_those_of_transformers_4():
    llama = older_config(LlamaConfig(rope_parameters=LLAMA3, dtype="bfloat16").to_dict())
    assert (llama["rope_theta"], llama["rope_scaling"]["factor"], llama["torch_dtype"]) == (500.0, 4.0, "bfloat16")
    assert "rope_theta" not in llama["rope_scaling"]
    qwen = older_config(Qwen2Config(rope_parameters={"rope_type": "default", "rope_theta": 77.0}).to_dict())
    assert (qwen["rope_theta"], qwen["rope_scaling"]) == (77.0, None)
    gemma = older_config(
        Gemma3TextConfig(
            num_hidden_layers=7, layer_types=(["sliding_attention"] * 2 + ["full_attention"]) * 2 + ["sliding_attention"]
        ).to_dict()
    )
    assert (gemma["rope_theta"], gemma["rope_local_base_freq"], gemma["sliding_window_pattern"]) == (1e6, 1e4, 3)
    with pytest.raises(ValueError, match="not in a regular order"):
        older_config({"model_type": "gemma3_text", "layer_types": ["full_attention", "sliding_attention"]})


# With lxt


@pytest.fixture(scope="module")
def llama():
    return small_llama(hidden_size=60, rope_parameters=LLAMA3)


def linear(relevance, x, weight):
    """epsilon-LRP of `x @ weight.T` for epsilon -> 0."""
    return x * ((relevance / (x @ weight.T)) @ weight)


def relevances_by_hand(model, ids):
    """AttnLRP of the last token's logit, for the ids before it, `[S - 1]`: each rule on its own, no gradient anywhere."""
    config, body = model.config, model.model
    groups, repeats, width = (
        config.num_key_value_heads,
        config.num_attention_heads // config.num_key_value_heads,
        config.head_dim,
    )
    x = body.embed_tokens(ids[None, :-1])[0]
    length = len(x)
    cos, sin = (part[0] for part in body.rotary_emb(x[None], torch.arange(length)[None]))
    future = torch.ones(length, length, dtype=torch.bool).triu(1)

    def norm(x, layer):
        return layer.weight * x * (x.square().mean(-1, keepdim=True) + config.rms_norm_eps).rsqrt()

    def rotate(x, sign=1):
        a, b = x.chunk(2, dim=-1)
        return x * cos + sign * torch.cat([-b, a], -1) * sin

    def heads(x, count):
        return x.view(length, count, width).transpose(0, 1)

    def flat(x):
        return x.transpose(0, 1).reshape(length, -1)

    def merged(x):  # what queries of a group said about their common key or value
        return x.view(groups, repeats, length, width).sum(1)

    tape = []
    for layer in body.layers:
        attention, mlp = layer.self_attn, layer.mlp
        h = norm(x, layer.input_layernorm)
        q, k, v = (
            heads(h @ p.weight.T, n)
            for p, n in [(attention.q_proj, groups * repeats), (attention.k_proj, groups), (attention.v_proj, groups)]
        )
        scores = rotate(q) @ rotate(k).repeat_interleave(repeats, 0).mT / width**0.5
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        mixed = weights @ v.repeat_interleave(repeats, 0)
        y = x + flat(mixed) @ attention.o_proj.weight.T
        g = norm(y, layer.post_attention_layernorm)
        gated = torch.nn.functional.silu(g @ mlp.gate_proj.weight.T) * (g @ mlp.up_proj.weight.T)
        out = y + gated @ mlp.down_proj.weight.T
        tape.append((attention, mlp, x, h, q, k, v, scores, weights, mixed, y, g, gated, out))
        x = out
    h = norm(x, body.norm)
    relevance = torch.zeros_like(x)
    relevance[-1] = h[-1] * model.lm_head.weight[ids[-1]]  # identity rule at every norm
    for attention, mlp, x, h, q, k, v, scores, weights, mixed, y, g, gated, out in reversed(tape):
        of_gated = linear(relevance * (out - y) / out, gated, mlp.down_proj.weight) / 2  # uniform rule for the product
        relevance = relevance * y / out
        relevance = relevance + linear(of_gated, g, mlp.up_proj.weight) + linear(of_gated, g, mlp.gate_proj.weight)
        of_mixed = heads(linear(relevance * (y - x) / y, flat(mixed), attention.o_proj.weight), groups * repeats)
        relevance = relevance * x / y
        share = of_mixed / mixed / 2  # matrix products: half to each factor
        of_v = merged(v.repeat_interleave(repeats, 0) * (weights.mT @ share))
        of_weights = weights * (share @ v.repeat_interleave(repeats, 0).mT)
        of_scores = scores * (of_weights - weights * of_weights.sum(-1, keepdim=True))
        share = of_scores / scores / 2 / width**0.5
        rotated_k = rotate(k).repeat_interleave(repeats, 0)
        of_q = q * rotate(share @ rotated_k, -1)
        of_k = k * rotate(merged(share.mT @ rotate(q)), -1)
        for projection, part in [(attention.q_proj, of_q), (attention.k_proj, of_k), (attention.v_proj, of_v)]:
            relevance = relevance + linear(flat(part), h, projection.weight)
    return relevance.sum(-1)


@needs_lxt
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-5)])  # lxt's norms are in float32
def test_relevances_are_those_of_the_rules_by_hand(llama, dtype, tolerance):
    model, ids = copy.deepcopy(llama).to(dtype), random_ids(1, P + N)
    scores = attn_lrp()(model, ids, P)
    double = copy.deepcopy(llama).double()
    with torch.no_grad():
        for step in range(N):
            expected = relevances_by_hand(double, ids[0, : P + step + 1])
            assert_same_heatmaps(scores[0, step, : P + step], expected.float(), tolerance)


@needs_lxt
def test_without_attention_relevances_sum_to_the_logit(llama):
    model, ids = copy.deepcopy(llama), random_ids(2, P + N)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
    logits = model(ids).logits[:, P - 1 : -1].gather(-1, ids[:, P:, None])[..., 0]
    torch.testing.assert_close(attn_lrp()(model, ids, P).sum(-1), logits, rtol=1e-4, atol=1e-5)


@needs_lxt
def test_padding_ended_steps_and_the_rest_of_the_batch_change_nothing(llama):
    method, prompts = attn_lrp(), padded_prompts((P, 4))
    ids = torch.cat([prompts["input_ids"], random_ids(2, N, 8)], dim=1)
    mask = torch.cat([prompts["attention_mask"], torch.tensor([[1, 1, 1], [1, 1, 0]])], dim=1)
    config = dict(vars(llama.config))
    together = method(llama, ids, P, mask)
    assert dict(vars(llama.config)) == config
    seen = (torch.arange(P + N) < P + torch.arange(N)[:, None]) & mask[:, None].bool() & mask[:, P:, None].bool()
    assert torch.equal(together != 0, seen)
    assert_same_heatmaps(together[1:, :2, 2:8], method(llama, ids[1:, 2:8], 4))
    assert torch.equal(attn_lrp(absolute=True)(llama, ids, P, mask), together.abs())
    assert (together < 0).any()


@needs_lxt
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gpt2", "gemma3"])
def test_families_that_lxt_knows_have_the_same_logits_there(name):
    model = gemma3() if name == "gemma3" else tiny_model(name).float()
    scores = attn_lrp()(model, random_ids(1, P + N) % 41, P)  # checks the logits
    assert (scores != 0).sum() == sum(range(P, P + N))


def gemma3():
    from transformers import Gemma3ForCausalLM

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=53,
        hidden_size=40,
        intermediate_size=44,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=10,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        initializer_range=0.3,
        query_pre_attn_scalar=10,
    )
    return Gemma3ForCausalLM(config).eval()


@needs_lxt
def test_models_that_lxt_cannot_explain_are_refused(folder):
    with pytest.raises(
        GradELLMError, match=r"`mistral`.*rules for \['bert', 'gemma3', 'gpt2', 'llama', 'qwen2', 'qwen3'\] only"
    ):
        attn_lrp()(tiny_model("mistral").float(), random_ids(1, P + N) % 41, P)
    assert not list(folder.iterdir())
    with pytest.raises(UnsupportedArchitectureError, match=r"logits of `qwen2` differ by \d\.\de-01"):
        attn_lrp()(tiny_model("qwen2_windowed").float(), random_ids(1, P + N) % 41, P)


@needs_lxt
def test_one_worker_a_model_that_ends_with_the_model(folder):
    before, model, ids = workers(), small_llama(), random_ids(1, P + N)
    first = attn_lrp()(model, ids, P)
    (worker,) = set(workers()) - set(before)
    assert torch.equal(attn_lrp()(model, ids, P), first)
    assert set(workers()) - set(before) == {worker}
    worker.kill()
    with pytest.raises(GradELLMError, match="process ended"):
        attn_lrp()(model, ids, P)
    model.lm_head.weight.data.neg_()
    torch.testing.assert_close(attn_lrp()(model, ids, P), -first)  # another worker, with the weights as they are now
    model.lm_head.weight.data.neg_()
    with pytest.raises(UnsupportedArchitectureError, match="weights have been changed"):
        attn_lrp()(model, ids, P)
    del model
    gc.collect()
    assert set(workers()) <= set(before)
    assert not list(folder.iterdir())


@needs_lxt
def test_the_worker_ends_when_its_parent_is_killed(tmp_path):
    code = (
        "import os, signal, torch\nfrom gradellm_hf.methods import attn_lrp\n"
        "from tests.support.small_llama import random_ids, small_llama\n"
        "attn_lrp()(small_llama(), random_ids(1, 9), 6)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    for process in psutil.process_iter(["cmdline"]):
        if str(tmp_path) in " ".join(process.info["cmdline"] or []):
            process.wait(30)
    assert not list(tmp_path.iterdir())


@needs_lxt
def test_smollm2_names_the_capital_because_of_its_country(smollm2):
    model, tokenizer = smollm2
    ids = tokenizer("The capital of France is Paris. The capital of Italy is Rome", return_tensors="pt").input_ids
    scores = attn_lrp()(model, ids, ids.shape[1] - 1)[0, 0]
    assert tokenizer.decode(ids[0, scores.argmax()]) == " Italy"
    assert scores.argmax() == scores.abs().argmax()
