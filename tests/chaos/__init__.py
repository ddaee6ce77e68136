"""What the service promises while its processes are killed."""
