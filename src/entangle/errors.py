"""The one family of errors: what was needed, what arrived, what to do, in one line."""


class EntangleError(ValueError):
    """An input that cannot be used; the message is one line that says what to do about it.

    Example:
        >>> try:
        ...     en.metrics.entanglement(torch.zeros(2, 3))
        ... except en.EntangleError as error:
        ...     print(error)
        ...
        row 0 of the directions is all zeros and points nowhere; leave it out
    """
