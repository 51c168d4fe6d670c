"""Packages that only a part of this one needs. Every one is in an extra of `pyproject.toml`."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import MissingDependencyError


@contextmanager
def needed_for(what: str, package: str) -> Iterator[None]:
    """A context for importing a package that may be missing.

    Args:
        what: What needs it, as the error names it, with its verb: "Plots need".
        package: The name of the package, for pip.

    Raises:
        MissingDependencyError: It is missing.
    """
    try:
        yield
    except ImportError as error:
        message = f"{what} {package}, which is not installed: pip install {package}"
        raise MissingDependencyError(message, name=package) from error
