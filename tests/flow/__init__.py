"""The whole service, spoken to over HTTP."""
