"""`ExplainBatch`: rows with prompts in, rows with explained answers out, for engines that map batches."""

import os
from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch

from ..checks.arguments import choice, is_list, string, whole_number
from ..configuration import GradELLMConfig, checked_config
from ..errors import GradELLMError, InvalidInputError
from ..jobs.prompts import COLUMNS, PromptReader
from ..model import GradELLM
from ..results.kept import Keep, needed_keep
from ..results.ranking import Of
from ..text.encoding import text_tokenizer
from ..text.readable import Level
from .attempts import Attempts
from .batches import SortedPrompts, checked_sizes
from .rows import Rows, described, new_columns
from .shards import Result


class ExplainBatch:
    """Explains what a model writes after each prompt of a batch of rows. It is called by an engine, which holds the rows.

    - Ray: `dataset.map_batches(ExplainBatch, fn_constructor_kwargs={"model": name, ...}, ...)`. Each actor of the pool loads
      the model once. `num_gpus=1` gives each a GPU of its own.
    - `datasets`: `dataset.map(ExplainBatch(name, ...), batched=True)`. With `num_proc=4, with_rank=True`, each process takes
      the next GPU.

    The engine cuts rows into batches, starts processes, tries again what a dead one was working on, and writes Parquet. A
    batch that is tried again gets the same answers, also if they are sampled.

    A batch is a `pyarrow.Table`, a `pandas.DataFrame`, or a mapping of columns; the result is a `pyarrow.Table`. It has the
    rows of the batch, each as often as `num_return_sequences` says, and with further columns:

    - `answer`: the generated text, without special tokens.
    - `sources`: for each part of the answer: `by` (a level of `sources`), `name`, `text`, `start`, `end`, `probability`, its
      `sources` (`name`, `text`, `start`, `end`, `share`) and what is `ignored`, as `Explanation.sources` has them.
    - `tokens`, `token_ids`: all `S`, of the prompt and of the answer. Joined, the tokens are the text. `prompt_length`: how
      many are the prompt's; the other `N` are generated.
    - `token_probabilities`: `N`.
    - `positions`, `scores`: `N` lists: the strongest scores of each generated token, strongest first, and which of `tokens`
      have them. `rest`: `N` numbers: what the sizes of all its other scores add up to.
    - `error`: class and message if the row could not be explained. Then the other columns are null; else this one is.

    Args:
        model: The name of a model on the Hub or its folder; or a function without arguments that returns a `GradELLM` with
            its tokenizer. It is called once in each process, so it must be picklable. For other options than
            `GradELLM.from_pretrained` takes by default: `functools.partial(GradELLM.from_pretrained, name, dtype="float16")`.
        explain_config: What to explain and how. None: what the model says.
        column: The column with the prompt: a text or a chat. None: `prompt`, `messages` or `chat`.
        batch_size: Number of prompts that are explained together, of similar length. Let the engine's batches be several
            times as large.
        batch_tokens: At most so many prompt tokens together, padding included, unless a single prompt has more. None: any
            number.
        seed: Of sampling.
        keep: `"top"` or a number: which scores of each generated token are kept, as `Explanation.compact` has it.
        sources: What the sources are: a level, such as `"sentence"`, or several; `()` for none. See `Explanation.sources`.
        of: The parts of the answer that have sources.
        prefix: What the names of the new columns begin with; for rows that have an `answer` of their own, say.
        **generate_kwargs: For `GradELLM.explain`: `max_new_tokens`, `do_sample`, `steps`, `tools`, ...

    Raises:
        InvalidInputError: An argument is not usable. When it is called: the rows have no column with prompts, or have one of
            the new columns; or no prompt can be explained with these arguments.
        MissingDependencyError: pyarrow is not installed.
        UnsupportedArchitectureError: The model cannot be explained exactly, when it is called.

    Examples:
        >>> explain = ExplainBatch(lambda: GradELLM(model, tokenizer), max_new_tokens=2)
        >>> table = explain({"id": [7, 8], "prompt": ["The capital of Italy is", ""]})
        >>> table["id"].to_pylist(), len(table["scores"][0])  # N
        ([7, 8], 2)
        >>> print(table["error"][1])  # an empty prompt fails
        InvalidInputError: The prompt is empty: ...
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Callable[[], GradELLM],
        *,
        explain_config: GradELLMConfig | None = None,
        column: str | None = None,
        batch_size: int = 8,
        batch_tokens: int | None = None,
        seed: int = 0,
        keep: Keep = "top",
        sources: Level | Sequence[Level] = "sentence",
        of: Of = "sentence",
        prefix: str = "",
        **generate_kwargs: Any,
    ):
        new_columns()  # pyarrow is there
        if isinstance(model, torch.nn.Module | GradELLM) or not (isinstance(model, str | os.PathLike) or callable(model)):
            raise InvalidInputError(
                "`model` must be the name of a model, its folder, or a function that loads it, since each process loads its "
                f"own; got {type(model).__name__}. To use one that is in memory, in this process: `lambda: explainer`, with "
                "`explainer = GradELLM(model, tokenizer)`."
            )
        self._model, self._explain_config = model, checked_config(explain_config)
        self._column, self._prefix = string("column", column, none="prompt, messages or chat"), string("prefix", prefix)
        self._batch_size, self._batch_tokens = checked_sizes(batch_size, batch_tokens)
        self._seed, self._keep = whole_number("seed", seed), needed_keep(keep)
        levels: Any = sources
        self._by: list[Level] = list(levels) if is_list(levels) else [levels]
        for level in self._by:
            choice("sources", level, get_args(Level))
        self._of: Of = choice("of", of, get_args(Of))
        self._generate_kwargs = generate_kwargs
        self._loaded: tuple[GradELLM, Attempts] | None = None

    def __call__(self, batch: Any, rank: int | None = None) -> Any:
        """The rows of a batch with the new columns.

        Args:
            batch: A `pyarrow.Table`, a `pandas.DataFrame`, or a mapping of columns.
            rank: The number of this process among those that `datasets.map` started, with `with_rank=True`.

        Returns:
            A `pyarrow.Table`.

        Raises:
            InvalidInputError: As for the class.
        """
        rows = Rows(batch)
        self._check_names(rows.names)
        if not rows.records:
            return rows.with_columns([], [], self._prefix)
        explainer, attempts = self._load(rank)
        reader = PromptReader(rows.records, self._column)
        prompts = SortedPrompts(explainer.tokenizer, reader, self._batch_size, self._batch_tokens, self._generate_kwargs)
        seed = f"{self._seed}-{prompts.fingerprint}"
        found = [
            (result.index, values)
            for places in prompts.batches(range(len(prompts)))
            for result in attempts.explain(prompts, places, seed)
            for values in self._described(result)
        ]
        found.sort(key=lambda row: row[0])
        return rows.with_columns([index for index, _ in found], [values for _, values in found], self._prefix)

    def _described(self, result: Result) -> list[dict[str, Any]]:
        if result.error is not None:
            return [{"error": result.error}]
        try:
            return [described(explanation, self._keep, self._by, self._of) for explanation in result.explanations]
        except GradELLMError as error:  # sources that this prompt does not have
            return [{"error": f"{type(error).__name__}: {error}"}]

    def _check_names(self, names: list[str]) -> None:
        columns = COLUMNS if self._column is None else (self._column,)
        if not set(columns) & set(names):
            raise InvalidInputError(
                f"The rows have no column {' or '.join(map(repr, columns))}; they have {names}. Name the one with the prompts "
                "with `column`."
            )
        if taken := [self._prefix + name for name in new_columns() if self._prefix + name in names]:
            raise InvalidInputError(
                f"The rows have columns {taken} already. Remove them, or give the new ones other names with `prefix`."
            )

    def _load(self, rank: int | None) -> tuple[GradELLM, Attempts]:
        """The model, loaded when the first batch comes: not where the object is made, but where it works."""
        if self._loaded is None:
            device_map: Any = "auto"
            if rank is not None and torch.accelerator.is_available():
                torch.accelerator.set_device_index(rank % torch.accelerator.device_count())
                device_map = {"": torch.accelerator.current_accelerator()}
            if isinstance(self._model, str | os.PathLike):
                explainer = GradELLM.from_pretrained(self._model, device_map=device_map)
            else:
                explainer = self._model()
                if not isinstance(explainer, GradELLM):
                    raise InvalidInputError(f"`model` must return a GradELLM, got {type(explainer).__name__}.")
            text_tokenizer(explainer.tokenizer)
            if self._explain_config is not None:
                explainer = GradELLM(explainer.model, explainer.tokenizer, self._explain_config)
            self._loaded = explainer, Attempts(explainer, self._generate_kwargs)
        return self._loaded

    def __getstate__(self) -> dict[str, Any]:
        """Without the model: what is sent to other processes, and what `datasets` recognises the same work by."""
        return {**self.__dict__, "_loaded": None}
