"""Taking messages from durable consumers: asking for them, holding them, settling them."""
