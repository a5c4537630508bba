"""Results that a person can read: tables, curves and sheets of pictures; what a gallery shows is in `gallery`."""

from .card import ADAPTER_PLACE, RUN_PLACE, data_facts, front_matter, run_card
from .curves import plot_curve
from .queries import write_queries
from .scores import (
    FEW,
    LABELS,
    Protocol,
    by_protocol,
    caution,
    kept_weights,
    run_scores,
    run_summary,
    scores_json,
    scores_table,
    start_scores,
)
from .sheets import AnsweredQuestion, GalleryQuery, Hit, answer_gallery, load_font, query_gallery, wrap_text
from .tables import (
    LEGEND,
    RECALLS,
    conversion_summary,
    markdown_table,
    parameter_summary,
    size_of,
    table,
)

__all__ = [
    "ADAPTER_PLACE",
    "AnsweredQuestion",
    "FEW",
    "GalleryQuery",
    "Hit",
    "LABELS",
    "LEGEND",
    "Protocol",
    "RECALLS",
    "RUN_PLACE",
    "answer_gallery",
    "by_protocol",
    "caution",
    "conversion_summary",
    "data_facts",
    "front_matter",
    "kept_weights",
    "load_font",
    "markdown_table",
    "parameter_summary",
    "plot_curve",
    "query_gallery",
    "run_card",
    "run_scores",
    "run_summary",
    "scores_json",
    "scores_table",
    "size_of",
    "start_scores",
    "table",
    "wrap_text",
    "write_queries",
]
