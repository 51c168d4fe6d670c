"""The variants of Grad-ELLM: against the package, against plain autograd, and worked out by hand."""

from itertools import combinations

import pytest
import torch

from benchmarks.faithfulness.recorded import NUM_LIKELIEST, Recording, last_recording
from benchmarks.faithfulness.variants import _TABLE, VARIANTS
from gradellm_hf import GradELLMConfig, UnsupportedArchitectureError, explain_sequences
from gradellm_hf.methods import attention_mean, saliency
from gradellm_hf.metrics.perturbation import PerturbedText
from tests.support.reference import reference_heatmaps
from tests.support.small_llama import padded_prompts, random_ids, small_llama
from tests.support.tiny_models import float64_islands, random_text, tiny_model
from tests.support.toy_models import BagOfEmbeddings

pytestmark = pytest.mark.slow

P, N = 6, 3
WITH_SALIENCY = ("saliency_sum", "saliency_product", "second_hop_saliency", "relu_per_head_saliency_product")


@pytest.fixture
def _islands():
    with float64_islands():
        yield


float64 = pytest.mark.usefixtures("_islands")


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


def text_of(model, padding=(0, 2)):
    """Ids, and a mask in which the second row is padded and ends one step early."""
    ids, mask = random_text(model, 2, P, N, list(padding))
    return ids, torch.cat([mask, torch.tensor([[1, 1, 1], [1, 1, 0]])], dim=1)


def recording_of(model, ids, mask=None):
    return last_recording(PerturbedText(model, ids, P, mask))


def by_hand(attention, products, **fields):
    """A recording of one row and step, `P = T = 3`, with these weights and `<g, v>`: `[L, H, T]` each.

    Values are unit vectors, so the gradient's entries are the products.
    """
    attention, products = (torch.tensor(x, dtype=torch.float64) for x in (attention, products))
    layers, heads, length = attention.shape
    empty = torch.zeros(0)
    defaults = {
        "prompt_length": length,
        "num_groups": 1,
        "real": torch.ones(1, length, dtype=torch.bool),
        "attention": attention[None, :, :, None],
        "mean_attention": empty,
        "values": torch.eye(length, dtype=torch.float64).expand(1, layers, heads, length, length),
        "output_norms": empty,
        "stream_norms": empty,
        "input_norms": empty,
        "gradient": products[None, :, :, None],
        "expected_gradient": torch.zeros(1, layers, heads, 1, length, dtype=torch.float64),
        "likeliest_gradients": empty,
        "likeliest_probabilities": empty,
        "runner_up": empty,
        "probability": empty,
        "saliency": lambda: empty,
    }
    return Recording(**{**defaults, **fields})


def check(recording, **expected):
    for name, scores in expected.items():
        actual = VARIANTS[name].scores(recording)[0, 0]
        torch.testing.assert_close(
            actual, torch.tensor(scores, dtype=torch.float64), rtol=1e-12, atol=1e-12, msg=lambda m, n=name: n + m
        )


# Against the package and plain autograd


@float64
@pytest.mark.parametrize("family", ["llama", "qwen2_windowed", "qwen3", "gpt2", "olmo2"])
def test_what_variants_are_compared_with_is_the_positive_part_of_each_layer(family):
    model = tiny_model(family)
    ids, mask = text_of(model)
    config = GradELLMConfig(positive_part="layer")
    expected = explain_sequences(model, ids, P, mask, explain_config=config).attributions
    actual = VARIANTS["relu_per_layer"].method(model, ids, P, mask)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)


@float64
def test_layers_and_targets_are_those_of_plain_autograd_over_the_whole_prefix(llama):
    ids, _ = random_text(llama, 1, P, N)
    logits = llama(ids).logits[0, P - 1 : -1].detach()
    log_p = logits.log_softmax(-1)

    def others(step):
        return logits[step].index_fill(0, ids[0, P + step], -torch.inf)

    def heatmaps(target):
        return reference_heatmaps(llama, ids, P, target=target)

    def log_probability(logits, chosen, step):
        return logits.log_softmax(-1)[0, chosen]

    def contrast(logits, chosen, step):
        return logits[0, chosen] - logits[0, others(step).argmax()]

    by_layer = {
        "relu_per_layer": reference_heatmaps(llama, ids, P),
        "log_probability": heatmaps(log_probability),
        "probability": heatmaps(lambda *args: log_probability(*args).exp()),
        "contrast_runner_up": heatmaps(contrast),
    }
    for name, layers in by_layer.items():
        torch.testing.assert_close(VARIANTS[name].method(llama, ids, P), layers.relu().sum(1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        VARIANTS["signed"].method(llama, ids, P), by_layer["relu_per_layer"].sum(1), rtol=1e-9, atol=1e-12
    )

    likeliest = log_p.topk(NUM_LIKELIEST)
    p = likeliest.values.exp()
    c = torch.stack(
        [heatmaps(lambda x, _, n, k=k: x.log_softmax(-1)[0, likeliest.indices[n, k]]) for k in range(NUM_LIKELIEST)]
    )
    weights = p.T[:, None, None, :, None]
    expected = {
        "likeliest_absolute": (weights * c.abs()).sum((0, 2)),
        "likeliest_positive": (weights * c.relu()).sum((0, 2)),
        "likeliest_mean": ((weights.sqrt() * c).sum(0) / weights.sqrt().sum(0)).relu().sum(1),
        "hellinger_per_layer": (weights * c**2).sum(0).sqrt().sum(1),
        "hellinger_at_end": (weights[:, :, 0] * c.sum(2) ** 2).sum(0).sqrt(),
    }
    for name, scores in expected.items():
        torch.testing.assert_close(VARIANTS[name].method(llama, ids, P), scores, rtol=1e-9, atol=1e-12)


@float64
def test_the_runner_up_of_the_likeliest_token_is_the_second(llama):
    ids, _ = random_text(llama, 1, P, N)
    best = llama(ids).logits[0, P - 1].topk(2).indices
    for chosen, foil in [(best[0], best[1]), (best[1], best[0])]:
        ids = torch.cat([ids[:, :P], chosen.view(1, 1)], dim=1)
        expected = reference_heatmaps(llama, ids, P, target=lambda logits, _, __, a=chosen, b=foil: logits[0, a] - logits[0, b])
        actual = VARIANTS["contrast_runner_up"].method(llama, ids, P)
        torch.testing.assert_close(actual, expected.relu().sum(1), rtol=1e-9, atol=1e-12)


@float64
def test_values_go_through_the_output_projection_of_their_head(llama):
    ids, _ = random_text(llama, 2, P, N)
    recording, dim = recording_of(llama, ids), llama.config.head_dim
    for layer, head in [(0, 0), (3, 5)]:
        projection = llama.model.layers[layer].self_attn.o_proj
        alone = torch.zeros(2, P + N - 1, projection.in_features, dtype=torch.float64)
        alone[..., head * dim : (head + 1) * dim] = recording.values[:, layer, head]
        norms = (projection(alone) - projection(torch.zeros_like(alone))).norm(dim=-1)
        torch.testing.assert_close(recording.output_norms[:, layer, head], norms)


@float64
def test_the_recording_holds_what_the_model_computes(llama):
    ids, _ = random_text(llama, 2, P, N)
    recording = recording_of(llama, ids)
    out = llama(ids[:, :-1], output_hidden_states=True)
    for layer in range(llama.config.num_hidden_layers):
        torch.testing.assert_close(recording.stream_norms[:, layer], out.hidden_states[layer][:, P - 1 :].norm(dim=-1))
    torch.testing.assert_close(recording.input_norms, out.hidden_states[0].norm(dim=-1))
    probability = out.logits[:, P - 1 :].softmax(-1).gather(-1, ids[:, P:, None])[..., 0]
    torch.testing.assert_close(recording.probability, probability)
    predicting = recording.mean_attention[:, :, P - 1 :]
    torch.testing.assert_close(recording.attention.mean(2), predicting)
    torch.testing.assert_close(VARIANTS["attention"].method(llama, ids, P), attention_mean(llama, ids, P))


@float64
def test_saliency_is_that_of_the_package(llama):
    ids, mask = text_of(llama)
    expected, base = saliency(llama, ids, P, mask), VARIANTS["relu_per_layer"].method(llama, ids, P, mask)
    size = llama.get_input_embeddings()(ids).norm(dim=-1)[:, None]
    actual = VARIANTS["saliency_product"].method(llama, ids, P, mask)
    torch.testing.assert_close(actual, (base * (size * expected).sqrt()).detach())
    total = VARIANTS["saliency_sum"].method(llama, ids, P, mask).sum(-1)
    torch.testing.assert_close(total, 2 * mask[:, P:].double())
    hops = VARIANTS["second_hop_80"].method(llama, ids, P, mask)
    torch.testing.assert_close(VARIANTS["second_hop_saliency"].method(llama, ids, P, mask), (hops * expected).sqrt())


# What they have in common


@pytest.mark.parametrize("name", VARIANTS)
def test_scores_are_finite_float32_and_zero_where_the_model_saw_nothing(name):
    model, prompts = small_llama(), padded_prompts((7, 4))
    ids = torch.cat([prompts["input_ids"], random_ids(2, 3, 8)], dim=1)
    mask = torch.cat([prompts["attention_mask"], torch.tensor([[1, 1, 1], [1, 1, 0]])], dim=1)
    scores = VARIANTS[name].method(model, ids, 7, mask)
    assert scores.shape == (2, 3, 10)
    assert scores.dtype == torch.float32
    assert not scores.requires_grad
    assert scores.isfinite().all()
    seen = (torch.arange(10) < 7 + torch.arange(3)[:, None]) & mask[:, None].bool() & mask[:, 7:, None].bool()
    assert not scores[~seen].any()
    assert (scores[seen] != 0).double().mean() > 0.2
    assert name == "signed" or (scores >= 0).all()


@float64
@pytest.mark.parametrize("name", VARIANTS)
def test_padding_and_the_rest_of_the_batch_change_nothing(llama, name):
    ids, mask = text_of(llama)
    together = VARIANTS[name].method(llama, ids, P, mask)
    alone = VARIANTS[name].method(llama, ids[1:, 2:-1], P - 2)
    torch.testing.assert_close(together[1:, :-1, 2:-1], alone, rtol=1e-7, atol=1e-9 * alone.abs().max().item())


@float64
def test_no_two_variants_are_the_same():
    model = tiny_model("llama", num_hidden_layers=8)
    ids, _ = random_text(model, 1, P, N)
    scores = {name: variant.method(model, ids, P) for name, variant in VARIANTS.items()}
    same = [pair for pair in combinations(VARIANTS, 2) if torch.allclose(*map(scores.__getitem__, pair))]
    assert same == []
    assert len(VARIANTS) == len(_TABLE)
    assert len({variant.description for variant in _TABLE}) == len(_TABLE)


@float64
def test_all_variants_of_a_text_come_from_one_forward_pass(llama):
    ids, mask = text_of(llama)
    other = ids.flip(1)
    calls = []
    handle = llama.register_forward_hook(lambda *_: calls.append(1))
    try:
        for text in (ids.roll(1, 1), other):  # the first leaves hooks of Transformers, with which the second looks at the model
            VARIANTS["relu_per_layer"].method(llama, text, P)
        calls.clear()
        for name, variant in VARIANTS.items():
            if name not in WITH_SALIENCY:
                variant.method(llama, ids, P, mask)
        assert len(calls) == 1
        for name in WITH_SALIENCY:
            VARIANTS[name].method(llama, ids, P, mask)
        assert len(calls) == 2
        first = VARIANTS["relu_per_layer"].method(llama, other, P)
        assert len(calls) == 3
        assert not torch.equal(VARIANTS["relu_per_layer"].method(llama, other, P - 1)[:, 1:], first)
        VARIANTS["relu_per_layer"].method(tiny_model("llama", seed=7), other, P - 1)
        assert not torch.equal(
            VARIANTS["relu_per_layer"].method(llama, ids, P)[1], VARIANTS["relu_per_layer"].method(llama, ids, P, mask)[1]
        )
    finally:
        handle.remove()


def test_the_model_is_left_as_it_was_and_may_be_frozen():
    model, ids = small_llama(), random_ids(1, P + N)
    model(ids, output_hidden_states=True)  # Transformers leaves hooks of its own when first asked for them
    hooks = [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in model.modules()]
    expected = VARIANTS["relu_per_layer"].method(model, ids, P)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert model.config._attn_implementation == "sdpa"
    frozen = small_llama().requires_grad_(False)
    with torch.inference_mode():
        torch.testing.assert_close(VARIANTS["relu_per_layer"].method(frozen, ids, P), expected)


def test_a_model_in_half_precision_is_recorded_in_float32():
    ids = random_ids(2, P + N)
    model, half = (small_llama(initializer_range=0.1, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    recording = recording_of(half, ids)
    tensors = [x for x in vars(recording).values() if isinstance(x, torch.Tensor) and x.is_floating_point()]
    assert len(tensors) >= 11
    assert {x.dtype for x in tensors} == {torch.float32}
    expected, actual = (VARIANTS["relu_per_layer"].method(m, ids, P) for m in (model, half))
    assert (actual - expected).abs().max() < 0.05 * expected.max()


def test_models_without_the_attention_interface_are_refused():
    bag = BagOfEmbeddings(torch.randn(5, 3), torch.randn(5, 3))
    with pytest.raises(UnsupportedArchitectureError):
        VARIANTS["relu_per_layer"].method(bag, torch.tensor([[1, 2, 3]]), 2)


# By hand: contributions are attention times products


def test_the_place_of_the_relu_by_hand():
    recording = by_hand(
        attention=[[[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]], [[1.0, 0.0, 0.0], [0.25, 0.25, 0.5]]],
        products=[[[4.0, -8.0, 4.0], [-6.0, 2.0, 9.0]], [[1.0, 5.0, 5.0], [4.0, 4.0, -6.0]]],
        num_groups=2,
    )  # contributions: 2 -2 1 | -3 1 0 and 1 0 0 | 1 1 -3; layers: -1 -1 1 and 2 1 -3
    check(
        recording,
        relu_per_layer=[2.0, 1.0, 1.0],
        relu_per_head=[4.0, 2.0, 1.0],
        relu_per_group=[4.0, 2.0, 1.0],  # each head has a group of its own
        relu_at_end=[1.0, 0.0, 0.0],
        absolute_per_layer=[3.0, 2.0, 4.0],
        absolute_per_head=[7.0, 4.0, 4.0],
        absolute_at_end=[1.0, 0.0, 2.0],
        signed=[1.0, 0.0, -2.0],
        last_layer=[2.0, 1.0, 0.0],
        first_half=[0.0, 0.0, 1.0],
        all_but_last_layer=[0.0, 0.0, 1.0],
        all_but_first_layer=[2.0, 1.0, 0.0],
        layer_sum_normalised=[2 / 3, 1 / 3, 1.0],
        layer_maximum_normalised=[1.0, 0.5, 1.0],
        head_sum_normalised=[2 / 3 + 0 + 1 + 1 / 2, 0 + 1 + 0 + 1 / 2, 1 / 3],
    )


def test_heads_of_a_group_are_added_up_before_the_relu_by_hand():
    recording = by_hand(
        attention=[[[1.0, 0.0, 0.0]] * 4], products=[[[3.0, 0, 0], [-1.0, 0, 0], [-5.0, 0, 0], [4.0, 0, 0]]], num_groups=2
    )
    check(recording, relu_per_group=[2.0, 0.0, 0.0], relu_per_head=[7.0, 0.0, 0.0], relu_per_layer=[1.0, 0.0, 0.0])


def test_parts_of_the_depth_by_hand():
    recording = by_hand(attention=[[[1.0, 0.0, 0.0]]] * 8, products=[[[2.0**layer, 0, 0]] for layer in range(8)])
    check(
        recording,
        last_layer=[128.0, 0, 0],
        last_quarter=[192.0, 0, 0],
        last_half=[240.0, 0, 0],
        first_half=[15.0, 0, 0],
        middle_half=[60.0, 0, 0],
    )


def test_sinks_and_the_own_position_by_hand():
    recording = by_hand(attention=[[[0.5, 0.125, 0.375]]], products=[[[2.0, 16.0, 8.0]]])
    output = 1 + 2 + 3  # <g, z>
    check(
        recording,
        relu_per_layer=[1.0, 2.0, 3.0],
        first_zero=[0.0, 2.0, 3.0],
        first_spread=[0.0, 2.5, 3.5],
        own_zero=[1.0, 2.0, 0.0],
        first_and_own_zero=[0.0, 2.0, 0.0],
        renormalised_without_first=[0.0, 0.25 * 16, 0.75 * 8],
        values_minus_output=[0.0, 0.125 * (16 - output), 0.375 * (8 - output)],
        values_minus_first=[0.0, 0.125 * (16 - 2), 0.375 * (8 - 2)],
        values_minus_mean=[0.0, 0.125 * (16 - 26 / 3), 0.0],
        removal=[0.0, 1 / 7 * (16 - output), 3 / 5 * (8 - output)],
    )


def test_removal_is_what_the_target_loses_when_a_head_reads_a_position_no_more():
    attention, products = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), torch.tensor([1.0, 3.0, 9.0]).double()
    recording = by_hand(attention=[[attention.tolist()]], products=[[products.tolist()]])
    losses = []
    for position in range(3):
        rest = attention.index_fill(0, torch.tensor(position), 0)
        losses.append(attention @ products - rest / rest.sum() @ products)
    check(recording, removal=torch.stack(losses).relu().tolist())


def test_the_first_position_is_the_first_that_is_not_padding():
    recording = by_hand(attention=[[[0.0, 0.75, 0.25]]], products=[[[5.0, 4.0, 8.0]]], real=torch.tensor([[False, True, True]]))
    check(recording, first_zero=[0.0, 0.0, 2.0], first_spread=[0.0, 0.0, 5.0], renormalised_without_first=[0.0, 0.0, 8.0])


def test_a_head_that_reads_the_first_position_only_is_left_out_without_it():
    recording = by_hand(attention=[[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]], products=[[[7.0, 1.0, 1.0], [2.0, 3.0, 1.0]]])
    check(recording, renormalised_without_first=[0.0, 3.0, 0.0], removal=[0.0, 0.5, 0.0])


def test_norms_by_hand():
    recording = by_hand(
        attention=[[[0.5, 0.5, 0.0]], [[0.25, 0.25, 0.5]]],
        products=[[[3.0, 0.0, 4.0]], [[0.0, -8.0, 6.0]]],
        stream_norms=torch.tensor([[[2.0], [10.0]]]).double(),
        output_norms=torch.tensor([[[[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]]]]).double(),
    )  # layers: 1.5 0 0 and 0 -2 3
    check(
        recording,
        gradient_normalised=[0.3, 0.0, 0.3],
        stream_norm=[3.0, 0.0, 30.0],
        attention=[0.375, 0.375, 0.25],
        attention_value_norm=[0.75, 0.75, 0.5],
        attention_output_norm=[0.5 + 1, 1 + 1.25, 3.0],
        attention_gradient_norm=[2.5 + 2.5, 2.5 + 2.5, 5.0],
        attention_gradient_value_norm=[2.5 + 2.5, 2.5 + 2.5, 5.0],
        attention_head_importance=[0.75 + 0.25, 0.75 + 0.25, 0.5],
        attention_geometric_mean=[(1.5 * 0.375) ** 0.5, 0.0, (3.0 * 0.25) ** 0.5],
    )


def test_value_norms_count_the_values():
    values = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]]).double().expand(1, 1, 1, 3, 2)
    gradient = torch.tensor([0.0, 2.0]).double().view(1, 1, 1, 1, 2)
    recording = by_hand([[[0.5, 0.25, 0.25]]], [[[0.0, 0.0, 0.0]]], values=values, gradient=gradient)
    check(
        recording,
        attention_value_norm=[2.5, 0.5, 0.25],
        attention_gradient_value_norm=[5.0, 1.0, 0.5],
        relu_per_layer=[4.0, 1.0, 0.0],
    )


def test_the_second_hop_by_hand():
    attention = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]
    upper = [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    recording = by_hand(
        attention=[[[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]],
        products=[[[2.0, 0, 0]], [[0, 8.0, 0]], [[0, 0, 16.0]]],
        mean_attention=torch.tensor([[attention, upper, upper]]).double(),
    )
    # Layer 0 read 2 from the first position, layer 1 read 8 from the second, layer 2 read 16 from the third. The second
    # position's stream in layer 1 is (I + A0) / 2 = [1/4, 3/4, 0]; the third's in layer 2 half [0, 1, 0] and half [0, 0, 1]
    # of what layer 1 saw: half [1/4, 3/4, 0] and half [1/8, 1/8, 3/4].
    check(
        recording,
        relu_per_layer=[2.0, 8.0, 16.0],
        second_hop_50=[2 + 2 + 2 + 1, 0 + 6 + 6 + 1, 6.0],
        # Means of lower layers: attention for layer 1, of both for layer 2: third position [1/8, 5/8, 1/4].
        one_hop_100=[2 + 4 + 2, 8 + 4 + 10, 16 + 4.0],
        one_hop_50=[2 + 2 + 1, 8 + 2 + 5, 16 + 2.0],
        one_hop_25=[2 + 1 + 0.5, 8 + 1 + 2.5, 16 + 1.0],
        # Without the first: second position [0, 1, 0]; third [0, 1/3, 2/3] in layer 0 and [0, 1, 0] in layer 1.
        one_hop_100_without_first=[2.0, 8 + 8 + 16 * (1 / 3 + 1) / 2, 16 + 16 * (2 / 3) / 2],
        second_hop_50_without_first=[2.0, 8 + 8 + 16 / 2 * (1 / 3) / 2, 8 * (1 + 2 / 3) / 2],
    )
    kept = recording.mean_attention.new_tensor([[1, 0, 0], [0.1, 0.9, 0], [0.05, 0.05, 0.9]])
    above = recording.mean_attention.new_tensor([[1, 0, 0], [0.2, 0.8, 0], [0, 0.2, 0.8]])
    expected = torch.tensor([2.0, 0, 0]).double() + 8 * kept[1] + 16 * (above @ kept)[2]
    check(recording, second_hop_80=expected.tolist())
