"""The log of one crash, made once and passed on. What writes the lines is imported with the first line."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from core_helper.journal import Journal


class Log:
    """Where the lines about one crash go: ``lines`` has a method for each kind of line.

    ``terminal`` is a descriptor of standard error if a person has that open. ``holder`` is the name under which the lines
    of this crash are counted, the number of the owner first: see holders.log_name.
    """

    def __init__(self) -> None:
        """Start without a terminal and without a holder, whose lines would be limited."""
        self.terminal: int | None = None
        self.holder = ""
        self._journal: Journal | None = None

    @property
    def lines(self) -> "Journal":
        """The journal, imported at the first line: most crashes write their only line when the delegate already runs."""
        if self._journal is None:
            from core_helper import journal

            self._journal = journal.Journal(self)
        return self._journal
