"""The vocabulary of the log: every event as a type. Pure: no I/O, no clock, no randomness.

An event's `data` is hashed with the log and can never change; `Private` text lies beside it, outside the hash, and can
be erased. Data never uses the names ts, level, code, message, step or item_index for anything else.
"""
