"""Studies: the same budget for Flexora, plain LoRA, controls and rivals, over benchmarks and seeds."""
