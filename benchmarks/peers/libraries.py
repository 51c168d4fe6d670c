"""The libraries that are measured, with the packages of the environment of each. Only the standard library is imported."""

from dataclasses import dataclass

_NEWEST = ("transformers==5.24.0", "accelerate==1.15.0", "safetensors==0.8.0")


@dataclass(frozen=True)
class Peer:
    """One way to explain, in an environment of its own.

    Attributes:
        library: How the table names it.
        what: What is run, and what comes out.
        packages: Installed with their dependencies, besides PyTorch.
        alone: Installed without theirs, which are for other parts of them.
        environment: The name of its environment, which others may share.
    """

    library: str
    what: str
    environment: str
    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()


#: By the name of the function in `worker.py` that runs it.
PEERS = {
    "grad_ellm": Peer("gradellm_hf", "Grad-ELLM, all layers, given text", "own", _NEWEST),
    "grad_ellm_generate": Peer("gradellm_hf", "`explain_generate`, less `generate`", "own", _NEWEST),
    "inseq_saliency": Peer("Inseq", "saliency", "inseq", ("inseq==0.7.1", *_NEWEST)),
    "inseq_attention": Peer("Inseq", "attention weights", "inseq", ("inseq==0.7.1", *_NEWEST)),
    "captum_gradient": Peer("Captum", "gradient times activation of the embeddings", "captum", ("captum==0.9.0", *_NEWEST)),
    "lxt_attnlrp": Peer("LXT", "AttnLRP", "lxt", ("transformers==4.52.4",), ("lxt==2.1",)),
    "interpreto_saliency": Peer("Interpreto", "saliency", "interpreto", ("interpreto==0.5.2", "transformers==5.24.0")),
    "interpreto_occlusion": Peer("Interpreto", "occlusion", "interpreto", ("interpreto==0.5.2", "transformers==5.24.0")),
    "flash_trace": Peer("FlashTrace", "a vector per token", "flashtrace", _NEWEST, ("flashtrace==0.1.1",)),
    "flash_trace_span": Peer("FlashTrace", "one vector, one hop", "flashtrace", _NEWEST, ("flashtrace==0.1.1",)),
    "context_cite": Peer(
        "ContextCite", "sentences, 64 ablations, one vector", "context-cite", ("context-cite==0.0.4", "transformers==5.24.0")
    ),
}
#: Prompt and generated tokens.
CELLS = ((128, 64), (512, 128), (100, 2000))
