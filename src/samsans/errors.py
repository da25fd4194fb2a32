"""Errors that tell what was found, what was expected and what to do."""


class SamsansError(Exception):
    """Base of every error that samsans raises on purpose."""


class InputError(SamsansError, ValueError):
    """A file, folder, array or option cannot be used as it is.

    The message names what was found, what was expected and what to do about it.
    """

    def __init__(self, found: str, expected: str = "", todo: str = "") -> None:
        parts = [found.removesuffix(".") + "."]
        if expected:
            parts.append(f"Expected {expected.removesuffix('.')}.")
        if todo:
            parts.append(todo.removesuffix(".") + ".")
        super().__init__(" ".join(parts))


class OtherRunError(InputError):
    """A folder holds a run of other settings than those asked for."""
