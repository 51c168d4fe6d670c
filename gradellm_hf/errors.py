"""Exceptions. Every message says what happened, what was expected and what to do."""


class GradELLMError(Exception):
    """Base class of the errors that this package raises itself.

    An error that is raised after text was generated has what `generate` returned as its attribute `generated`.

    Examples:
        >>> try:
        ...     explain_sequences(model, out.sequences, prompt_length=0)
        ... except GradELLMError as error:
        ...     print(error)
        `prompt_length` must be an int from 1 to S = 9, got 0.
    """


class UnsupportedArchitectureError(GradELLMError, ValueError):
    """The model cannot be explained exactly; the message says why.

    Examples:
        >>> from transformers import MambaConfig, MambaForCausalLM
        >>> mamba = MambaForCausalLM(MambaConfig(vocab_size=8, hidden_size=4, num_hidden_layers=1)).eval()
        >>> explain_generate(mamba, inputs["input_ids"])
        Traceback (most recent call last):
        gradellm_hf.errors.UnsupportedArchitectureError: `mamba` has no softmax attention, ...
    """


class InvalidInputError(GradELLMError, ValueError):
    """An argument, an input tensor or the state of the model is not usable; the message says what to do.

    Examples:
        >>> GradELLMConfig(layers=0)
        Traceback (most recent call last):
        gradellm_hf.errors.InvalidInputError: `layers` must be "all", an int of at least 1 ...
    """


class MissingDependencyError(GradELLMError, ImportError):
    """What was asked for needs a package that is not installed; the message has the command that installs it."""


class UnsupportedVersionError(GradELLMError, ImportError):
    """The installed version of a package is not one that this one runs with; the message has those that are."""


class GradELLMWarning(UserWarning):
    """An explanation is exact, but it was not made in the way that was asked for.

    The stepwise engine, for example, takes the place of the replay engine in models that cannot be replayed exactly.

    Examples:
        >>> import warnings
        >>> warnings.simplefilter("ignore", GradELLMWarning)  # it can be silenced as any other warning
    """


def may_pass(error: str) -> bool:
    """Whether a second try may succeed after an error, given as `class: message`. It may if memory was short, for example."""
    return error.partition(":")[0] not in {
        kind.__name__ for kind in (UnsupportedArchitectureError, InvalidInputError, UnsupportedVersionError)
    }
