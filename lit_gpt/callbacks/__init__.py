"""What watches a run: checkpoints, exact resume, progress, throughput, samples, summary, predictions; one file each."""
