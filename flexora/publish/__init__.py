"""Publishing: what of a run goes out, what must never, and how it gets to the hub."""
