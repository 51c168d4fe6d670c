"""Models so simple that every metric and method has an answer that can be worked out by hand."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class BagConfig(PreTrainedConfig):
    model_type = "bag_of_embeddings"
    is_encoder_decoder = False


class BagOfEmbeddings(PreTrainedModel, GenerationMixin):
    """The logits at a position are `W act(sum of the embeddings up to it)`.

    Args:
        embeddings: `[V, E]`.
        weights: `W`, `[V, E]`.
        activation: `act`; none: the model is linear in the embeddings.
    """

    config_class = BagConfig
    main_input_name = "input_ids"

    def __init__(self, embeddings: Tensor, weights: Tensor, activation: nn.Module | None = None):
        super().__init__(BagConfig(vocab_size=len(embeddings), bos_token_id=None, eos_token_id=None, pad_token_id=0))
        self.embedding = nn.Embedding.from_pretrained(embeddings, freeze=False)
        self.activation = activation or nn.Identity()
        self.head = nn.Linear(weights.shape[1], len(weights), bias=False).to(weights.dtype)
        with torch.no_grad():
            self.head.weight.copy_(weights)
        self.eval()

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutput:
        x = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if attention_mask is not None:
            x = x * attention_mask[..., None]
        return CausalLMOutput(logits=self.head(self.activation(x.cumsum(1))))


def planted(num_cues: int = 2, vocabulary: int = 12, width: int = 6) -> BagOfEmbeddings:
    """Tokens 1 to `num_cues` make token 0 likely, the first more than the second; the others do next to nothing."""
    generator = torch.Generator().manual_seed(3)
    embeddings = 0.02 * torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    weights = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    weights[0] = 1
    for cue in range(1, num_cues + 1):
        embeddings[cue] = 0.8 * (num_cues + 1 - cue) / num_cues
    return BagOfEmbeddings(embeddings, weights)


def line(effects: list[float]) -> BagOfEmbeddings:
    """A model in which token `i` adds `effects[i]` to the log-odds of token 0 against token 1."""
    embeddings = torch.tensor(effects, dtype=torch.float64)[:, None]
    weights = torch.zeros_like(embeddings)
    weights[0], weights[1] = 0.5, -0.5
    return BagOfEmbeddings(embeddings, weights)
