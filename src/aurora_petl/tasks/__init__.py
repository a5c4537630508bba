"""A task turns a batch into a loss, and a split into scores."""
