"""The one exception for a user's mistake."""


class UserError(ValueError, SystemExit):
    """A mistake in a flag, a file or a value, told in one sentence.

    Code that uses the package as a library catches it as a ``ValueError``; when nothing catches
    it, the interpreter prints the sentence without a traceback and exits with status 1, because
    it is a ``SystemExit`` as well.
    """

    def __init__(self, message: str) -> None:
        if message.startswith("Caught UserError in DataLoader worker"):
            # torch makes it anew from the worker's traceback, which ends with the sentence
            message = message.rstrip().rpartition(f"{__name__}.UserError: ")[2]
        super().__init__(message)
        self.code = message
