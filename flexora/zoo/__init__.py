"""The model zoo: facts of base models, selections by name, adapters that were published."""
