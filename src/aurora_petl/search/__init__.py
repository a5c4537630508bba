"""Search over a person's own pictures: an index on disk, queries in words or by picture, a page on this machine."""
