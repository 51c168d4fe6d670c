"""`explain_stream`: each new token while `generate` goes on writing, and its heatmap, with it or in blocks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from ..architecture.caches import prompt_cache
from ..architecture.compat import cache_of
from ..architecture.facts import ModelFacts, explained_layers, look_at
from ..architecture.hooks import thread_hook
from ..architecture.support import without_wrapper
from ..checks.arguments import whole_number
from ..configuration import GradELLMConfig
from ..engines.explain import explain
from ..errors import InvalidInputError
from ..sequences.generate_call import GenerateCall
from ..sequences.recording import PromptRecording, record_prompt
from .pulled import pulled
from .step import ExplainedStep, fill_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def explain_stream(
    model: Any,
    inputs: Tensor | None = None,
    *,
    explain_config: GradELLMConfig | None = None,
    every: int = 1,
    **generate_kwargs: Any,
) -> Iterator[ExplainedStep]:
    """Generates as `model.generate` does, and yields each new token as soon as it is chosen, with its heatmap.

    With `every=1` a token waits for its own heatmap, by the stepwise engine, whatever `explain_config.engine` says. This costs
    several times as much as the generation. With `every=k` a token waits for nothing. When the k-th was yielded, and the next
    one is asked for, the k of them are explained together, and their steps filled in (`is_explained`). The last block may be
    shorter; it is explained when the generation has ended, so after the loop every step is explained. A loop that is left early
    leaves the steps of its last block unexplained.

    `generate` runs in a thread of its own, and only while the next token is waited for. Its CUDA device and stream are those
    that are current when the first token is asked for. `torch.autocast` around the loop does not reach it. The generation ends
    when the iterator is closed, or when nothing refers to it any more.

    Args:
        model: As for `explain_generate`.
        inputs: Prompt, `[batch, P]`, as for `model.generate`. Batches are padded on the left.
        explain_config: What to explain and how. For `target="contrast"`, give one foil for all steps.
        every: How many tokens are explained together.
        **generate_kwargs: Everything else that `model.generate` takes, except beams. A `streamer` gets the tokens too.

    Yields:
        One `ExplainedStep` per token. Together they hold what `explain_generate` returns for the same arguments.

    Raises:
        UnsupportedArchitectureError: The model cannot be explained exactly.
        InvalidInputError: An argument or the state of the model is not usable, or beam search is asked for.

    Examples:
        >>> for step in explain_stream(model, **inputs, max_new_tokens=3):
        ...     print(step.step, step.attributions.shape)  # n, [R, P + n]
        0 torch.Size([1, 5])
        1 torch.Size([1, 6])
        2 torch.Size([1, 7])
        >>> steps = []
        >>> for step in explain_stream(model, **inputs, max_new_tokens=3, every=2):
        ...     steps.append(step)
        ...     print([known.is_explained for known in steps])
        [False]
        [False, False]
        [True, True, False]
        >>> steps[-1].attributions.shape  # after the loop
        torch.Size([1, 7])
    """
    every = whole_number("every", every, low=1)
    model, config = without_wrapper(model, explain_config)
    facts = look_at(model)
    inner, layers = facts.model, explained_layers(facts, config)
    beams = _num_beams(inner, generate_kwargs)
    if beams > 1:
        raise InvalidInputError(
            f"Beam search (`num_beams={beams}`) settles its tokens only at the end, so there is nothing to stream. Use "
            "`num_beams=1`, or `explain_generate`."
        )
    call = GenerateCall(facts, inputs, generate_kwargs)
    if call.embeds is not None and (config.channel == "attention_output" or not facts.keeps_cache):
        raise InvalidInputError(
            "A prompt of `inputs_embeds` would have to be read again for each token, which streaming does not do for this "
            "model or channel. Pass token ids, or use `explain_generate`."
        )
    generate: Any = model.generate if hasattr(model, "generate") else inner.generate  # data-parallel wrappers have none
    if every == 1:
        config = replace(config, engine="stepwise")

    def produce(give: Callable[[ExplainedStep], None]) -> None:
        with record_prompt(facts, call.prompt_length, decoding=call.is_plain_loop) as recording:
            streamer = _StepExplainer(facts, call, recording, config, layers, every, give)
            handle = inner.register_forward_hook(thread_hook(streamer.keep_cache))
            try:
                returned = generate(inputs, **{**call.generate_kwargs, "streamer": streamer})
                streamer.finish(returned if isinstance(returned, Tensor) else returned["sequences"])
            finally:
                handle.remove()

    return pulled(produce)


class _StepExplainer(BaseStreamer):
    """Hands on each token when `generate` streams it, and explains blocks of them on a cache of its own."""

    def __init__(
        self,
        facts: ModelFacts,
        call: GenerateCall,
        recording: PromptRecording,
        config: GradELLMConfig,
        layers: list[int],
        every: int,
        give: Callable[[ExplainedStep], None],
    ):
        self._facts, self._call, self._recording = facts, call, recording
        self._config, self._layers, self._every, self._give = self._apart(config), layers, every, give
        self._streamer: BaseStreamer | None = call.generate_kwargs.get("streamer")
        self._sequences: Tensor | None = None
        self._block: list[ExplainedStep] = []  # steps that are not explained yet
        self._num_steps = 0
        self._last_cache: Any = None
        self._cache: Any = None  # of what comes before the block
        self._explains = False

    def keep_cache(self, module: Any, args: Any, outputs: Any) -> None:
        """A forward hook: keeps the cache that the explanation leaves, for the next block."""
        if self._explains:
            self._last_cache = cache_of(outputs)

    @contextmanager
    def _explaining(self, explains: bool) -> Iterator[None]:
        before, self._explains = self._explains, explains
        try:
            yield
        finally:
            self._explains = before

    def _apart(self, config: GradELLMConfig) -> GradELLMConfig:
        """The same configuration; a `target` that calls the model itself is kept apart from the calls of the explanation."""
        target = config.target
        if not callable(target):
            return config

        def apart(logits: Tensor, token_ids: Tensor) -> Tensor:
            with self._explaining(False):
                return target(logits, token_ids)

        return replace(config, target=apart)

    def put(self, value: Tensor) -> None:
        if self._streamer is not None:
            self._streamer.put(value)
        value = value.to(self._facts.input_device)
        if self._sequences is None:  # `generate` streams the prompt first
            self._sequences = value
            return
        for tokens in value.reshape(self._sequences.shape[0], -1).unbind(1):  # assisted decoding streams several at once
            self._sequences = torch.cat([self._sequences, tokens[:, None]], dim=1)
            self._take(tokens)

    def end(self) -> None:
        if self._streamer is not None:
            self._streamer.end()

    def finish(self, returned: Tensor) -> None:
        """Explains what is left, when `generate` has returned `[R, S]`.

        Raises:
            InvalidInputError: These are other tokens than it streamed.
        """
        if self._sequences is None or not torch.equal(returned.to(self._sequences.device), self._sequences):
            raise InvalidInputError(
                "`generate` did not stream the tokens that it returned, so they could not be explained one by one. A "
                "`custom_generate` function passes the prompt and each new token to its `streamer`; or use `explain_generate`."
            )
        if self._block:
            self._explain_block()

    def _take(self, token_ids: Tensor) -> None:
        """Takes in a new token of each row, `[R]`."""
        if self._num_steps == 0:  # later, a window may have moved on from the prompt
            self._cache = prompt_cache(self._recording.cache, self._call.prompt_length - 1)
            if self._cache is None:
                self._call.check_readable_again(self._recording)
        step = ExplainedStep(self._num_steps, token_ids, self._call.step_mask({"sequences": self._sequences})[:, -1])
        self._num_steps += 1
        self._block.append(step)
        if self._every == 1:
            self._explain_block()
            self._give(step)
            return
        self._give(step)
        if len(self._block) == self._every:
            self._explain_block()

    def _explain_block(self) -> None:
        steps, self._block = self._block, []
        first = steps[0].step
        sequences = self._call.sequences({"sequences": self._sequences}, self._recording, self._recording.cache)
        block = replace(sequences.after(first), step_mask=torch.stack([step.step_mask for step in steps], dim=1))
        with self._explaining(True), self._recording.paused():
            heatmaps = explain(self._facts, block, self._config, self._layers, self._cache)
        self._cache = self._last_cache
        fill_in(steps, heatmaps)


def _num_beams(model: "PreTrainedModel", kwargs: dict[str, Any]) -> int:
    configurations = (kwargs.get("generation_config"), model.generation_config)
    options = (kwargs.get("num_beams"), *(getattr(c, "num_beams", None) for c in configurations))
    return next((beams for beams in options if beams is not None), 1)
