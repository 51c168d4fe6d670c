"""How the heatmaps of layers are added up."""

import torch

from gradellm_hf.engines.heatmap_sums import Heatmaps


def heatmaps(prompt_length: int, steps: int, positive_only: bool) -> Heatmaps:
    length = prompt_length + steps
    zeros = torch.zeros(1, steps)
    by_layer = torch.zeros(1, 2, steps, length)
    return Heatmaps(
        layers=[3, 5],
        prompt_length=prompt_length,
        first_step=0,
        steps=range(steps),
        positive_only=positive_only,
        attributions=torch.zeros(1, steps, length),
        layer_attributions=by_layer,
        target_scores=zeros,
        token_probabilities=zeros.clone(),
    )


def test_layers_of_one_chunk_are_added_at_their_last_keys_and_scaled():
    """One layer sees all five positions, the other a window of the last three."""
    for positive_only in (True, False):
        total = heatmaps(3, 4, positive_only)
        chunk = total.chunk(1, 3)
        whole, window = torch.tensor([[[1.0, -2, 3, 4, 5], [6, 7, 8, -9, 10]]]), torch.tensor([[[10.0, 20, -30], [40, 50, 60]]])
        chunk.add(5, window)
        chunk.add(3, whole)
        total.put(chunk, torch.tensor([[2.0, 0.5]]))
        if positive_only:
            whole, window = whole.relu(), window.relu()
        scale = torch.tensor([[[2.0], [0.5]]])
        expected = torch.zeros(1, 2, 4, 7)
        expected[:, 0, 1:3, :5], expected[:, 1, 1:3, 2:5] = whole * scale, window * scale
        torch.testing.assert_close(total.layer_attributions, expected, rtol=0, atol=0)
        torch.testing.assert_close(total.attributions, expected.sum(1), rtol=0, atol=0)


def test_the_backward_pass_copies_no_heatmap_to_another_device():
    """A thread of autograd does not know the caller's streams of other devices. Nothing can be copied off the meta device."""
    chunk = heatmaps(3, 4, positive_only=True).chunk(0, 2)
    chunk.add(3, torch.ones(1, 2, 4, device="meta"))
    chunk.add(5, torch.ones(1, 2, 4))
    assert {device.type for device in chunk.totals} == {"meta", "cpu"}
    assert {layer: heatmap.device.type for layer, heatmap in chunk.by_layer.items()} == {3: "meta", 5: "cpu"}
