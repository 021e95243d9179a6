"""Lightning's command line with our options, defaults and error messages."""
