"""Exceptions. Every message says what happened, what was expected and what to do."""


class GradELLMError(Exception):
    """Base class of the errors that this package raises itself.

    Raised after text has been generated, it carries what `generate` returned as `error.generated`.
    """


class UnsupportedArchitectureError(GradELLMError, ValueError):
    """The model cannot be explained exactly, and says why."""


class InvalidInputError(GradELLMError, ValueError):
    """An argument, an input tensor or the state of the model is not usable."""


class MissingDependencyError(GradELLMError, ImportError):
    """What was asked for needs a package that is not installed; the message has the command that installs it."""


class UnsupportedVersionError(GradELLMError, ImportError):
    """The installed version of a package is not one that this one runs with; the message has those that are."""


class GradELLMWarning(UserWarning):
    """An explanation is exact but was made in another way than asked for."""


def may_pass(error: str) -> bool:
    """Whether what failed with an error, `class: message`, may succeed another time: memory was short, say."""
    return error.partition(":")[0] not in {
        kind.__name__ for kind in (UnsupportedArchitectureError, InvalidInputError, UnsupportedVersionError)
    }
