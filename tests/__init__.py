"""Tests, by what they need: `unit` needs nothing, `store` a database, `flow` the running stack."""
