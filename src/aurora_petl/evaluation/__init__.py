"""Cross-modal evaluation: features once, candidates, rerank, recall."""
