"""Inseq's files of attributions, written and read without Inseq."""

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..checks.files import reading, write_atomically
from ..checks.schema import Natural, check, parse_json
from ..errors import InvalidInputError
from ..results.explanation import Explanation
from ..text.readable import earlier_positions
from ..text.token_text import special_tokens, token_texts
from .tables import listed

_INSEQ_DATA = "inseq.data.attribution"
_GRANULAR = "GranularFeatureAttributionSequenceOutput"


class _Ours(TypedDict, total=False):
    """What `save_inseq` adds about a sequence."""

    level: str
    special: list[bool]
    unit_names: list[str | None] | None
    explained: list[bool] | None


class _Info(TypedDict, total=False):
    model_name: str | None
    step_scores: list[str] | None
    gradellm_hf: list[_Ours] | None


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


def save_inseq(explanations: Explanation | Sequence[Explanation], path: str | os.PathLike[str]) -> None:
    """Writes a file that `inseq.FeatureAttributionOutput.load` reads and its `show` displays. Inseq is not needed.

    It holds pieces of text and ids, scores, probabilities and target scores (as the step scores `probability` and
    `target_score`), and which tokens are special. It does not hold the scores of single layers. Scores `[N, S]` are NaN for
    positions that come after a step, as Inseq writes them, for steps that are not explained, and for what was not kept.

    Args:
        explanations: One sequence or several, of one model.
        path: The file, JSON.

    Raises:
        InvalidInputError: They are no explanations.
        OSError: The file cannot be written.

    Examples:
        >>> save_inseq(explanation, "answer.json")
        >>> load_inseq("answer.json")[0].text == explanation.text
        True
    """
    explanations = listed(explanations)
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
            {name: getattr(explanation, name) for name in ("level", "special", "unit_names", "explained")}
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
    """Reads attributions of a decoder-only model that Inseq (or `save_inseq`) saved. Inseq is not needed.

    If scores have a dimension for the elements of the embedding, its L2 norm is taken, as Inseq does before it shows them.
    (Inseq then normalises the scores, which is not done here.) NaN becomes 0.

    Args:
        path: A JSON file, not compressed.
        tokenizer: The tokenizer of the model. Without it, tokens are shown as the file has them. In a file of Inseq no token
            counts as special then.

    Raises:
        FileNotFoundError: There is no such file.
        InvalidInputError: It is not such a file, was made with an encoder-decoder model or without the step score
            `probability`, or holds scores for every layer or head.

    Examples:
        >>> save_inseq([explanation], "answer.json")
        >>> load_inseq("answer.json", tokenizer)
        [Explanation(4 generated tokens from 5, ...)]
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


def _inseq_object(name: str, module: str = _INSEQ_DATA, **attributes: Any) -> dict[str, Any]:
    return {"__instance_type__": [module, name], "attributes": attributes}


def _inseq_sequence(explanation: Explanation) -> dict[str, Any]:
    ids = [-1] * len(explanation.tokens) if explanation.token_ids is None else explanation.token_ids
    tokens = [
        _inseq_object("TokenWithId", "inseq.utils.typing", token=token, id=token_id)
        for token, token_id in zip(explanation.tokens, ids)
    ]
    seen = earlier_positions(explanation.prompt_length, *explanation.attributions.shape, own=explanation.token_ids is None)
    if explanation.explained is not None:
        seen &= torch.tensor(explanation.explained, dtype=torch.bool)[:, None]
    if explanation.rest is not None:
        seen &= explanation.attributions != 0
    scores = explanation.attributions.masked_fill(~seen, torch.nan)
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
        explained=known.get("explained"),
    )


def _to_base64(x: Tensor) -> str:
    return base64.b64encode(save_tensors({"attribution": x.contiguous()})).decode("ascii")


def _from_base64(text: str) -> Tensor:
    try:
        return load_tensors(base64.b64decode(text, validate=True))["attribution"].float()
    except (ValueError, SafetensorError, KeyError) as error:
        raise InvalidInputError(f"the base64 of a tensor is expected, got {text[:20]!r}: {error}") from error
