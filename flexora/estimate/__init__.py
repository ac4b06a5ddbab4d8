"""What a recipe will take: each phase's own step, rehearsed on tensors that have shapes and no data."""
