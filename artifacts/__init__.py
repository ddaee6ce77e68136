"""Image files: the object store, the encoding, and the lineage embedded in each file.

Imports neither the queue nor the database.
"""
