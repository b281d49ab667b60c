"""The one exception for mistakes that a user can mend."""


class UserError(Exception):
    """A mistake in settings, data or files: one or two lines that name the file or key and the mend (exit status 2)."""
