"""Jobs: how they are stored, taken, followed and set aside."""
