"""The fine-tune of the chosen layers."""
