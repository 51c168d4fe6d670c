"""`explain_stream`: each new token with its heatmap, while `generate` goes on writing."""

import contextvars
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from .architecture.caches import prompt_cache
from .architecture.compat import cache_of
from .architecture.facts import ModelFacts, explained_layers, look_at
from .architecture.hooks import thread_hook
from .architecture.running import explainable
from .architecture.support import not_finite, without_wrapper
from .architecture.tensor_parallel import check_same_text
from .configuration import GradELLMConfig
from .engines.stepwise import stepwise, stepwise_as_written
from .errors import InvalidInputError
from .sequences.generate_call import GenerateCall
from .sequences.recording import PromptRecording, record_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ExplainedStep:
    """One new token of every row, and what it rests on. `R` rows, `P` prompt length.

    Attributes:
        step: `n`, counted from 0.
        token_ids: The new tokens, `[R]` int64.
        attributions: `a[i]`, the contribution of each position before the new token, `[R, P + n]` float32; 0 for padding.
        token_probabilities: Softmax of the raw logits at the new token, `[R]` float32.
        target_scores: The explained scalar `f_n`, `[R]` float32.
        step_mask: False if a row had ended before, `[R]` bool. Its token is padding then, and everything else above is 0.
        layer_attributions: The heatmap of each explained layer, `[R, layers, P + n]` float32, with
            `output_layer_attributions=True`.

    Examples:
        >>> step = next(explain_stream(model, **inputs, max_new_tokens=4))
        >>> step.step, step.attributions.shape  # n, [R, P + n]
        (0, torch.Size([1, 5]))
    """

    step: int
    token_ids: Tensor
    attributions: Tensor
    token_probabilities: Tensor
    target_scores: Tensor
    step_mask: Tensor
    layer_attributions: Tensor | None = None


def explain_stream(
    model: Any, inputs: Tensor | None = None, *, explain_config: GradELLMConfig | None = None, **generate_kwargs: Any
) -> Iterator[ExplainedStep]:
    """Generates as `model.generate` does, and yields each new token with its heatmap as soon as the token is chosen.

    The stepwise engine explains, whatever `explain_config.engine` says. `generate` runs in a thread of its own, and only
    while the next token is waited for. Its CUDA device and stream are those that are current when the first token is asked
    for. `torch.autocast` around the loop does not reach it. The generation ends when the iterator is closed, or when nothing
    refers to it any more.

    Args:
        model: As for `explain_generate`.
        inputs: Prompt, `[batch, P]`, as for `model.generate`. Batches are padded on the left.
        explain_config: What to explain and how. For `target="contrast"`, give one foil for all steps.
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
    """
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

    def produce(give: Callable[[ExplainedStep], None]) -> None:
        with record_prompt(facts, call.prompt_length, decoding=call.is_plain_loop) as recording:
            streamer = _StepExplainer(facts, call, recording, config, layers, give)
            handle = inner.register_forward_hook(thread_hook(streamer.keep_cache))
            try:
                returned = generate(inputs, **{**call.generate_kwargs, "streamer": streamer})
            finally:
                handle.remove()
        streamer.check_complete(returned if isinstance(returned, Tensor) else returned["sequences"])

    return _pulled(produce)


class _StepExplainer(BaseStreamer):
    """Explains each token when `generate` streams it, on a cache of its own."""

    def __init__(
        self,
        facts: ModelFacts,
        call: GenerateCall,
        recording: PromptRecording,
        config: GradELLMConfig,
        layers: list[int],
        give: Callable[[ExplainedStep], None],
    ):
        self._facts, self._call, self._recording = facts, call, recording
        self._config, self._layers, self._give = self._apart(config), layers, give
        self._streamer: BaseStreamer | None = call.generate_kwargs.get("streamer")
        self._sequences: Tensor | None = None
        self._num_steps = 0
        self._last_cache: Any = None
        self._cache: Any = None
        self._explains = False

    def keep_cache(self, module: Any, args: Any, outputs: Any) -> None:
        """A forward hook: keeps the cache that the explanation leaves, for the next step."""
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
            self._give(self._explain(self._sequences, self._num_steps))
            self._num_steps += 1

    def end(self) -> None:
        if self._streamer is not None:
            self._streamer.end()

    def check_complete(self, returned: Tensor) -> None:
        """Raises InvalidInputError if `generate` returned other tokens, `[R, S]`, than it streamed."""
        if self._sequences is None or not torch.equal(returned.to(self._sequences.device), self._sequences):
            raise InvalidInputError(
                "`generate` did not stream the tokens that it returned, so they could not be explained one by one. A "
                "`custom_generate` function passes the prompt and each new token to its `streamer`; or use `explain_generate`."
            )

    def _explain(self, token_ids: Tensor, n: int) -> ExplainedStep:
        sequences = self._call.sequences({"sequences": token_ids}, self._recording, self._recording.cache)
        if n == 0:
            self._cache = prompt_cache(self._recording.cache, sequences.prompt_length - 1)
            if self._cache is None:
                self._call.check_readable_again(self._recording)
        written = sequences.written_logits
        step = replace(
            sequences,
            prompt_length=sequences.prompt_length + n,
            num_steps=1,
            step_mask=sequences.step_mask[:, -1:],
            prompt_embeds=sequences.prompt_embeds if n == 0 else None,
            written_logits=None if written is None else written.after(n),
            first_step=n,
        )
        check_same_text(self._facts.model, step.token_ids, step.prompt_length, 1)
        engine = stepwise_as_written if n == 0 else stepwise
        running = explainable(self._facts.model, padded=step.attention_mask is not None)
        with running, self._explaining(True), self._recording.paused():
            heatmaps = engine(self._facts, step, self._config, self._layers, self._cache)
        if not heatmaps.are_finite:
            raise not_finite(self._facts.model, self._config)
        self._cache = self._last_cache
        by_layer = heatmaps.layer_attributions
        return ExplainedStep(
            step=n,
            token_ids=token_ids[:, -1],
            attributions=heatmaps.attributions[:, 0, :-1].float(),
            token_probabilities=heatmaps.token_probabilities[:, 0].float(),
            target_scores=heatmaps.target_scores[:, 0].float(),
            step_mask=step.step_mask[:, 0],
            layer_attributions=None if by_layer is None else by_layer[:, :, 0, :-1].float(),
        )


def _num_beams(model: "PreTrainedModel", kwargs: dict[str, Any]) -> int:
    configurations = (kwargs.get("generation_config"), model.generation_config)
    options = (kwargs.get("num_beams"), *(getattr(c, "num_beams", None) for c in configurations))
    return next((beams for beams in options if beams is not None), 1)


class _Closed(BaseException):
    """Raised in the producing thread when nobody waits for its items any more."""


def _pulled(produce: Callable[[Callable[[Any], None]], None]) -> Iterator[Any]:
    """What `produce` gives to its argument, one item at a time.

    `produce` runs in a thread of its own, which waits until the next item is asked for. Its errors are raised here.
    The thread has the caller's context variables, and its current device and stream.
    """
    items: queue.SimpleQueue[tuple[Any, bool]] = queue.SimpleQueue()  # an item or, at the end, the error or None
    turns = threading.Semaphore(0)
    closed = threading.Event()
    stream = torch.accelerator.current_stream() if torch.cuda.is_available() else None

    def give(item: Any) -> None:
        items.put((item, False))
        turns.acquire()
        if closed.is_set():
            raise _Closed

    def work() -> None:
        error: BaseException | None = None
        try:
            if stream is not None:
                torch.accelerator.set_stream(stream)  # and its device
            produce(give)
        except _Closed:
            pass
        except BaseException as raised:
            error = raised
        items.put((error, True))

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), name="explain_stream", daemon=True)
    thread.start()
    try:
        while True:
            item, last = items.get()
            if last:
                if item is not None:
                    raise item
                return
            yield item
            turns.release()
    finally:
        closed.set()
        turns.release()
        thread.join()
