"""The one family of errors: what was needed, what arrived, what to do, in one line."""


class EntangleError(ValueError):
    """An input that cannot be used; the message is one line that says what to do about it."""
