"""What a model is while it is looked at: what has been found out about it holds for as long as this stays the same."""

import weakref
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

from .hooks import is_thread_hook


@dataclass(frozen=True)
class Layout:
    """What a forward pass has shown of a model; kept between calls, so its modules are held weakly.

    Attributes:
        modules: The attention modules in the order in which a forward pass runs them; one that runs twice is there twice.
        calls_interface: Whether they look up their attention function in Transformers' AttentionInterface.
        keeps_cache: Whether the model hands a cache of keys and values from call to call.
    """

    modules: list["weakref.ref[nn.Module]"]
    calls_interface: bool
    keeps_cache: bool


@dataclass
class Findings:
    """What has been found out about a model. Keeps nothing of the model alive.

    Attributes:
        identity: What the model was when it was looked at.
        layout: Its attention modules, once they have been seen to run.
        verdicts: Why it cannot be replayed, or None, by its attention implementation and dtype.
        differences: Relative difference of the logits between its own attention implementation and sdpa or eager.
    """

    identity: Any
    layout: Layout | None = None
    verdicts: dict[Any, str | None] = field(default_factory=dict)
    differences: dict[Any, float] = field(default_factory=dict)


_findings: "weakref.WeakKeyDictionary[nn.Module, Findings]" = weakref.WeakKeyDictionary()


def findings(model: nn.Module) -> Findings:
    """What is known about a model, by whoever found it out."""
    known = _findings.get(model)
    return look_again(model) if known is None else known


def look_again(model: nn.Module) -> Findings:
    """The same, after a look at whether the model is still what it was: where it is not, nothing is known about it."""
    identity, known = _identity(model), _findings.get(model)
    if known is None or known.identity != identity:
        known = _findings[model] = Findings(identity)
    return known


def _identity(model: nn.Module) -> list[Any]:
    """Every module with what runs when it is called: its class's `forward` or its own, and its hooks.

    Hooks are known by their numbers, which torch gives out only once. Objects are held weakly: a new one at the place of an
    old one in memory is not taken for it. Hooks of explanations that are running do not count.
    """
    identity: list[Any] = [_hooks(torch_module._global_forward_hooks), _hooks(torch_module._global_forward_pre_hooks)]
    for module in model.modules():
        forwards = _weak(type(module).forward), _weak(vars(module).get("forward"))
        identity.append((weakref.ref(module), *forwards, _hooks(module._forward_hooks), _hooks(module._forward_pre_hooks)))
    return identity


def _hooks(hooks: dict[int, Any]) -> tuple[int, ...]:
    return tuple(number for number, hook in list(hooks.items()) if not is_thread_hook(hook))


def _weak(function: Any) -> Any:
    try:
        return weakref.ref(function)
    except TypeError:  # None, and what cannot be held weakly
        return id(function)
