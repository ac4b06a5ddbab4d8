"""Base models: loading, the family registry, the packaged default, and adapters on chosen modules."""
