"""Data sets made of packages that are downloaded when asked for."""
