"""Packages that only a part of this one needs, as the extras of `pyproject.toml` install them."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import MissingDependencyError


@contextmanager
def needed_for(what: str, package: str, extra: str) -> Iterator[None]:
    """A context for importing a package that may be missing.

    Args:
        what: What needs it, as the error names it, with its verb: "Plots need".
        package: The name of the package.
        extra: The extra of this package that installs it.

    Raises:
        MissingDependencyError: It is missing.
    """
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            f'{what} {package}, which is not installed: pip install "gradellm-hf[{extra}]"', name=package
        ) from error
