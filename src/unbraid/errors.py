"""What a person did wrong, told in one sentence."""


class InputError(ValueError):
    """Bad input: the message is one sentence that names the fault and says what to do.

    The command line prints it without a traceback; every other exception is a bug of ours.
    """
