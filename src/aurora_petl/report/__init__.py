"""Results that a person can read: tables, curves and sheets of pictures; what a gallery shows is in `gallery`."""

from .curves import plot_curve, plot_methods
from .sheets import AnsweredQuestion, GalleryQuery, Hit, answer_gallery, load_font, query_gallery, wrap_text
from .tables import (
    FEW,
    LEGEND,
    RECALLS,
    caution,
    comparison_table,
    conversion_summary,
    kept_weights,
    markdown_table,
    metrics_table,
    parameter_summary,
    run_summary,
    size_of,
    table,
    wilson,
)

__all__ = [
    "AnsweredQuestion",
    "FEW",
    "GalleryQuery",
    "Hit",
    "LEGEND",
    "RECALLS",
    "answer_gallery",
    "caution",
    "comparison_table",
    "conversion_summary",
    "kept_weights",
    "load_font",
    "markdown_table",
    "metrics_table",
    "parameter_summary",
    "query_gallery",
    "plot_curve",
    "plot_methods",
    "run_summary",
    "size_of",
    "table",
    "wilson",
    "wrap_text",
]
