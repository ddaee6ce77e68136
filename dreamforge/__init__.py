"""The composition root: settings, logs, embedded services, roles and the command line."""

__version__ = "0.1.0"
