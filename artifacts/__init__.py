"""Images outside of the database: the object store, their encoding, and the lineage within their files.

Knows neither queue nor database.
"""
