"""`explain_generate` and `explain_sequences`: an unchanged `generate`, then the explanation of what it wrote."""

from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from .architecture.caches import prompt_cache
from .architecture.compat import CACHE_NAMES, cache_of
from .architecture.facts import ModelFacts, explained_layers, look_at
from .architecture.support import without_wrapper
from .architecture.tensor_parallel import of_all_processes
from .configuration import GradELLMConfig
from .engines.explain import explain
from .engines.heatmap_sums import Heatmaps
from .results.output import ExplainGenerateOutput
from .results.rows import among_zeros
from .sequences.explained import ExplainedSequences
from .sequences.generate_call import GenerateCall
from .sequences.given import given_sequences
from .sequences.prompt_checks import placeholder_mask
from .sequences.recording import record_prompt
from .sequences.steps import Steps, checked_steps, explained_mask


def explain_generate(
    model: Any,
    inputs: Tensor | None = None,
    *,
    explain_config: GradELLMConfig | None = None,
    steps: Steps | None = None,
    **generate_kwargs: Any,
) -> ExplainGenerateOutput:
    """Generates as `model.generate` does, and explains every generated token.

    Args:
        model: A decoder-only Transformers model with softmax attention, in evaluation mode. It may be wrapped by PEFT,
            dispatched by accelerate, or compiled. Or a `GradELLM`, whose `explain_config` is used if none is given here.
        inputs: Prompt, `[batch, P]`, as for `model.generate`. Batches are padded on the left.
        explain_config: What to explain and how; see `GradELLMConfig`.
        steps: Explain only these of the generated tokens: a slice, such as `slice(-16, None)`, or a list of indices, negative
            ones as in Python. Each row counts its own tokens, without what comes after its end. None: all of them. The others
            cost nothing if the cache that `generate` filled can be read, and else a forward pass without gradients.
        **generate_kwargs: Everything else that `model.generate` takes, with the same meaning.

    Returns:
        What `model.generate` returned, with the same token ids `[R, S]`, and a heatmap per generated token, `[R, N, S]`.

    Raises:
        UnsupportedArchitectureError: The model cannot be explained exactly.
        InvalidInputError: An argument or the state of the model is not usable. Any error that is raised after the text was
            generated has what `generate` returned as its attribute `generated`.

    Examples:
        >>> inputs = tokenizer("The capital of Italy is", return_tensors="pt")
        >>> out = explain_generate(model, **inputs, max_new_tokens=4, do_sample=False)
        >>> out.sequences.shape, out.attributions.shape  # [R, S] and [R, N, S]
        (torch.Size([1, 9]), torch.Size([1, 4, 9]))
    """
    steps = checked_steps(steps)
    model, config = without_wrapper(model, explain_config)
    facts = look_at(model)
    layers = explained_layers(facts, config)
    call = GenerateCall(facts, inputs, generate_kwargs)
    generate: Any = model.generate if hasattr(model, "generate") else facts.model.generate  # data-parallel wrappers have none
    with record_prompt(facts, call.prompt_length, decoding=call.is_plain_loop) as recording:
        returned = generate(inputs, **call.generate_kwargs)
    generated = {"sequences": returned} if isinstance(returned, Tensor) else dict(returned)
    cache = cache_of(generated)
    if not call.returns_dict:
        generated = {name: value for name, value in generated.items() if name not in CACHE_NAMES}
    del returned
    try:
        sequences = call.sequences(generated, recording, cache)
        only = _only(facts, sequences, steps)
        rows = None if only.prefill_rows is None else only.prefill_rows[1]
        is_written = rows is None and config.channel == "heads" and call.wrote_in_place(generated)
        first = next(iter(only.explained_steps), 0) if is_written else 0  # what comes before it is in the cache
        with torch.inference_mode(False):
            before = prompt_cache(cache, call.prompt_length - 1 + first, rows)
        del cache
        if before is None:
            call.check_readable_again(recording)
            first = 0
        heatmaps = explain(facts, only.after(first), config, layers, before)
        return _output(facts, sequences, config, heatmaps, generated, None if steps is None else only.step_mask)
    except BaseException as error:
        error.generated = ModelOutput(generated)  # type: ignore[attr-defined]
        raise


def explain_sequences(
    model: Any,
    sequences: Tensor,
    prompt_length: int,
    attention_mask: Tensor | None = None,
    *,
    explain_config: GradELLMConfig | None = None,
    steps: Steps | None = None,
) -> ExplainGenerateOutput:
    """Explains why a model would write given text (teacher forcing): every token from `prompt_length` on.

    Args:
        model: As for `explain_generate`.
        sequences: Token ids of prompts, padded on the left, and continuations, `[R, S]`.
        prompt_length: `P`, from 1 to `S`.
        attention_mask: 0 for padding and 1 for tokens, `[R, P]` or `[R, S]`, of any type. In the continuation, 0 marks steps
            after a row's end; every token before it is explained, end-of-sequence tokens too.
        explain_config: What to explain and how; see `GradELLMConfig`.
        steps: Explain only these of the tokens from `prompt_length` on; see `explain_generate`. The others are only read.

    Returns:
        As `explain_generate`. If the mask does not cover the continuation, a row ends with the end-of-sequence token after
        which only padding or end-of-sequence tokens follow. Such a token in the middle of a text does not end it.

    Raises:
        UnsupportedArchitectureError: The model cannot be explained exactly.
        InvalidInputError: An argument or the state of the model is not usable.

    Examples:
        >>> text = tokenizer("The capital of Italy is Rome", return_tensors="pt")
        >>> out = explain_sequences(model, text["input_ids"], prompt_length=5)
        >>> out.attributions.shape  # [R, N, S]
        torch.Size([1, 1, 6])
    """
    steps = checked_steps(steps)
    model, config = without_wrapper(model, explain_config)
    facts = look_at(model)
    layers = explained_layers(facts, config)
    text = given_sequences(facts, sequences, prompt_length, attention_mask)
    only = _only(facts, text, steps)
    heatmaps = explain(facts, only, config, layers)
    return _output(facts, text, config, heatmaps, {"sequences": sequences}, None if steps is None else only.step_mask)


def _only(facts: ModelFacts, sequences: ExplainedSequences, steps: Steps | None) -> ExplainedSequences:
    """The same with only these steps to explain."""
    if steps is None:
        return sequences
    mask = explained_mask(steps, sequences.step_mask)
    return sequences.only(mask, of_all_processes(mask.any(0).nonzero().flatten().tolist(), facts.sharing_groups))


def _output(
    facts: ModelFacts,
    sequences: ExplainedSequences,
    config: GradELLMConfig,
    heatmaps: Heatmaps,
    generated: dict[str, Any],
    explained: Tensor | None,
) -> ExplainGenerateOutput:
    known = {name: value for name, value in generated.items() if name in ExplainGenerateOutput.__dataclass_fields__}
    by_layer, steps, num_steps = heatmaps.layer_attributions, heatmaps.steps, sequences.num_steps
    rows, prompt_length = sequences.token_ids.shape[0], sequences.prompt_length
    prompt_mask = torch.ones(rows, prompt_length, dtype=torch.bool, device=sequences.token_ids.device)
    if sequences.attention_mask is not None:
        prompt_mask = sequences.attention_mask[:, :prompt_length] != 0
    return ExplainGenerateOutput(
        **known,
        attributions=among_zeros(heatmaps.attributions.float(), steps, num_steps),
        step_mask=sequences.step_mask,
        prompt_length=prompt_length,
        target_scores=among_zeros(heatmaps.target_scores.float(), steps, num_steps, -1),
        token_probabilities=among_zeros(heatmaps.token_probabilities.float(), steps, num_steps, -1),
        layer_attributions=None if by_layer is None else among_zeros(by_layer.float(), steps, num_steps),
        explained_mask=explained,
        prompt_mask=prompt_mask,
        image_mask=_image_mask(facts, sequences),
        layers=heatmaps.layers,
        layer_names=[facts.layer_names[layer] for layer in heatmaps.layers],
        explain_config=config,
        model_name=getattr(facts.model.config, "name_or_path", "") or type(facts.model).__name__,
    )


def _image_mask(facts: ModelFacts, sequences: ExplainedSequences) -> Tensor | None:
    """Which prompt positions hold an image, `[R, P]`; None for models that read no images, and prompts without token ids."""
    if sequences.token_ids.shape[1] != sequences.length:
        return None
    return placeholder_mask(facts, sequences.token_ids[:, : sequences.prompt_length], ("image", "video"))
