"""Steps of work: one file per kind. Chain stages make torch models; the others make and judge files."""
