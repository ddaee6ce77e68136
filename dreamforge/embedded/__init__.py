"""The embedded services: a PostgreSQL and an S3 store that need no installation, with all data in DF_HOME."""

from dreamforge.embedded.errors import EmbeddedError, HomeInUse
from dreamforge.embedded.home import Home
from dreamforge.embedded.postgres import EmbeddedPostgres
from dreamforge.embedded.seaweed import EmbeddedSeaweed

__all__ = ["EmbeddedError", "EmbeddedPostgres", "EmbeddedSeaweed", "Home", "HomeInUse"]
