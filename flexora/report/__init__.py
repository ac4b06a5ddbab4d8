"""Pictures, the HTML report, and tables for terminal and README. Imports nothing heavy by itself."""
