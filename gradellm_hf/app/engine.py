"""The model at work: answers that are streamed and can be stopped, and what is asked about them afterwards."""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from ..errors import GradELLMError, InvalidInputError
from ..generation import explain_sequences
from ..model import GradELLM
from ..results.chats import encoded_prompts
from ..results.explanation import Explanation
from ..results.removals import Removals
from ..text.chats import Chat
from ..text.encoding import text_tokenizer
from .settings import MOST_NEW_TOKENS, Settings

#: Answers that are written or explained at the same time; each keeps the keys and values of its text until it is explained.
_AT_ONCE = 4
#: For models without a chat template.
_PLAIN_TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}assistant:"
_PLAIN_STOP = ["\nuser:", "\n\nuser"]


class Engine:
    """A model that answers several users. Explanations are computed beside the next answers.

    Args:
        explainer: The model, with its tokenizer.
        most_new_tokens: The length of an answer at most, whatever the settings say.

    Raises:
        InvalidInputError: There is no tokenizer.
    """

    def __init__(self, explainer: GradELLM, most_new_tokens: int = MOST_NEW_TOKENS):
        self.explainer, self.most_new_tokens = explainer, most_new_tokens
        self._tokenizer = text_tokenizer(explainer.tokenizer)
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        self._template: dict[str, Any] = {}
        self._stops: dict[str, Any] = {}
        if getattr(self._tokenizer, "chat_template", None) is None:
            self._template, self._stops = {"chat_template": _PLAIN_TEMPLATE}, {"stop_strings": _PLAIN_STOP}

    @property
    def name(self) -> str:
        """The model's."""
        return str(getattr(self.explainer.config, "name_or_path", "") or type(self.explainer.model).__name__)

    @property
    def num_layers(self) -> int:
        return int(self.explainer.config.get_text_config(decoder=True).num_hidden_layers)

    def start(self, chat: Chat, settings: Settings) -> "Answering":
        """Begins to answer.

        Raises:
            InvalidInputError: The chat is too long for the model, or a setting is not usable.
        """
        kwargs = {**self._written_with(chat, settings), "explain_config": settings.explain_config()}
        self._places.acquire()
        return Answering(self.explainer, self._tokenizer, chat, kwargs, self._places.release)

    def answer(self, chat: Chat, settings: Settings) -> str:
        """An answer that is not explained.

        Raises:
            InvalidInputError: As `start`.
        """
        explanation = self.explainer.explain(chat, steps=slice(0), **self._written_with(chat, settings))
        return str(explanation.answer)

    def explain(self, chat: Chat, token_ids: list[int], prompt_length: int, settings: Settings) -> Explanation:
        """The explanation of an answer that was written before.

        Raises:
            InvalidInputError: A setting is not usable.
        """
        ids = torch.tensor([token_ids], device=self.explainer.device)
        out = explain_sequences(self.explainer, ids, prompt_length, explain_config=settings.explain_config())
        return out.explanations(self._tokenizer, [chat], **self._template)[0]

    def contrast(self, chat: Chat, answer: str, begin: int, foil: str, settings: Settings) -> Explanation:
        """Why an answer goes on as it does after its first `begin` characters, and not with `foil`.

        Raises:
            InvalidInputError: The foil is empty, or does not differ.
        """
        if not foil.strip():
            raise InvalidInputError("Say what the model could have written instead.")
        other = answer[:begin] + foil.strip()
        config = settings.explain_config(positive_only=False)
        contrast: Explanation = self.explainer.explain(chat, answer, foil=other, explain_config=config, **self._template)
        return contrast

    def removal_test(self, explanation: Explanation, name: str, place: tuple[int, int]) -> Removals:
        """What the answer loses without one part of the prompt; see `GradELLM.removal_test`.

        Raises:
            InvalidInputError: There is no such place in the prompt.
        """
        return self.explainer.removal_test(explanation, {name: place}, of="answer")

    def _written_with(self, chat: Chat, settings: Settings) -> dict[str, Any]:
        """Arguments of `explain` for an answer that fits into what the model reads."""
        (asked,) = encoded_prompts(self._tokenizer, [chat], self._template)
        length, longest = len(asked.ids), self._longest_text
        if longest is not None and length >= longest:
            raise InvalidInputError(
                f"The documents and the chat have {length:,} tokens, and the model reads at most {longest:,}. Leave documents "
                "out, or begin a new chat."
            )
        most = min(settings.max_new_tokens, self.most_new_tokens, *([] if longest is None else [longest - length]))
        return {**self._template, **self._stops, **settings.generate_kwargs(), "max_new_tokens": most}

    @property
    def _longest_text(self) -> int | None:
        config: Any = self.explainer.config.get_text_config(decoder=True)
        return getattr(config, "max_position_embeddings", None)


class Answering:
    """An answer while it is written: an iterator of the text so far. Its explanation comes after it.

    `stop` ends the answer, and what there is of it is explained. `abandon` ends both; nobody waits for them any more.
    """

    def __init__(self, explainer: GradELLM, tokenizer: Any, chat: Chat, kwargs: Mapping[str, Any], when_done: Any):
        self._explained: Future[Explanation] = Future()
        self._stopped, self._abandoned = threading.Event(), threading.Event()
        self._streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._when_done = when_done
        arguments = {**kwargs, "streamer": self._streamer, "stopping_criteria": StoppingCriteriaList([_Ends(self)])}
        threading.Thread(target=self._run, args=(explainer, chat, arguments), name="answer", daemon=True).start()

    def _run(self, explainer: GradELLM, chat: Chat, kwargs: Mapping[str, Any]) -> None:
        try:
            self._explained.set_result(explainer.explain(chat, **kwargs))
        except BaseException as error:
            self._explained.set_exception(error)
        finally:
            self._streamer.end()  # `generate` has done so unless it failed
            self._when_done()

    def __iter__(self) -> Iterator[str]:
        text = ""
        for piece in self._streamer:
            text += piece
            if piece:
                yield text
        if self._explained.done() and (error := self._explained.exception()) and not hasattr(error, "generated"):
            raise error  # it failed while it wrote

    def explanation(self) -> Explanation:
        """Waits for the explanation, and raises the error that it ended in."""
        return self._explained.result()

    def stop(self) -> None:
        self._stopped.set()

    def abandon(self) -> None:
        self._abandoned.set()


class AbandonedError(GradELLMError):
    """Ends a generation that nobody waits for."""

    def __init__(self) -> None:
        super().__init__("The chat was closed while its answer was being written.")


class _Ends(StoppingCriteria):
    def __init__(self, answering: Answering):
        self._answering = answering

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> Any:
        if self._answering._abandoned.is_set():
            raise AbandonedError
        return torch.full((len(input_ids),), self._answering._stopped.is_set(), device=input_ids.device)
