"""Grad-ELLM and the methods that it is compared with, all called in the same way: see `Method`.

May import `generation`, `metrics`, `architecture`, `text`, `checks`, `configuration` and `errors` only.
"""

from functools import partial

from ..configuration import GradELLMConfig
from .attention import attention_last, attention_mean, attention_rollout
from .baseline import random
from .flashtrace_adapter import flash_trace
from .gim_adapter import gim
from .grad_ellm import grad_ellm
from .gradients import input_x_gradient, saliency
from .inseq_adapter import inseq_method
from .learned_attention import at2, learn_at2
from .lxt_adapter import attn_lrp
from .path_methods import deep_lift, integrated_gradients
from .registry import Method, get_method, method_names, register_method
from .removal import lime, occlusion
from .surrogate import context_cite

__all__ = [
    "Method",
    "at2",
    "attention_last",
    "attention_mean",
    "attention_rollout",
    "attn_lrp",
    "context_cite",
    "deep_lift",
    "flash_trace",
    "get_method",
    "gim",
    "grad_ellm",
    "input_x_gradient",
    "inseq_method",
    "integrated_gradients",
    "learn_at2",
    "lime",
    "method_names",
    "occlusion",
    "random",
    "register_method",
    "saliency",
]

register_method("grad_ellm", grad_ellm)
register_method("grad_ellm_layers", partial(grad_ellm, explain_config=GradELLMConfig(positive_part="layer")))
register_method("grad_ellm_loosened", partial(grad_ellm, explain_config=GradELLMConfig(spatial="loosened")))
register_method("grad_ellm_paper", partial(grad_ellm, explain_config=GradELLMConfig.paper()))
register_method("attention_last", attention_last)
register_method("attention_mean", attention_mean)
register_method("attention_rollout", attention_rollout)
register_method("saliency", saliency)
register_method("input_x_gradient", input_x_gradient)
register_method("integrated_gradients", integrated_gradients)
register_method("deep_lift", deep_lift)
register_method("occlusion", occlusion)
register_method("leave_one_out", partial(occlusion, measure="hellinger"))
register_method("lime", lime)
register_method("context_cite", context_cite)
register_method("random", random)
