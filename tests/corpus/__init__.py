"""What earlier releases left behind: their schemas, and histories that they wrote."""
