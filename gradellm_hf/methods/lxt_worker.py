"""The process that runs lxt, in an environment of its own: `python -I lxt_worker.py FOLDER`.

It imports nothing of gradellm_hf. `-I` keeps the modules beside it from hiding those of the standard library with the same
name. It reads one JSON object per line from standard input, and answers each with one line on standard output, `{}` or
`{"error": ...}`. There are three tasks. `"start"` imports lxt. `"load"` loads the model in `FOLDER/model`. `"explain"` reads
`FOLDER/text.safetensors` and writes `FOLDER/found.safetensors`. It ends when its input ends, and removes the folder.
"""

import importlib
import inspect
import json
import os
import shutil
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any


def older_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json of Transformers 5 in the words of Transformers 4.

    Raises:
        ValueError: The layers with sliding windows are in an order that Transformers 4 could not express.
    """
    config = dict(config)
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    rope = dict(config.pop("rope_parameters", None) or {})
    if "full_attention" in rope or "sliding_attention" in rope:  # each kind of layer has its own
        local = rope.get("sliding_attention") or {}
        rope = dict(rope.get("full_attention") or local)
        config["rope_local_base_freq"] = local.get("rope_theta", 10_000.0)
        if local.get("rope_type", "default") != "default":
            raise ValueError("rotary embeddings of the sliding layers are scaled")
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rope:
            config[name] = rope.pop(name)
    if rope:
        config["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    if config.get("model_type") == "gemma3_text":
        config["sliding_window_pattern"] = _pattern(config["layer_types"])
    return config


def _pattern(layer_types: list[str]) -> int:
    """The number `k` for which every `k`-th layer attends to everything, while the others have a sliding window."""
    for pattern in range(1, len(layer_types) + 2):
        if layer_types == [_kind(layer, pattern) for layer in range(len(layer_types))]:
            return pattern
    raise ValueError(f"layers with a sliding window are not in a regular order: {layer_types}")


def _kind(layer: int, pattern: int) -> str:
    return "sliding_attention" if (layer + 1) % pattern else "full_attention"


class Explainer:
    """A model under lxt's rules."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def start(self, threads: int) -> None:
        self.patch, self.rules = _lxt()
        import torch

        torch.set_num_threads(threads)

    def load(self, dtype: str, device: str) -> None:
        """Rewrites the model's config, loads it and puts AttnLRP's rules into its code."""
        import torch

        transformers: Any = importlib.import_module("transformers")
        path = os.path.join(self.folder, "model")
        config_file = os.path.join(path, "config.json")
        with open(config_file, encoding="utf-8") as file:
            config = older_config(json.load(file))
        with open(config_file, "w", encoding="utf-8") as file:
            json.dump(config, file)
        config = transformers.AutoConfig.from_pretrained(path)
        model_class = transformers.AutoModelForCausalLM._model_mapping[type(config)]
        code: Any = importlib.import_module(model_class.__module__)
        if code not in self.rules:
            raise ValueError(f"it has rules for {sorted(known.__name__.split('.')[-2] for known in self.rules)} only")
        self.model, loading = model_class.from_pretrained(
            path, torch_dtype=getattr(torch, dtype), attn_implementation="sdpa", output_loading_info=True
        )
        wrong = {name: sorted(map(str, keys)) for name, keys in loading.items() if keys}
        if wrong:
            raise ValueError(f"the weights do not fit: {wrong}")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "Failed to patch"
            self.patch(code)
        self.model.to(device).eval().requires_grad_(False)

    def explain(self, steps: int) -> None:
        """Embedding times gradient of the last tokens' logits at each position, `[R, N, S - 1]`, and these logits, `[R, N]`."""
        import torch
        from safetensors.torch import load_file, save_file

        text = load_file(os.path.join(self.folder, "text.safetensors"), device=str(self.model.device))
        targets = text["token_ids"][:, -steps:]
        embeddings = self.model.get_input_embeddings()(text["token_ids"][:, :-1]).detach().requires_grad_()
        optional = {"logits_to_keep": steps, "position_ids": text["position_ids"][:, :-1], "use_cache": False}
        known = inspect.signature(self.model.forward).parameters
        logits = self.model(
            inputs_embeds=embeddings,
            attention_mask=text["attention_mask"][:, :-1],
            **{name: value for name, value in optional.items() if name in known},
        ).logits[:, -steps:]
        chosen = logits.gather(-1, targets[..., None])[..., 0]
        relevances = []
        for step in range(steps):
            (gradient,) = torch.autograd.grad(chosen[:, step].sum(), embeddings, retain_graph=step + 1 < steps)
            relevances.append(
                (embeddings.detach() * gradient).sum(-1, dtype=torch.promote_types(gradient.dtype, torch.float32))
            )
        found = {"relevances": torch.stack(relevances, dim=1).float(), "logits": chosen.detach().float()}
        save_file({name: x.contiguous().cpu() for name, x in found.items()}, os.path.join(self.folder, "found.safetensors"))


def _lxt() -> tuple[Callable[..., None], dict[Any, Any]]:
    """lxt's `monkey_patch` and its rules by module, without those for images, which need torchvision."""
    images: Any = types.ModuleType("lxt.efficient.models.vit_torch")
    images.vision_transformer, images.cp_LRP = images, {}
    sys.modules[images.__name__] = images
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zennit, for images too
        lxt: Any = importlib.import_module("lxt.efficient")
        models: Any = importlib.import_module("lxt.efficient.models")
    return lxt.monkey_patch, {code: rules for code, rules in models.DEFAULT_MAP.items() if code is not images}


def main(folder: str) -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    explainer = Explainer(folder)
    tasks: dict[str, Callable[..., None]] = {name: getattr(explainer, name) for name in ("start", "load", "explain")}
    for line in sys.stdin:
        request = json.loads(line)
        answer = {}
        try:
            tasks[request.pop("task")](**request)
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {error}"
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
