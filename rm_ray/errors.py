"""The one error that is the user's to mend."""


class InputError(ValueError):
    """Something the user gave cannot be trained on.

    The message is one paragraph: the field or row, its value, the rule it breaks, what to do.
    """
