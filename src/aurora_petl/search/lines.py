"""What an update of an index came to, and what the command says of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import one_line
from .scan import mend_of

_SHOWN = 5  # names that a line lists


@dataclass(frozen=True)
class Update:
    """What an update of an index came to."""

    pictures: int
    encoded: int
    removed: int
    texts: int
    skipped: dict[str, str]  # path -> why
    others: dict[str, int] = field(default_factory=dict)  # suffix -> files that look like pictures and are not indexed
    absent: list[str] = field(default_factory=list)  # pictures that have captions and are not there
    note: str = ""  # as what captions were read, or why they were not


def summary(out: object, update: Update) -> str:
    """An update in figures, then what was left out and why, a line each."""
    lines = [
        f"{out}: {update.pictures:,} pictures ({update.encoded:,} encoded now, {update.removed:,} removed), "
        f"{update.texts:,} captions"
    ]
    if update.note:
        lines.append(update.note)
    if update.skipped:
        lines.append(f"{len(update.skipped)} skipped; mend or remove them and run aurora index again:")
        lines += [f"  {why}" for why in update.skipped.values()]
    if update.others:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(update.others.items()))
        lines.append(f"not indexed, being of kinds that cannot be read here: {kinds}; {mend_of(update.others)}")
    if update.absent:
        names = ", ".join(update.absent[:_SHOWN]) + (", ..." if len(update.absent) > _SHOWN else "")
        lines.append(f"captions of {len(update.absent):,} pictures that are not there are left out: {names}")
    return "\n".join(map(one_line, lines))
