"""What a user can meet."""


class AuroraError(Exception):
    """One line that says what was found, where, and how to mend it."""
