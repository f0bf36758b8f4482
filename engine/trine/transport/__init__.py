"""The connection to NATS: nats-py connects, and this reads, writes and waits."""
