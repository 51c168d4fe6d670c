"""What identifies a model as it is now. What has been found out about a model holds as long as its identity is the same."""

import weakref
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

from .hooks import is_thread_hook


@dataclass(frozen=True)
class Layout:
    """What a forward pass has shown of a model. It is kept between calls, so it refers to the modules weakly.

    Attributes:
        modules: The attention modules in the order in which a forward pass runs them. One that runs twice is in it twice.
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
    """What is known about a model."""
    known = _findings.get(model)
    return look_again(model) if known is None else known


def look_again(model: nn.Module) -> Findings:
    """The same, after a check that the model has not changed. If it has, nothing is known about it any more."""
    identity, known = _identity(model), _findings.get(model)
    if known is None or known.identity != identity:
        known = _findings[model] = Findings(identity)
    return known


def _identity(model: nn.Module) -> list[Any]:
    """Every module with what runs when it is called: its class's `forward` or its own, and its hooks.

    Hooks are identified by their numbers, which torch gives out only once. Objects are identified by weak references: a new
    object at an old one's place in memory is not mistaken for it. Hooks of running explanations do not count.
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
