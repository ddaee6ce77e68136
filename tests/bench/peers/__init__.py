"""The peers: each module is its own worker process and its own client process (see `protocol`)."""
