"""Methods of inseq (Sarti et al. 2023, arXiv 2302.13942), called as this package's methods are."""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..architecture.plain_attention import attention_implementation
from ..architecture.reading import vocabulary_size
from ..checks.optional import needed_for
from ..errors import GradELLMError, InvalidInputError
from ..metrics.perturbation import PerturbedText
from .registry import Method, heatmaps

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def inseq_method(name: str, *, tokenizer: Any = None, **options: Any) -> Method:
    """A method of inseq by its name there, such as `"saliency"`, `"gradient_shap"` or `"reagent"`.

    inseq reads text. It gets the token ids as words, `"t12 t7"`, and a tokenizer that reads these words, so that exactly these
    ids are explained. If a method has one score per element of an embedding, their norm is taken, as inseq does when it shows
    them. Of attention weights, the mean over layers and heads is taken.

    Args:
        name: See `inseq.list_feature_attribution_methods()`.
        tokenizer: The model's own, for methods that look at words. `"reagent"` (Zhao & Shan 2024, arXiv 2402.00794) replaces
            tokens by others of the same part of speech; it also needs nltk and its tagger.
        options: Passed to inseq's `get_attribution_method`.

    Returns:
        A method; see `Method`.

    Raises:
        InvalidInputError, UnsupportedArchitectureError: As for `Method`, when the returned method is called.
        GradELLMError: inseq is not installed, or fails, when the returned method is called.

    Examples:
        >>> method = inseq_method("saliency")
        >>> method(model, out.sequences, out.prompt_length).shape  # [R, N, S]
        torch.Size([1, 4, 9])
    """

    def method(model: Any, sequences: Tensor, prompt_length: int, attention_mask: Tensor | None = None, /) -> Tensor:
        text = PerturbedText(model, sequences, prompt_length, attention_mask)
        if name == "reagent" and tokenizer is None:
            raise InvalidInputError("`reagent` looks at words; give `inseq_method` the model's tokenizer.")
        scores = text.embeddings.new_zeros(text.num_rows, text.num_steps, text.token_ids.shape[1], dtype=torch.float32)
        for row in range(text.num_rows):
            first, last = int(text.real[row].int().argmax()), prompt_length + int(text.step_mask[row].sum())
            if last == prompt_length:
                continue
            ids = text.token_ids[row, first:last].tolist()
            with _left_as_it_is(text.model), torch.inference_mode(False), torch.enable_grad():
                found = _run(text.model, name, tokenizer, options, ids, prompt_length - first)
            scores[row, : found.shape[1], first : first + len(found)] = found.T.to(scores)
        return heatmaps(text, scores)

    return method


def _run(
    model: PreTrainedModel, name: str, tokenizer: Any, options: dict[str, Any], ids: list[int], prompt_length: int
) -> Tensor:
    """Scores of each token for each generated one, `[len(ids), N]`."""
    with needed_for(f"`{name}` needs", "inseq"):
        import inseq
    logging.getLogger("inseq").setLevel(logging.ERROR)
    try:
        explainer = inseq.load_model(model, "dummy", tokenizer=_id_reader(vocabulary_size(model)))
        id_reader, explainer.tokenizer = explainer.tokenizer, explainer.tokenizer if tokenizer is None else tokenizer
        explainer.get_attribution_method(name, override_default_attribution=True, **options)
        explainer.tokenizer = id_reader
        prompt, whole = (" ".join(f"t{i}" for i in part) for part in (ids[:prompt_length], ids))
        out = explainer.attribute(prompt, whole, show_progress=False, pretty_progress=False)
    except Exception as error:
        raise GradELLMError(
            f"inseq's `{name}` failed on `{model.config.model_type}`: {type(error).__name__}: {error}"
        ) from error
    if [token.id for token in out.sequence_attributions[0].target] != ids:
        raise GradELLMError(f"inseq's `{name}` explained other tokens than it was given.")
    scores: Any = out.sequence_attributions[0].target_attributions
    if scores.ndim == 4:  # attention weights of layers and heads
        scores = scores.mean((2, 3))
    elif scores.ndim == 3:
        scores = scores.norm(dim=-1)
    detached: Tensor = scores.detach()  # NaN: not yet written then
    return detached


def _id_reader(vocabulary: int) -> Any:
    """A tokenizer that reads `"t12 t7"` as the token ids 12 and 7."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="t0", unk_token="t0")


@contextlib.contextmanager
def _left_as_it_is(model: PreTrainedModel) -> Iterator[None]:
    """A context for inseq, which needs eager attention, writes to the config, and leaves hooks behind if a method fails."""
    config = model.config
    pad_token_id = config.pad_token_id
    before = {(module, kind): set(getattr(module, kind)) for module in model.modules() for kind in _HOOKS}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    try:
        with attention_implementation(model, "eager"):
            yield
    finally:
        config.pad_token_id = pad_token_id
        for (module, kind), known in before.items():
            _remove_hooks(module, kind, known)
        for parameter, gradient in gradients.items():
            parameter.grad = gradient


def _remove_hooks(module: nn.Module, kind: str, known: set[int]) -> None:
    hooks = getattr(module, kind)
    for key in set(hooks) - known:
        if not getattr(hooks[key], "__module__", "").startswith("transformers."):  # which puts its own there once, for good
            del hooks[key]
