"""The composition root: settings, logging, the embedded services, the roles and the command line."""

__version__ = "0.1.0"
