"""Methods for small corpora, one file each."""
