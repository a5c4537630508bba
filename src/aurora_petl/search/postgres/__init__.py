"""A library of pictures in PostgreSQL with pgvector, which many machines read and write."""
