"""Explanations in other forms: files of either kind read back, tables, and the files of Inseq."""

import base64
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..errors import GradELLMError, InvalidInputError
from ..results.explanation import FORMAT, Explanation
from ..checks.files import read_metadata, reading, write_atomically
from ..results.output import ExplainGenerateOutput
from ..checks.schema import Natural, check, parse_json
from ..text.token_text import special_tokens, token_texts

if TYPE_CHECKING:
    from pandas import DataFrame

_INSEQ_DATA = "inseq.data.attribution"
_GRANULAR = "GranularFeatureAttributionSequenceOutput"


class _Ours(TypedDict):
    """What `save_inseq` adds about a sequence."""

    level: NotRequired[str]
    special: NotRequired[list[bool]]
    unit_names: NotRequired[list[str | None] | None]


class _Info(TypedDict):
    model_name: NotRequired[str | None]
    step_scores: NotRequired[list[str] | None]
    gradellm_hf: NotRequired[list[_Ours] | None]


class _Token(TypedDict):
    token: str
    id: int


class _TokenObject(TypedDict):
    attributes: _Token


class _Sequence(TypedDict):
    """Tensors are the base64 of a safetensors file."""

    target: list[_TokenObject]
    source_attributions: str | None
    target_attributions: str | None
    step_scores: dict[str, str] | None
    attr_pos_start: Natural
    attr_pos_end: Natural | None


class _SequenceObject(TypedDict):
    __instance_type__: tuple[str, str]
    attributes: _Sequence


class _Content(TypedDict):
    info: _Info
    sequence_attributions: list[_SequenceObject]


def load_explanations(path: str | os.PathLike[str], tokenizer: Any = None) -> list[Explanation]:
    """Reads a file that `Explanation.save` or `ExplainGenerateOutput.save` wrote.

    Args:
        path: The file.
        tokenizer: For files of the latter kind: the tokenizer of the model. Without it the tokens are shown as the file
            holds them, as they are written in the vocabulary.

    Raises:
        FileNotFoundError: There is no such file.
        InvalidInputError: It is of neither kind, of a later version, or holds token ids only and no tokenizer was given.
    """
    if read_metadata(path, "Explanation.save` or `ExplainGenerateOutput.save").get("format") == FORMAT:
        return [Explanation.load(path)]
    return ExplainGenerateOutput.load(path).explanations(tokenizer)


def to_dataframe(explanations: Explanation | Sequence[Explanation]) -> "DataFrame":
    """A long table: one row for each sequence, each step, and each position before that step.

    Columns: `sequence`, `step` (`n`), `generated_position` (`P + n`), `generated_token`, `probability` (of that token),
    `target_score` (where known), `position`, `token`, `score`, `in_prompt`, `special`. Larger units (after
    `aggregate`) contribute to themselves too and have a row for that.

    Raises:
        GradELLMError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise GradELLMError('Tables need pandas, which is not installed: pip install "gradellm-hf[tables]"') from error
    parts = [_columns(i, explanation) for i, explanation in enumerate(_listed(explanations))]
    names = list(dict.fromkeys(name for part in parts for name in part))
    return pandas.concat([pandas.DataFrame(part) for part in parts], ignore_index=True)[names]


def save_parquet(explanations: Explanation | Sequence[Explanation], path: str | os.PathLike[str]) -> None:
    """Writes the table of `to_dataframe` to a Parquet file.

    Raises:
        GradELLMError: pandas or pyarrow is not installed.
    """
    table = to_dataframe(explanations)
    try:
        write_atomically(path, table.to_parquet(None, index=False))
    except ImportError as error:
        raise GradELLMError('Parquet needs pyarrow, which is not installed: pip install "gradellm-hf[tables]"') from error


def save_inseq(explanations: Explanation | Sequence[Explanation], path: str | os.PathLike[str]) -> None:
    """Writes a file that `inseq.FeatureAttributionOutput.load` reads and its `show` displays; needs no Inseq.

    It holds pieces of text and ids, scores, probabilities and target scores (as the step scores `probability` and
    `target_score`), and which tokens are special; not the scores of single layers. Positions that a step had not seen are
    NaN, as Inseq writes them.

    Args:
        explanations: One sequence or several, of one model.
        path: The file, JSON.
    """
    explanations = _listed(explanations)
    first = explanations[0]
    step_scores = ["probability", *(["target_score"] if first.target_scores is not None else [])]
    info = {
        "attribution_method": "grad_ellm",
        "attribute_target": True,
        "constrained_decoding": True,
        "include_eos_baseline": False,
        "model_class": None,
        "model_name": first.model_name,
        "tokenizer_class": None,
        "tokenizer_name": None,
        "step_scores": step_scores,
        "attr_pos_start": first.prompt_length,
        "attr_pos_end": max(len(explanation.tokens) for explanation in explanations),
        "input_texts": ["".join(explanation.tokens[: explanation.prompt_length]) for explanation in explanations],
        "generated_texts": [explanation.text for explanation in explanations],
        "gradellm_hf": [
            {"level": explanation.level, "special": explanation.special, "unit_names": explanation.unit_names}
            for explanation in explanations
        ],
    }
    content = _inseq_object(
        "FeatureAttributionOutput",
        info=info,
        sequence_attributions=[_inseq_sequence(explanation) for explanation in explanations],
        step_attributions=None,
    )
    write_atomically(path, json.dumps(content, indent=1, sort_keys=True).encode())


def load_inseq(path: str | os.PathLike[str], tokenizer: Any = None) -> list[Explanation]:
    """Reads attributions of a decoder-only model that Inseq (or `save_inseq`) saved; needs no Inseq.

    Scores with a dimension for the embedding are reduced by its L2 norm, as Inseq does before it shows them (it also
    normalises them, which is not done here). NaN becomes 0.

    Args:
        path: A JSON file, not compressed.
        tokenizer: The tokenizer of the model. Without it the tokens are shown as Inseq wrote them, and in files that
            Inseq wrote none counts as special.

    Raises:
        FileNotFoundError: There is no such file.
        InvalidInputError: It is not such a file, was made with an encoder-decoder model or without the step score
            `probability`, or holds scores for every layer or head.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    try:
        content = parse_json(Path(path).read_bytes(), "its content")
        check(content, dict[str, Any], "its content")
        if content.get("__instance_type__") != [_INSEQ_DATA, "FeatureAttributionOutput"]:
            raise InvalidInputError("it is something else")
    except InvalidInputError as error:
        raise InvalidInputError(
            f"{str(path)!r} is not a file that `FeatureAttributionOutput.save` of Inseq wrote (uncompressed, with "
            f"`use_primitives=False`): {error}"
        ) from error
    with reading(path):
        check(content.get("attributes"), _Content, "`attributes`")
        info, sequences = content["attributes"]["info"], content["attributes"]["sequence_attributions"]
        ours = info.get("gradellm_hf") or [{}] * len(sequences)
        if len(ours) != len(sequences):
            raise InvalidInputError(f"`info['gradellm_hf']` must have {len(sequences)} entries, got {len(ours)}.")
        found = [_from_inseq(sequence, known, info.get("model_name"), tokenizer) for sequence, known in zip(sequences, ours)]
        held = {name for sequence in sequences for name in sequence["attributes"]["step_scores"] or {}}
        if lost := sorted(set(info.get("step_scores") or ()) - held):
            raise InvalidInputError(f"`info['step_scores']` names {lost}, but no sequence has such `step_scores`.")
        return found


def _listed(explanations: Explanation | Sequence[Explanation]) -> list[Explanation]:
    if isinstance(explanations, Explanation):
        return [explanations]
    listed = list(explanations) if isinstance(explanations, Iterable) and not isinstance(explanations, str) else []
    if not listed:
        raise InvalidInputError(f"`explanations` must be an Explanation or a list of them, at least one; got {explanations!r}.")
    for position, explanation in enumerate(listed):
        if not isinstance(explanation, Explanation):
            raise InvalidInputError(
                f"`explanations[{position}]` must be an Explanation, got {type(explanation).__name__}. Leave out prompts that "
                "failed, and write a list of lists as one list."
            )
    return listed


def _seen(explanation: Explanation) -> Tensor:
    """Which positions come before each step, `[N, S]`; a larger unit also sees itself."""
    num_steps, length = explanation.attributions.shape
    own = explanation.prompt_length + torch.arange(num_steps)[:, None] + (explanation.token_ids is None)
    return torch.arange(length)[None] < own


def _columns(sequence: int, explanation: Explanation) -> dict[str, Any]:
    import numpy

    steps, positions = (x.numpy() for x in _seen(explanation).nonzero(as_tuple=True))
    tokens, prompt_length = numpy.array(explanation.tokens, dtype=object), explanation.prompt_length
    targets = explanation.target_scores
    return {
        "sequence": numpy.full(len(steps), sequence),
        "step": steps,
        "generated_position": prompt_length + steps,
        "generated_token": tokens[prompt_length + steps],
        "probability": explanation.token_probabilities.numpy()[steps],
        **({} if targets is None else {"target_score": targets.numpy()[steps]}),
        "position": positions,
        "token": tokens[positions],
        "score": explanation.attributions.numpy()[steps, positions],
        "in_prompt": positions < prompt_length,
        "special": numpy.array(explanation.special, dtype=bool)[positions],
    }


def _inseq_object(name: str, module: str = _INSEQ_DATA, **attributes: Any) -> dict[str, Any]:
    return {"__instance_type__": [module, name], "attributes": attributes}


def _inseq_sequence(explanation: Explanation) -> dict[str, Any]:
    ids = [-1] * len(explanation.tokens) if explanation.token_ids is None else explanation.token_ids
    tokens = [
        _inseq_object("TokenWithId", "inseq.utils.typing", token=token, id=token_id)
        for token, token_id in zip(explanation.tokens, ids)
    ]
    scores = explanation.attributions.masked_fill(~_seen(explanation), torch.nan)
    step_scores = {"probability": explanation.token_probabilities, "target_score": explanation.target_scores}
    return _inseq_object(
        "CoarseFeatureAttributionSequenceOutput",
        source=tokens[: explanation.prompt_length],
        target=tokens,
        source_attributions=None,
        target_attributions=_to_base64(scores.T),
        step_scores={name: _to_base64(x) for name, x in step_scores.items() if x is not None},
        sequence_scores={},
        attr_pos_start=explanation.prompt_length,
        attr_pos_end=len(tokens),
    )


def _from_inseq(sequence: dict[str, Any], known: dict[str, Any], model_name: str | None, tokenizer: Any) -> Explanation:
    (_, kind), values = sequence["__instance_type__"], sequence["attributes"]
    if values["source_attributions"] is not None or values["target_attributions"] is None:
        raise InvalidInputError("The attributions are those of an encoder-decoder model. Only decoder-only models are read.")
    if "probability" not in (values["step_scores"] or {}):
        raise InvalidInputError(
            'The file holds no probabilities. Attribute with `step_scores=["probability"]` in Inseq and save again.'
        )
    scores = _from_base64(values["target_attributions"]).nan_to_num(posinf=torch.inf, neginf=-torch.inf)
    if scores.ndim > 2:
        if kind != _GRANULAR:
            raise InvalidInputError("The file holds scores for every layer or head. Aggregate them in Inseq and save again.")
        scores = scores.norm(dim=tuple(range(2, scores.ndim)))
    end, special = values["attr_pos_end"], known.get("special")
    if special is not None and len(special) != len(values["target"]):
        raise InvalidInputError(
            f"`target` must have the {len(special)} tokens that `special` is of, got {len(values['target'])}."
        )
    tokens = [token["attributes"] for token in values["target"][:end]]
    ids = None if any(token["id"] < 0 for token in tokens) else [token["id"] for token in tokens]
    texts, special = [token["token"] for token in tokens], special or [False] * len(tokens)
    if tokenizer is not None and ids is not None:
        texts, special = token_texts(tokenizer, ids), special_tokens(tokenizer, ids)
    targets = values["step_scores"].get("target_score")
    return Explanation(
        tokens=texts,
        token_ids=ids,
        prompt_length=values["attr_pos_start"],
        attributions=scores[:end].T,
        token_probabilities=_from_base64(values["step_scores"]["probability"]),
        text="".join(texts),
        special=special,
        target_scores=None if targets is None else _from_base64(targets),
        model_name=model_name,
        level=known.get("level", "token"),
        unit_names=known.get("unit_names"),
    )


def _to_base64(x: Tensor) -> str:
    return base64.b64encode(save_tensors({"attribution": x.contiguous()})).decode("ascii")


def _from_base64(text: str) -> Tensor:
    try:
        return load_tensors(base64.b64decode(text, validate=True))["attribution"].float()
    except (ValueError, SafetensorError, KeyError) as error:
        raise InvalidInputError(f"the base64 of a tensor is expected, got {text[:20]!r}: {error}") from error
