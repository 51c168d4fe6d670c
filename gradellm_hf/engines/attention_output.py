"""`channel="attention_output"`: gradients at the attention modules' outputs, and the raw queries, keys and values.

The published implementation (`GradELLMConfig.paper()`) looks there. No cache has the keys and values before RoPE, so the prompt
runs once more, with hooks on the projections. The heatmap of a layer is computed when the backward pass reaches the output of
its attention module.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..architecture.adapters import find_adapter
from ..architecture.hooks import thread_hook
from ..architecture.tensor_parallel import gather_heads
from ..errors import UnsupportedArchitectureError
from .formula import flattened_layer_heatmap, visible_keys

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AttentionOutputChannel:
    """Computes heatmaps from what the projections and the attention modules of the explained layers put out.

    A context manager: its hooks are on the modules while it is open, and see calls of this thread only. Queries, keys and
    values are kept when a forward pass computes them; a chunk's keys and values are added to those of the chunks before.

    Args:
        model: The model; its adapter names the projections.
        modules: Attention modules of the explained layers, by layer.
        spatial: `"attention"` or `"loosened"`; see `GradELLMConfig`.
    """

    def __init__(self, model: "PreTrainedModel", modules: dict[int, nn.Module], spatial: str):
        self._modules, self._spatial = modules, spatial
        self._adapter = find_adapter(model)
        self._states: dict[int, dict[str, Tensor]] = {layer: {} for layer in modules}
        self._before = self._states
        self._handles: list[Any] = []
        self._watching = False
        self._mask: Callable[[], Tensor] | None = None
        self._record: Callable[[int, Tensor], None] | None = None

    def open_chunk(
        self,
        num_steps: int,
        mask: Callable[[], Tensor] | None,
        record: Callable[[int, Tensor], None] | None,
        *,
        whole_prefix: bool,
    ) -> None:
        """To be called before the forward pass of a chunk. The backward pass then calls `record` once per layer.

        Without `mask` and `record` the chunk is only read.

        Args:
            num_steps: Number of steps in the chunk, `N`. Its last `N` queries predict them.
            mask: Returns the attention mask of the layer that is running, `[R or 1, H or 1, queries, T]`.
            record: Is called with a layer and its heatmap, `[R, N, T]`.
            whole_prefix: Whether the forward pass begins at the first position again, so that nothing is kept from before.
        """
        self._num_steps, self._mask, self._record = num_steps, mask, record
        if whole_prefix:
            self._states = {layer: {} for layer in self._modules}
        self._before = {layer: dict(states) for layer, states in self._states.items()}

    def close_chunk(self) -> None:
        """Forgets what was kept since `open_chunk`, so that the chunk can be run again."""
        self._states = self._before

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """A context for the model calls that count. Other calls, such as those of a target function, are not looked at."""
        self._watching = True
        try:
            yield
        finally:
            self._watching = False

    def __enter__(self) -> "AttentionOutputChannel":
        try:
            for layer, module in self._modules.items():
                for projection, by_name in self._projections(module):
                    hook = thread_hook(self._projection_hook(layer, by_name))
                    self._handles.append(projection.register_forward_hook(hook))
                self._handles.append(module.register_forward_hook(thread_hook(self._output_hook(layer))))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._mask = self._record = None  # they reach the run that made this object

    def _projections(self, module: nn.Module) -> Any:
        try:
            return self._adapter.projections(module)
        except AttributeError as error:
            raise UnsupportedArchitectureError(
                f'`channel="attention_output"` looks at the query, key and value projections. {error}'
            ) from error

    def _projection_hook(
        self, layer: int, by_name: Callable[[Tensor], dict[str, Tensor]]
    ) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            if not self._watching:
                return
            states = self._states[layer]
            for name, projected in by_name(gather_heads(output.detach(), module)).items():
                if name != "query" and name in states:
                    projected = torch.cat([states[name], projected], dim=1)
                states[name] = projected

        return hook

    def _output_hook(self, layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not self._watching or self._mask is None:
                return
            attention_output = output[0] if isinstance(output, tuple) else output
            query, key, value = self._projected(layer)
            last = slice(-self._num_steps, None)
            self._check_widths(module, attention_output, query, key, value)
            visible, query = visible_keys(self._mask())[:, 0, last], query[:, last]
            precision = torch.promote_types(query.dtype, torch.float32)
            query, key, value = (x.to(precision) for x in (query, *(x[:, -visible.shape[-1] :] for x in (key, value))))

            def differentiate(gradient: Tensor) -> None:
                heatmap = flattened_layer_heatmap(gradient[:, last].to(precision), query, key, value, visible, self._spatial)
                if self._record is not None:
                    self._record(layer, heatmap)

            attention_output.register_hook(differentiate)

        return hook

    def _projected(self, layer: int) -> list[Tensor]:
        states, names = self._states[layer], ("query", "key", "value")
        if missing := [name for name in names if name not in states]:
            raise UnsupportedArchitectureError(
                f'`channel="attention_output"` looks at the query, key and value projections, and attention layer {layer} did '
                f'not run its own of {missing}: it takes them from another layer. Use `channel="heads"`.'
            )
        return [states[name] for name in names]

    def _check_widths(self, module: nn.Module, output: Tensor, query: Tensor, key: Tensor, value: Tensor) -> None:
        widths = {name: x.shape[-1] for name, x in (("query", query), ("key", key), ("value", value))}
        if widths["query"] != output.shape[-1] or any(widths["query"] % width for width in widths.values()):
            raise UnsupportedArchitectureError(
                '`channel="attention_output"` multiplies the gradient at the attention output with the values of all heads, '
                f"so H * D must equal E; {type(module).__name__} has an output of {output.shape[-1]} channels, and "
                f'projections of {widths}. Use `channel="heads"`.'
            )
