"""What is measured: one command a claim, each printing its figures and a last line of JSON."""
