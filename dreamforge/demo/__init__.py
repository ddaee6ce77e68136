"""`make demo`: starts the service with embedded services, and runs a job on it."""
