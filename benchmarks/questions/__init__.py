"""What learners of GPTs ask, answered by measurements: the experiments and the page's template."""
