"""What is measured: one command a claim. Those beside peers end with a line of JSON, others write a page of docs/."""
