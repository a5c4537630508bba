"""What training minimises, one objective a file; `tasks.retrieval` composes them."""

from .chunks import by_chunks
from .contrast import Contrast
from .matching import Matching, Pairs
from .momentum import Averages
from .sigmoid import sigmoid_loss

__all__ = ["Averages", "Contrast", "Matching", "Pairs", "by_chunks", "sigmoid_loss"]
