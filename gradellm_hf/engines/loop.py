"""The loop that all engines share: run a chunk of steps, evaluate the target, run the backward pass, add up the heatmaps."""

import contextlib
import functools
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..architecture.caches import detach_cache, fork_if_plain, key_lengths, written_to_before_backward
from ..architecture.compat import cache_of, heeded_keywords
from ..architecture.facts import ModelFacts
from ..architecture.interception import attention_handler
from ..architecture.offloading import reload_offloaded_weights
from ..architecture.tensor_parallel import first_head, head_group, out_of_memory_in_group, sum_over_heads
from ..configuration import GradELLMConfig
from ..errors import UnsupportedArchitectureError
from ..sequences.explained import ExplainedSequences
from .attention_output import AttentionOutputChannel
from .formula import HeadFormula
from .heatmap_sums import Heatmaps
from .memory import is_out_of_memory, out_of_memory, progress_bar, release_memory
from .position_local import AttentionOptions
from .targets import check_contrast, contrast_ids, evaluate_target

Record = Callable[[int, Tensor], None]
FormulaOf = Callable[[int, int], HeadFormula]
#: Takes the formula of a layer, its number, the first step of the chunk and how many positions the last one sees; returns the
#: formula to use.
Watch = Callable[[HeadFormula, int, int, int], HeadFormula]
AttentionResult = tuple[Tensor, Tensor | None]  # the head outputs `[R, N, H, Dv]`, and attention weights


class AttentionWatch(ABC):
    """How an engine looks at the attention layers during one forward pass and its backward pass.

    The forward pass starts without gradients. They are switched on when it reaches the lowest explained layer, so that nothing
    of the layers below is kept.

    Attributes:
        forward_kwargs: What the forward pass is asked for in addition.
        whole_prefix: Whether the forward pass runs from the first position on, without a cache.

    Args:
        facts: The model.
        layers: Explained layers, ascending, as numbers of calls.
        formula_of: How the heads make the heatmap of a layer, given its number and how many heads this process has; None if
            `channel="attention_output"` computes the heatmaps.
        record: Takes a layer and its heatmap, `[R, N, T]`; called in the backward pass.
        head_widths: Takes the channels of the head outputs of each explained layer, `H * D` of the heads in this process.
    """

    forward_kwargs: ClassVar[dict[str, Any]] = {}
    whole_prefix: ClassVar[bool] = False

    def __init__(
        self,
        facts: ModelFacts,
        layers: list[int],
        formula_of: FormulaOf | None,
        record: Record,
        head_widths: dict[int, int],
    ):
        self.facts, self.layers, self.formula_of, self.record, self.head_widths = facts, layers, formula_of, record, head_widths

    @abstractmethod
    def open(self, cache: Any, num_positions: int) -> AbstractContextManager[Any]:
        """The context of a forward pass over `num_positions` positions on `cache`."""

    @abstractmethod
    def backward(self, outputs: Any, gradient: Tensor) -> None:
        """Backpropagates `gradient` from the last logits (`[R, N, V]`) to the lowest explained layer, recording heatmaps."""

    @abstractmethod
    def visible(self) -> Tensor:
        """The mask of the layer that is running, bool or additive, `[R or 1, H or 1, N, T]`."""


class InterfaceWatch(AttentionWatch):
    """Takes the place of the attention function of a model that looks it up in Transformers' AttentionInterface."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._num_calls = 0
        self._mask: Callable[[], Tensor] = _no_mask
        self._num_keys: dict[int, int] = {}

    @contextlib.contextmanager
    def open(self, cache: Any, num_positions: int) -> Iterator[None]:
        self._num_keys = key_lengths(cache, num_positions)
        try:
            with attention_handler(self.facts.model, self._handle):
                yield
        finally:
            # The last one refers to the graph, whose backward functions refer to this watch: a cycle that nobody collects.
            self._mask = _no_mask
        expected = len(self.facts.attention)
        if self._num_calls != expected:
            raise UnsupportedArchitectureError(
                f"`{self.facts.model_type}` called its attention function {self._num_calls} times in a forward pass and "
                f"{expected} times in another one, so its layers cannot be told apart."
            )

    def visible(self) -> Tensor:
        return self._mask()

    def _handle(
        self,
        function: Callable[..., AttentionResult],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        **keywords: Any,
    ) -> AttentionResult:
        layer = self._num_calls
        self._num_calls += 1
        expected = self._num_keys.get(getattr(module, "layer_idx", -1), key.shape[2])
        if key.shape[2] != expected:
            raise UnsupportedArchitectureError(
                f"{type(module).__name__} of `{self.facts.model_type}` attends to {key.shape[2]} keys, but its cache "
                f"has {expected} positions: some of its keys do not stand for one token each."
            )

        def own() -> AttentionResult:
            return function(module, query, key, value, attention_mask, scaling=scaling, **keywords)

        def options() -> AttentionOptions:
            return AttentionOptions.from_call(module, query, key, attention_mask, scaling, heeded_keywords(function, keywords))

        self._mask = lambda: options().mask
        self.head_widths[layer] = query.shape[1] * value.shape[-1]
        if layer == self.layers[0]:
            torch.set_grad_enabled(True)  # undone by the `no_grad` around the forward pass
        return self.attend(layer, own, query, key, value, options)

    @abstractmethod
    def attend(
        self,
        layer: int,
        own: Callable[[], AttentionResult],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        options: Callable[[], AttentionOptions],
    ) -> AttentionResult:
        """The head outputs `[R, N, H, Dv]` and attention weights, as an attention function returns them.

        `own()` runs the model's own attention on the same arguments. `options()` is what else goes into the softmax.
        """


def _no_mask() -> Tensor:
    raise RuntimeError("No layer is running.")


def explain_steps(
    facts: ModelFacts,
    sequences: ExplainedSequences,
    config: GradELLMConfig,
    layers: list[int],
    cache: Any,
    watch_type: type[AttentionWatch],
    chunk_size: int,
    prompt_at_once: bool = False,
    watch: Watch | None = None,
) -> Heatmaps:
    """Explains the steps of `sequences` in chunks on top of a cache of the prompt. Steps that are not asked for are only read.

    If a chunk does not fit in memory, it is explained again in halves.

    Args:
        layers: Explained layers, ascending.
        cache: Keys and values of the first `P - 1` positions, which this call may change. None: they are computed.
        chunk_size: Number of steps to explain together.
        prompt_at_once: Explain the first step in one call that reads the whole prompt, as `generate` does. It is for models
            whose result depends on how many tokens a call has; the gradients of a whole prompt take memory.
        watch: Changes the formulas, to see what the heads contribute.

    Raises:
        GradELLMError: Not even a single step fits in memory.
        LogitsDifferError: The logits are not those of the generation.
    """
    channel = None
    if config.channel == "attention_output":
        channel = AttentionOutputChannel(facts.model, {i: facts.attention[i] for i in layers}, config.spatial)
    run = _Run(facts, sequences, config, layers, watch_type, channel, prompt_at_once, watch)
    with channel or contextlib.nullcontext(), progress_bar(sequences.num_steps) as progress:
        if prompt_at_once:
            cache = None
        elif (cache is None or channel is not None) and not watch_type.whole_prefix:
            with run.watched():
                cache = sequences.prefill(facts)
        first, wanted = 0, sequences.explained_steps
        while wanted and first <= wanted[-1]:
            last = sequences.chunk_end(first, chunk_size)
            inside = wanted[bisect_left(wanted, first) : bisect_left(wanted, last)]
            is_explained = bool(inside) and inside[0] == first
            last = inside[-1] + 1 if is_explained else inside[0] if inside else last
            try:
                cache = (run.explain if is_explained else run.read)(first, last, cache)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if last - first == 1:
                    raise out_of_memory(sequences) from error
                if facts.sharing_groups:
                    raise out_of_memory_in_group(last - first) from error
                chunk_size = (last - first) // 2
                run.undo()
            else:
                progress.update(last - first)
                first = last
                continue
            release_memory()  # only here: the error, and the tensors that its traceback refers to, are gone now
    return run.heatmaps


class _Run:
    """One call of `explain_steps`."""

    def __init__(
        self,
        facts: ModelFacts,
        sequences: ExplainedSequences,
        config: GradELLMConfig,
        layers: list[int],
        watch_type: type[AttentionWatch],
        channel: AttentionOutputChannel | None,
        prompt_at_once: bool,
        watch: Watch | None,
    ):
        self.prompt_at_once, self.watch_formula = prompt_at_once, watch
        self.facts, self.sequences, self.config, self.layers = facts, sequences, config, layers
        self.watch_type, self.channel = watch_type, channel
        self.heatmaps = Heatmaps.empty(sequences, config, layers, facts.model.dtype)
        foils = contrast_ids(config, sequences.written_ids, facts.vocabulary_size)
        self._foils = None if foils is None else foils[:, sequences.first_step :]
        if self._foils is not None:
            check_contrast(self._foils, sequences.generated_ids, sequences.step_mask, sequences.first_step)

    def watched(self) -> AbstractContextManager[Any]:
        return self.channel.watch() if self.channel else contextlib.nullcontext()

    def read(self, first: int, last: int, cache: Any) -> Any:
        """Reads what the steps `first:last` are predicted from, and explains nothing; else as `explain`."""
        if self.watch_type.whole_prefix:
            return cache
        begin, end, prompt_kwargs = self._positions(first, last)
        if self.channel:
            self.channel.open_chunk(last - first, None, None, whole_prefix=begin == 0)
        with self.watched():
            return self.sequences.read(self.facts, begin, end, fork_if_plain(cache), **prompt_kwargs)

    def _positions(self, first: int, last: int) -> tuple[int, int, dict[str, Any]]:
        """The positions `begin, end` that a call for these steps reads, and arguments that belong to the prompt."""
        start = self.sequences.prompt_length - 1
        if self.watch_type.whole_prefix or (first == 0 and self.prompt_at_once):
            return 0, start + last, self.sequences.prefill_kwargs
        return start + first, start + last, {}

    def explain(self, first: int, last: int, cache: Any) -> Any:
        """Explains the steps `first:last` on a cache of what comes before them; returns one that holds them too."""
        sequences, channel, steps = self.sequences, self.channel, slice(first, last)
        begin, end, prompt_kwargs = self._positions(first, last)
        missing, heatmaps = set(self.layers), self.heatmaps.chunk(first, last)
        head_widths: dict[int, int] = {}

        @functools.cache
        def group(layer: int) -> Any | None:
            return head_group(self.facts.attention[layer], head_widths[layer])

        def formula_of(layer: int, num_heads: int) -> HeadFormula:
            formula = HeadFormula.of_layer(self.config, layer, num_heads, first_head(group(layer), num_heads))
            return formula if self.watch_formula is None else self.watch_formula(formula, layer, first, end)

        def record(layer: int, heatmap: Tensor) -> None:
            missing.discard(layer)
            if channel is None:  # a channel has gathered all heads already
                heatmap = sum_over_heads(heatmap, group(layer))
            heatmaps.add(layer, heatmap)

        watch = self.watch_type(self.facts, self.layers, None if channel else formula_of, record, head_widths)
        if channel:
            channel.open_chunk(last - first, watch.visible, record, whole_prefix=begin == 0)
        cache = fork_if_plain(cache)  # if this fails, the cache from before is still there
        with reload_offloaded_weights(self.facts.model), written_to_before_backward(cache, self.prompt_at_once):
            with torch.no_grad(), self.watched(), watch.open(cache, end - begin):
                outputs = sequences.forward(self.facts, begin, end, cache, **prompt_kwargs, **watch.forward_kwargs)
            logits = outputs.logits[:, first - last :]
            ids, mask = (x[:, steps].to(logits.device) for x in (sequences.generated_ids, sequences.step_mask))
            if sequences.written_logits is not None:
                sequences.written_logits.check(first, logits, mask, sequences.first_step)
            foils = None if self._foils is None else self._foils[:, steps].to(ids.device)
            targets = evaluate_target(self.config, logits, ids, mask, foils)
            self.heatmaps.set_targets(first, last, targets)
            watch.backward(outputs, targets.gradient.to(logits.dtype))
        if missing:
            raise UnsupportedArchitectureError(
                f"No gradient reaches the attention layers {sorted(missing)} of `{self.facts.model_type}`: something "
                "above cannot be differentiated (a quantised layer without a backward pass, say). Load the model without it."
            )
        self.heatmaps.put(heatmaps, targets.scale)
        if watch.whole_prefix:
            return cache
        detach_cache(cache := cache_of(outputs))
        return cache

    def undo(self) -> None:
        """Forgets what a failed attempt has left."""
        if self.channel:
            self.channel.close_chunk()
